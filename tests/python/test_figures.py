"""The figures of docs/: every run is in them, and the same data give the same picture."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from pathlib import Path

import pytest

# Last: benches/ has a chaos.py, and so has tests/network.
sys.path.append(str(Path(__file__).resolve().parents[2] / "benches"))

import figures
from peers import python

ROOT = Path(__file__).resolve().parents[2]
KERNEL = "stdlib, SO_KEEPALIVE 1/1/3"
MEASURED = {
    "detection": {
        "patience": 20.0,
        "sockets": [
            {"case": "cable", "bound": 3.5, "told": {"KeepaliveSocket": [3.1, 3.2], KERNEL: [None, None]}},
            {"case": "slow reader", "accused": {"KeepaliveSocket": [False, False], KERNEL: [False, True]}},
        ],
        "links": [
            {"case": "cable", "bounds": {"client": 2.6, "server": 2.6}, "told": {"client": [2.1], "server": [2.2]}}
        ],
    },
    "chaos": {
        "faults": [{"fault": "the NAT forgets", "seconds": [1.1, 1.2]}, {"fault": "loss", "seconds": []}],
        "cable_bound": 1.0,
        "cables": [{"case": "the client's", "seconds": [0.2, 0.4]}],
        "crowds": [{"case": "a restart", "bin": 0.5, "down": 1.0, "all_back": 0.5, "seen": [9, 4, 2], "meant": [8, 5]}],
    },
    "comparison": {
        "patience": 15.0,
        "cases": [{"case": "cable, idle", "is_alive": False}, {"case": "GIL held", "is_alive": True}],
        "libraries": [
            {"name": "socket", "is_ours": False, "seconds": [[None, None], [None, None]]},
            {"name": "longconn", "is_ours": True, "seconds": [[1.9, 2.0], [None, None]]},
        ],
    },
}


def draw(folder: Path, name: str, measured: object) -> dict[str, str]:
    """In a process of its own, for matplotlib keeps its fonts' files open."""
    (folder / f"{name}.json").write_text(json.dumps(measured), encoding="utf-8")
    done = python("-W", "error", figures.__file__, "--folder", folder, name)
    assert (done.returncode, done.stderr) == (0, "")
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}


@pytest.mark.parametrize("name", MEASURED)
def test_a_figure_is_whole_and_the_same_each_time(tmp_path, name):
    drawn = draw(tmp_path, name, MEASURED[name])
    assert drawn.keys() == figures.FIGURES[name].keys()
    for svg in drawn.values():
        ElementTree.fromstring(svg)
        assert (figures.INK in svg, figures.PAPER in svg) == (False, False), "stand-ins, which no page has"
    assert draw(tmp_path, name, MEASURED[name]) == drawn


@pytest.mark.parametrize(
    ("name", "figure", "more"),
    [
        ("detection", "detection", lambda data: data["sockets"][0]["told"]["KeepaliveSocket"].append(3.3)),
        ("detection", "detection", lambda data: data["sockets"][1]["accused"][KERNEL].append(True)),
        ("detection", "detection-links", lambda data: data["links"][0]["told"]["server"].append(2.3)),
        ("chaos", "chaos", lambda data: data["faults"][0]["seconds"].append(1.3)),
        ("comparison", "comparison", lambda data: data["libraries"][0]["seconds"][0].append(14.0)),
    ],
)
def test_every_run_has_its_mark(tmp_path, name, figure, more):
    measured = deepcopy(MEASURED[name])
    before = draw(tmp_path, name, measured)[figure]
    more(measured)
    assert draw(tmp_path, name, measured)[figure].count("<use ") == before.count("<use ") + 1


def test_who_is_never_told_is_marked_as_such(tmp_path):
    for name in "detection", "comparison":
        drawn = draw(tmp_path, name, MEASURED[name])[name]
        assert f"not in {MEASURED[name]['patience']:g} s" in drawn


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "docs").glob("*.json"))])
def test_what_was_measured_is_drawn_and_shown(name):
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for figure in figures.FIGURES[name]:
        assert (ROOT / "docs" / f"{figure}.svg").exists()
        assert re.search(rf"!\[.+\]\({figure}\.svg\)", texts)


@pytest.mark.parametrize(("name", "says"), [("nonsense", "one of detection"), ("chaos", "nothing was measured yet")])
def test_a_name_without_a_figure_or_without_numbers_is_a_mistake_of_the_call(monkeypatch, capsys, tmp_path, name, says):
    monkeypatch.setattr(sys, "argv", ["figures.py", name, "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        figures.main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
