"""Runs a notebook as its reader would, from top to bottom in a kernel of its own; ends with status 1 if it isn't true.

    python run_notebook.py [--save] NOTEBOOK

What is asked of it: no cell fails; ``print(...)  # prints: text`` prints that, as in `run_page`; and each cell gives
what the notebook has kept of it, numbers aside, and pictures by their kind. With --save what came is kept instead.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from run_page import contradiction
from traitlets.config import Config

PATIENCE = 60 * float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
#: A number with what people put behind it, for that changes with the number: 950 ms, 1.2 s.
NUMBER = re.compile(r"\d+(\.\d+)?( (µs|ms|s)\b)?")


def said(cell: Any) -> str:
    """What it prints."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def shape(cell: Any) -> tuple[str, list[list[str]]]:
    """What comes of it each time: its words, and which kinds of pictures."""
    kinds = [sorted(output.data) for output in cell.outputs if "data" in output]
    return NUMBER.sub("0", said(cell)), kinds


def execute(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        client = NotebookClient(
            notebook,
            timeout=PATIENCE,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(path.parent)}},
            # over TCP, which others on this machine may hear, newer kernels warn
            config=Config(KernelManager={"transport": "ipc", "ip": f"{directory}/kernel"}),
        )
        client.execute()
    return notebook


def complaints(kept: Any, came: Any) -> list[str]:
    found = []
    for index, (before, after) in enumerate(zip(kept.cells, came.cells, strict=True)):
        if after.cell_type != "code":
            continue
        if complaint := contradiction(after.source, said(after)):
            found.append(f"cell {index}: {complaint}")
        elif shape(before) != shape(after):
            found.append(f"cell {index}: the notebook has {shape(before)}, and it gave {shape(after)}")
    return found


def main() -> int:
    *options, name = sys.argv[1:]
    path = Path(name).resolve()
    try:
        came = execute(path)
        kept = came if options == ["--save"] else nbformat.read(path, as_version=4)
        if found := complaints(kept, came):
            print(f"{path.name}:", *found, sep="\n", file=sys.stderr)
            return 1
    except Exception:
        traceback.print_exc()
        return 1
    if kept is came:
        # Of the kernel nothing that differs from machine to machine.
        came.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        nbformat.write(came, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
