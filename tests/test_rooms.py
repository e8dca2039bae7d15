"""CONTRIBUTING.md describes the house as it is: its rooms, the direction of imports, and the walk of a query."""

import ast
import re
import sys
from itertools import groupby
from pathlib import Path

import wan
from diffattn.kernels.backends.torch import tiles

import diffattn

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = [re.findall(r"`([\w/.]+)`", row.split("|")[1]) for row in PAGE.splitlines() if row.startswith("| `")]
FLOORS = {room.rstrip("/"): floor for floor, row in enumerate(ROWS) for room in row}


def room_of(path):
    """The room of a file, given from the root of the repository."""
    parts = path.parts
    return parts[0] if parts[0] in FLOORS else "/".join(parts[:2])


def imports(path):
    """The files below the root that a file imports, at its top or later."""
    package = path.parent.parts
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else ()
        module = Path(*base, *(node.module or "").split("."))
        for target in (module, *(module / name.name for name in node.names)):
            target = target.relative_to("diffattn") if target.parts[:2] == ("diffattn", "kernels") else target
            if (ROOT / target).with_suffix(".py").is_file():
                yield target.with_suffix(".py")
            elif (ROOT / target / "__init__.py").is_file():
                yield target / "__init__.py"


def sources():
    for room in ("kernels", "diffattn", "pipelines"):
        yield from (path.relative_to(ROOT) for path in sorted((ROOT / room).rglob("*.py")))


def test_the_table_has_every_room():
    known = {room_of(path) for path in sources()} - {"diffattn/__init__.py", "diffattn/__main__.py"}
    assert known == set(FLOORS)


def test_imports_go_up_the_table():
    wrong = [
        (str(path), str(target))
        for path in sources()
        if room_of(path) in FLOORS
        for target in imports(path)
        if room_of(target) in FLOORS and FLOORS[room_of(target)] > FLOORS[room_of(path)]
    ]
    assert wrong == []


def test_there_is_no_circle_of_files():
    unseen = {path: set(imports(path)) - {path} for path in sources() if path.name != "__init__.py"}
    while free := [path for path, targets in unseen.items() if not targets & unseen.keys()]:
        for path in free:
            del unseen[path]
    assert list(unseen) == []


def test_the_query_walks_as_the_page_says(monkeypatch):
    seen = []

    def watched(*args, **kwargs):
        frame = sys._getframe()
        while frame:
            seen.append(Path(frame.f_code.co_filename))
            frame = frame.f_back
        return forward(*args, **kwargs)

    forward = tiles.forward
    monkeypatch.setattr(tiles, "forward", watched)
    pipe = wan.text_to_video()
    always = diffattn.Schedule(dense_start=0, dense_layers=0)
    diffattn.enable(pipe, diffattn.NeighborhoodConfig(density=0.5), schedule=always, impl="torch")
    wan.run(pipe, 1)
    stays = [path.relative_to(ROOT) for path in reversed(seen) if path.is_relative_to(ROOT)]
    stays = [path for path in stays if path.parts[0] in ("kernels", "diffattn")]
    found = [place for place, _ in groupby("kernels/backends/" if "backends" in p.parts else str(p) for p in stays)]
    one_call = found[: found.index("kernels/backends/") + 1]
    assert one_call == re.findall(r"^\d\. `([\w/.]+)`", PAGE, re.MULTILINE)
    assert len(one_call) == len(set(one_call)) <= 5
