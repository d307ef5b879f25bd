"""The documentation is true: its Python runs, its reference is complete, its links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import longconn
import pytest
from longconn import aio, testing
from peers import SLACK, python
from run_page import BLOCK, blocks

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("run_page.py")
API_CHECKER = Path(__file__).with_name("check_api_page.py")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TUTORIAL = sorted(ROOT.glob("docs/tutorial/*.md"))
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
EXCEPTIONS = [each for each in vars(longconn).values() if isinstance(each, type) and issubclass(each, Exception)]
CAUSES = [f"Cause.{cause.name}" for cause in longconn.Cause]
#: Where the reference has a class's names.
SECTIONS: dict[str, list[type]] = {
    "Sockets": [longconn.TcpInfo],
    "Settings": [longconn.Keepalive, longconn.DetectionTime, longconn.Applied],
    "The guard": [longconn.Guard],
    "Long connections": [longconn.LongConnection, longconn.Heartbeat, longconn.LinkStats, longconn.Event],
    "Servers": [longconn.LongServer, longconn.ServerStats, longconn.Broadcast],
    "TLS": [longconn.TLSInfo, longconn.Identity, longconn.TLS],
    "Errors": EXCEPTIONS,
    "The test kit": [
        testing.FaultProxy,
        testing.FaultConnection,
        testing.FlowStats,
        testing.ProxyEvent,
        testing.DeadPeer,
    ],
}


def identify(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- what it shows runs


@pytest.mark.timeout(180 * SLACK)
@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page))], ids=identify)
def test_the_python_of_a_page_runs(page: Path) -> None:
    if page.name == "libraries.md":
        pytest.importorskip("psycopg")
    done = python("-W", "error", "-W", "ignore::ResourceWarning", RUNNER, page)  # a line or two may leave things open
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```python\nprint(1)  # prints: 2\n```\n", "says that it prints '2'"),
        ("```python\nprint(1)  # prints: 1\nprint(2)\n```\n", "says that it prints 1 lines"),
        ("```python\n# gateway.py\nraise SystemExit(3)\n```\n", "gateway.py"),
        ("```python\n# gateway.py\nprint(1)  # prints: 2\n```\n", "gateway.py says that it prints '2'"),
        ("```python\nfrom longconn.notebook import watch\nprint(1)  # prints: 2\n```\n", "says that it prints '2'"),
        ("```python\nfrom longconn.notebook import watch\nwatch(1)\n```\n", "TypeError"),
        ("```python\nimport redis\nprint(redis.Redis('a.example', 6379).ping())  # prints: False\n```\n", "'True'"),
        ("```python\n# test_it.py\ndef test_it():\n    assert False\n```\n", "test_it.py"),
    ],
)
def test_a_page_that_is_wrong_is_found_out(tmp_path: Path, text: str, complaint: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    done = python(RUNNER, page)
    assert done.returncode == 1
    assert complaint in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_every_block_of_python_is_found_by_the_runner(page: Path) -> None:
    """One that is indented, or not closed, would silently not run."""
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"```\s*py", text)) == len(BLOCK.findall(text))


# ---- its tutorial is the same in both languages


class Wordless(ast.NodeTransformer):
    """What is left of a script without comments and texts."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node


def scripts(page: Path) -> list[str]:
    return [ast.dump(Wordless().visit(ast.parse(source))) for _, source in blocks(page)]


@pytest.mark.parametrize("page", TUTORIAL, ids=identify)
def test_the_tutorial_has_the_same_scripts_in_chinese(page: Path) -> None:
    assert scripts(ROOT / "docs/zh-CN/tutorial" / page.name) == scripts(page)


# ---- its reference is complete


def section(title: str) -> str:
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    assert found, f"the reference has no section {title!r}"
    return found[1]


def code(text: str) -> str:
    """What stands between backticks."""
    return "\n".join(re.findall(r"`([^`]+)`", text))


def public(cls: type) -> list[str]:
    """Its own names, and what its instances get; not what it has of the built-ins."""
    built_in = {name for base in cls.__mro__ if base.__module__ == "builtins" for name in dir(base)}
    own = [name for name in dir(cls) if not name.startswith("_") and name not in built_in]
    if issubclass(cls, longconn.LongConnError):
        own += [name for name in vars(cls()) if not name.startswith("_")]
    return sorted(set(own))


@pytest.mark.parametrize(
    "name", [*longconn.__all__, *testing.__all__, *(f"Cause.{cause.name}" for cause in longconn.Cause)]
)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    word = longconn.Cause[name.removeprefix("Cause.")].value if "." in name else name
    assert re.search(rf"\b{word}\b", code(REFERENCE))


def test_every_public_name_of_asyncio_is_in_its_section() -> None:
    words = code(section("asyncio"))
    assert [name for name in aio.__all__ if f"aio.{name}" not in words] == []
    # What has the same name in threads is told there.
    own = {*public(aio.LongServer), *vars(aio.LongConnection)} - {"abandon"}
    assert [name for name in sorted(own) if not name.startswith("_") and not re.search(rf"\b{name}\b", words)] == []


@pytest.mark.parametrize(("title", "cls"), [(title, cls) for title, each in SECTIONS.items() for cls in each])
def test_every_public_attribute_is_in_its_section(title: str, cls: type) -> None:
    words = code(section(title))
    assert [name for name in public(cls) if not re.search(rf"\b{name}\b", words)] == []


@pytest.mark.parametrize(
    "target",
    [
        longconn.connect,
        longconn.exchange,
        longconn.guard,
        longconn.Keepalive,
        longconn.Heartbeat,
        longconn.LongServer,
        longconn.LongServer.close,
        longconn.LongConnection.close,
        testing.FaultProxy,
        testing.assert_not_told_within,
    ],
    ids=lambda target: target.__qualname__,
)
def test_a_signature_in_the_reference_is_the_real_one(target: Any) -> None:
    where = code(section("Servers") if "LongServer" in target.__qualname__ else REFERENCE)
    found = re.search(rf"^\.?{target.__name__}\((.*)\)$", where, re.MULTILINE)
    assert found
    arguments = ast.parse(f"def f({found[1]}): ...").body[0].args  # type: ignore[attr-defined]
    positional = arguments.posonlyargs + arguments.args
    without = [None] * (len(positional) - len(arguments.defaults))
    told = dict(zip((each.arg for each in positional), [*without, *arguments.defaults], strict=True))
    told |= {each.arg: default for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    real = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        # each call has a timeout; that is said once
        if name != "self" and not (name == "timeout" and parameter.default is ...)
    }
    assert list(told) == list(real)
    for name, default in told.items():
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        assert value == real[name].default, name


# ---- its links lead somewhere


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_listed() -> None:
    index = ROOT / "docs/README.md"
    links = re.findall(r"\]\(([^)#\s]+)", index.read_text(encoding="utf-8"))
    listed = {(index.parent / link).resolve() for link in links}
    assert set(ROOT.glob("docs/**/*.md")) - {index} <= listed


def test_every_page_is_in_the_site() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert {ROOT / "docs" / page for page in re.findall(r": (\S+\.md)$", menu, re.MULTILINE)} == set(
        ROOT.glob("docs/**/*.md")
    )


def test_an_api_page_without_a_public_name_is_found_out(tmp_path: Path) -> None:
    """As `make docs` does: what mkdocstrings leaves out it doesn't tell."""
    page = tmp_path / "index.html"
    page.write_text('<h3 id="longconn.connect"></h3>', encoding="utf-8")
    done = python(API_CHECKER, page)
    assert done.returncode == 1
    missing = {line.partition(": ")[2] for line in done.stderr.splitlines()}
    assert "longconn.connect isn't there" not in missing
    assert {"longconn.LongConnection.recv isn't there", "longconn.aio.serve isn't there"} <= missing
