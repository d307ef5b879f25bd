"""All commands together, for who has typer and rich."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import LongConnError
from . import SUMMARY, bare, chaos, doctor, ping, probe, talk, watch
from .printing import said

__all__ = ["run"]

app = typer.Typer(
    name="longconn",
    help=SUMMARY,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"longconn {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("run", context_settings=_PASSED_ON)
def _run(arguments: Annotated[list[str] | None, typer.Argument(metavar="SCRIPT | -m MODULE")] = None) -> int:
    """Run a script whose sockets notice a dead peer: KeepaliveSocket in the place of socket.socket."""
    return bare.main(["run", *(arguments or [])], SUMMARY)


@app.command("explain", context_settings=_PASSED_ON)
def _explain(arguments: Annotated[list[str] | None, typer.Argument(metavar="IDLE,INTERVAL,COUNT")] = None) -> int:
    """Say when a dead peer is noticed with these settings, and what isn't seen."""
    return bare.main(["explain", *(arguments or [])], SUMMARY)


def _exiting(command: Callable[..., int | None]) -> Callable[..., None]:
    """What it returns is the exit status."""

    @functools.wraps(command)
    def run_it(*arguments: Any, **options: Any) -> None:
        raise typer.Exit(command(*arguments, **options) or 0)

    return run_it


for _command in (watch.watch, ping.ping, probe.probe, talk.serve, talk.connect, chaos.chaos, doctor.doctor):
    app.command()(_exiting(_command))


def run(words: Sequence[str]) -> int:
    """Run one; returns the exit status."""
    try:
        typer.main.get_command(app)(args=list(words), prog_name="longconn")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except (LongConnError, OSError, ValueError) as error:
        print(f"longconn {words[0]}: {said(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0
