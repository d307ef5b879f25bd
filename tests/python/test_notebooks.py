"""The notebooks of examples/ are true, and `longconn.notebook.watch` goes on while cells run: in real kernels."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from peers import SLACK, python

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("run_notebook.py")
NOTEBOOKS = sorted(ROOT.glob("examples/notebooks/*.ipynb"))


def cells(path: Path, kind: str = "code") -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def write(path: Path, *sources: str, outputs: tuple[object, ...] = ()) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    if outputs:
        notebook.cells[0].outputs = list(outputs)
    nbformat.write(notebook, path)
    return path


def stream(text: str) -> object:
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 6


@pytest.mark.timeout(180 * SLACK)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_what_it_has_kept(path):
    done = python(RUNNER, path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_kept_with_what_it_gave(path):
    """For who reads it without running it."""
    kept = nbformat.read(path, as_version=4)
    nbformat.validate(kept)
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run once, from top to bottom"
    assert all(cell.outputs for cell in code if "# prints: " in cell.source or cell.source.startswith("watch("))
    assert [output for cell in code for output in cell.outputs if output.output_type == "error"] == []
    assert str(ROOT) not in path.read_text(encoding="utf-8")


def test_both_languages_run_the_same_code():
    def plain(source: str) -> list[str]:
        """Without comments and words for people."""
        lines = [line.partition("  #")[0].strip() for line in source.splitlines()]
        return [
            line for line in lines if line and not line.startswith(("#", "print(", 'client.send("', "client.send(b"))
        ]

    english, chinese = ([plain(source) for source in cells(path)] for path in NOTEBOOKS[:2])
    assert english == chinese
    assert len(cells(NOTEBOOKS[0], "markdown")) == len(cells(NOTEBOOKS[1], "markdown"))


# ---- the runner finds what is wrong


@pytest.mark.parametrize(
    ("source", "outputs", "complaint"),
    [
        ("1 / 0", (), "ZeroDivisionError"),
        ("print(1)  # prints: 2", (stream("1\n"),), "says that it prints '2'"),
        ("print('lost')", (stream("told\n"),), "told"),
        ("print('lost')", (), "lost"),
        ("1", (stream("1\n"),), "text/plain"),
    ],
)
def test_a_notebook_that_is_wrong_is_found_out(tmp_path, source, outputs, complaint):
    done = python(RUNNER, write(tmp_path / "wrong.ipynb", source, outputs=outputs))
    assert done.returncode == 1
    assert complaint in done.stderr


def test_numbers_may_differ(tmp_path):
    source = "import time; print(f'after {time.perf_counter():.3f} s')"
    done = python(RUNNER, write(tmp_path / "times.ipynb", source, outputs=(stream("after 12 ms\n"),)))
    assert done.returncode == 0, done.stderr


def test_what_came_can_be_kept(tmp_path):
    path = write(tmp_path / "new.ipynb", "print(6 * 7)  # prints: 42")
    assert python(RUNNER, path).returncode == 1
    assert python(RUNNER, "--save", path).returncode == 0
    assert python(RUNNER, path).returncode == 0


# ---- a picture that goes on

BEGIN = """
import time
import longconn
from longconn.notebook import timeline, watch
heartbeat = longconn.Heartbeat(0.2)
server = longconn.LongServer(("127.0.0.1", 0), heartbeat=heartbeat)
client = longconn.connect(server.address, client_id="device-7", heartbeat=heartbeat)

def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
"""


def run(tmp_path: Path, *sources: str) -> list[list[str]]:
    """The HTML that is below each cell once all have run."""
    path = write(tmp_path / "live.ipynb", BEGIN, *sources)
    done = python(RUNNER, "--save", path)
    assert done.returncode == 0, done.stderr
    code = nbformat.read(path, as_version=4).cells
    return [["".join(each.data.get("text/html", "")) for each in cell.outputs if "data" in each] for cell in code]


def test_a_watched_connection_goes_on_below_its_cell_and_ends_with_it(tmp_path):
    _, shown, *others = run(
        tmp_path,
        "picture = watch(client)\npicture",
        "until(lambda: client.stats().beats_heard >= 5)",
        "client.close()\nserver.close()\nuntil(lambda: not picture.is_running)\npicture.stop()",
        "picture.stop()  # it has ended by itself; nothing happens",
    )
    assert len(shown) == 1, "once, though it is the cell's value, too"
    assert "closed, beats" in shown[0]
    assert int(shown[0].partition("sent, ")[2].split()[0]) >= 5
    assert others == [[], [], []]


def test_a_stopped_picture_stays_as_it_is(tmp_path):
    _, shown, *_ = run(
        tmp_path,
        "picture = watch(client, server)",
        "until(lambda: client.stats().beats_heard >= 2)\npicture.stop()",
        "assert not picture.is_running\nclient.close()\nserver.close()\ntime.sleep(1)",
    )
    assert "open, beats" in shown[0]


def test_a_picture_can_be_shown_again_and_both_go_on(tmp_path):
    _, first, second, _ = run(
        tmp_path,
        "picture = watch(client)",
        "picture",
        "client.close()\nserver.close()\nuntil(lambda: not picture.is_running)\npicture.stop()",
    )
    assert len(first) == len(second) == 1
    assert "closed, beats" in first[0]
    assert "closed, beats" in second[0]


def test_what_nobody_refers_to_any_more_is_watched_to_its_end(tmp_path):
    _, shown, *_ = run(
        tmp_path,
        "watch(client)",
        "client.close()\nserver.close()\nuntil(lambda: client.state == 'closed')\ntime.sleep(1)",
    )
    assert "closed, beats" in shown[0]
