"""All commands together, for who has typer and rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ..errors import LongConnError
from . import SUMMARY, bare, doctor, ping, probe, talk, watch

__all__ = ["run"]

app = typer.Typer(
    name="longconn",
    help=SUMMARY,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


@app.command("run", context_settings=_PASSED_ON)
def _run(arguments: Annotated[list[str] | None, typer.Argument(metavar="SCRIPT | -m MODULE")] = None) -> int:
    """Run a script whose sockets notice a dead peer: KeepaliveSocket in the place of socket.socket."""
    return bare.main(["run", *(arguments or [])], SUMMARY)


@app.command("explain", context_settings=_PASSED_ON)
def _explain(arguments: Annotated[list[str] | None, typer.Argument(metavar="IDLE,INTERVAL,COUNT")] = None) -> int:
    """Say when a dead peer is noticed with these settings, and what isn't seen."""
    return bare.main(["explain", *(arguments or [])], SUMMARY)


for _command in (ping.ping, probe.probe, talk.serve, talk.connect, watch.watch, doctor.doctor):
    app.command()(_command)


def run(words: Sequence[str]) -> int:
    """Run one; returns the exit status."""
    try:
        status = typer.main.get_command(app)(args=list(words), prog_name="longconn", standalone_mode=True)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        bare.interrupted()
    except BrokenPipeError:
        return 141  # as of a program that SIGPIPE has ended
    except (LongConnError, OSError, ValueError) as error:
        print(f"longconn {words[0] if words else ''}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return status if isinstance(status, int) else 0
