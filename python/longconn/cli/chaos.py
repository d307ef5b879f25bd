"""`longconn chaos`: the fault proxy from the shell, for any client and any server."""

from __future__ import annotations

import inspect
import json
import re
import sys
import threading
import time
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..short import split_address
from ..testing.proxy import FaultProxy, LaterFaults
from .talk import lines_of_input

__all__ = ["chaos"]

_LOOK = 0.1
#: What can be ordered: the proxy's faults by their own names.
_VERBS = sorted(
    name
    for name, _ in inspect.getmembers(LaterFaults, inspect.isfunction)
    if not name.startswith("_") and name != "some"  # that is a percentage here
)


def _value(text: str) -> Any:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def carry_out(proxy: FaultProxy, line: str) -> None:
    """One order: ``[SECONDS] [SHARE%] VERB [VALUE | NAME=VALUE ...]``; verb and arguments are `FaultProxy`'s.

    Raises:
        ValueError: It makes no sense; the text says what would.
    """
    words = line.split()
    if not words:
        return
    target: Any = proxy
    try:
        if isinstance(after := _value(words[0]), int | float):
            target, words = proxy.after(after), words[1:]
        if words and words[0].endswith("%") and isinstance(percent := _value(words[0][:-1]), int | float):
            target, words = target.some(percent / 100), words[1:]
    except ValueError as error:
        raise ValueError(f"{line!r}: {error}") from None
    if not words or words[0] not in _VERBS:
        raise ValueError(f"{line!r}: [SECONDS] [SHARE%] and one of {', '.join(_VERBS)}")
    if not hasattr(target, words[0]):
        raise ValueError(f"{line!r}: {words[0]} is of the proxy, not of a share of its connections")
    verb, *arguments = words
    values = [_value(word) for word in arguments if "=" not in word]
    named = {name: _value(value) for name, _, value in (word.partition("=") for word in arguments if "=" in word)}
    method = getattr(target, verb)
    try:
        inspect.signature(method).bind(*values, **named)
    except TypeError as error:
        raise ValueError(f"{line!r}: {verb}{inspect.signature(method)}: {error}") from None
    try:
        method(*values, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{line!r}: {error}") from None


def _list_verbs() -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for verb in _VERBS:
        method = getattr(FaultProxy, verb)
        parameters = list(inspect.signature(method).parameters.values())[1:]
        signature = " ".join(
            each.name if each.default is each.empty else f"{each.name}={each.default}"
            for each in parameters
            if each.default != "both"  # said of all below
        )
        # The first sentence is enough to choose by; its marks are for pages.
        what = (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " ").partition(". ")[0]
        table.add_row(f"[bold]{verb}[/] {signature}", re.sub(r"[`*]", "", what).rstrip(".") + ".")
    console = Console(highlight=False)
    console.print(table)
    console.print("\ndirection: to_server, to_client or both; both where it isn't asked for above.")


def chaos(
    upstream: Annotated[str, typer.Argument(metavar="HOST:PORT", help="the server that is behind it")] = "",
    listen: Annotated[
        str, typer.Option("--listen", "-l", metavar="HOST:PORT", help="for clients; port 0: a free one")
    ] = ("127.0.0.1:0"),
    order: Annotated[
        list[str] | None,
        typer.Option("--order", "-o", metavar="ORDER", help="[SECONDS] [SHARE%] FAULT [VALUE ...]; several"),
    ] = None,
    seconds: Annotated[float, typer.Option("--time", min=0, help="end after so long; 0: at Ctrl-C")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="for what chance decides")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="what happens, an object a line")] = False,
    faults: Annotated[bool, typer.Option("--list", help="what can be ordered, and nothing else")] = False,
) -> int:
    """Stand between a client and a server, and break their connections on purpose.

    Orders come by --order and, a line each, by the standard input: "drop to_server", "latency 0.2 jitter=0.05",
    "5 pull_cable" (in five seconds), "30% latency 2" (of a share of the connections), "restore". What happens is
    printed.
    """
    if faults:
        _list_verbs()
        return 0
    if not upstream:
        raise typer.BadParameter("whose server?", param_hint="HOST:PORT")
    host, port = split_address(listen)
    with FaultProxy(upstream, host=host, port=port, seed=seed) as proxy:
        for line in order or ():
            carry_out(proxy, line)
        if as_json:
            print(json.dumps({"what": "listening", "address": list(proxy.address)}), flush=True)
        else:
            print("listening on {}:{}".format(*proxy.address), flush=True)
        threading.Thread(target=_obey, args=(proxy,), daemon=True).start()
        console = Console(highlight=False)
        began, told = time.monotonic(), 0
        is_over = False
        while not is_over:
            try:
                time.sleep(_LOOK)
                is_over = 0 < seconds <= time.monotonic() - began
            except KeyboardInterrupt:
                is_over = True
            record = proxy.record
            for event in record[told:]:
                if as_json:
                    print(json.dumps(event._asdict()), flush=True)
                else:
                    style = "bold" if event.what == "fault" else None
                    console.print(str(event), style=style, markup=False, soft_wrap=True)
            told = len(record)
    return 0


def _obey(proxy: FaultProxy) -> None:
    for line in lines_of_input():
        try:
            carry_out(proxy, line.decode(errors="replace").strip())
        except ValueError as error:
            print(f"longconn chaos: {error}", file=sys.stderr, flush=True)
        except Exception:
            return  # it is closed
