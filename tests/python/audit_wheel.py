"""Says whether a wheel is what its name says: for which Python, and for which Linux.

    .venv/bin/python tests/python/audit_wheel.py dist/*.whl

auditwheel finds the oldest manylinux whose C library has all symbols that the module asks for, and it must be the one
in the name: a newer one would keep machines out for nothing, an older one would let in some where the import fails.
abi3audit finds functions of CPython's that aren't in the stable ABI of the version in the name. auditwheel knows Linux
only, and for a free-threaded interpreter there is no stable ABI: what isn't audited is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

#: Beside the module itself, in the package's own folder.
NEEDED = ("__init__.py", "_longconn.pyi", "py.typed")


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} says {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def modules(wheel: Path) -> list[str]:
    """Its shared objects; nothing is missing that belongs beside them."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    missing = [name for name in NEEDED if f"longconn/{name}" not in names]
    if missing:
        raise SystemExit(f"{wheel.name}: not in it: {', '.join(missing)}")
    return [name for name in names if name.endswith((".so", ".pyd", ".dylib"))]


def audit(wheel: Path) -> str:
    """What was found, in a line; it ends the program if that isn't what the name says."""
    _, _, _, abi, platform = wheel.stem.split("-")
    found = modules(wheel)
    if len(found) != 1:
        raise SystemExit(f"{wheel.name}: one shared object is expected in it, and there are {found}")
    said = [f"{wheel.stat().st_size / 1000:.0f} kB"]
    if "linux" in platform:
        report: dict[str, Any] = json.loads(run("auditwheel", "show", "--json", str(wheel)))
        if report["overall_tag"] not in platform.split(".") or report["overall_tag"].startswith("linux"):
            raise SystemExit(f"{wheel.name}: auditwheel finds it fit for {report['overall_tag']}, not for {platform}")
        said.append(f"auditwheel: {report['overall_tag']}")
    else:
        said.append("auditwheel: not for this system's files")
    if abi == "abi3":
        run("abi3audit", "--strict", str(wheel))
        said.append("abi3audit: clean")
    else:
        said.append(f"abi3audit: nothing to say, {abi} is no stable ABI")
    return f"{wheel.name}: {', '.join(said)}"


if __name__ == "__main__":
    wheels = [Path(name) for name in sys.argv[1:]]
    if not wheels or not all(wheel.is_file() for wheel in wheels):
        raise SystemExit(f"which wheels? There is nothing at {sys.argv[1:]}")
    for wheel in wheels:
        print(audit(wheel))
