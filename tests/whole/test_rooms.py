"""The ten rooms keep their order: a room imports only rooms before it, and no private name of another."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_utils.files import paths

PACKAGE = paths.REPOSITORY / "spin_utils"
sys.path.insert(0, str(paths.REPOSITORY / "docs"))
MAP = importlib.import_module("make_map")
ROOMS: tuple[str, ...] = MAP.ROOMS


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every import of the package in a file, lazy ones included: the module and the name taken from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spin_utils"):
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("spin_utils"))


def climbs(room: str, module: str, name: str) -> bool:
    """Whether an import goes to a later room."""
    used = f"{module}.{name}".split(".")[1]
    return used in ROOMS and ROOMS.index(used) > ROOMS.index(room)


def test_the_package_is_its_rooms_and_nothing_lies_beside_them() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_earlier_rooms_and_no_private_name_of_another(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for module, name in imports(path):
            assert not climbs(room, module, name), f"{path}: imports {module}.{name}, a later room"
            private = name.startswith("_") and not name.startswith("__")
            assert not private or module.split(".")[1] == room, f"{path}: imports the private {module}.{name}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_names_its_doors(room: str) -> None:
    text = importlib.import_module(f"spin_utils.{room}").__doc__ or ""
    assert "Doors: " in text, f"spin_utils/{room}/__init__.py names no doors"


def test_an_import_of_a_later_room_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "packing.py"
    file.write_text(
        "import os\ndef later():\n    from spin_utils.drawing import report\n    import spin_utils.files.paths\n"
    )
    seen = list(imports(file))
    assert seen == [("spin_utils.drawing", "report"), ("spin_utils.files.paths", "")]
    assert [climbs("model", *pair) for pair in seen] == [True, False]


def test_the_picture_of_the_rooms_is_that_of_the_code() -> None:
    text = (paths.REPOSITORY / "docs" / "rooms.md").read_text(encoding="utf-8")
    assert text == MAP.page(), "docs/rooms.md is old; run `python docs/make_map.py`"


def test_the_way_of_a_number_leads_downhill_through_functions_that_exist() -> None:
    rooms = [ROOMS.index(room) for room, *_ in MAP.PATH]
    assert rooms == sorted(rooms, reverse=True)
    for room, module, function, _ in MAP.PATH:
        assert callable(getattr(importlib.import_module(f"spin_utils.{room}.{module}"), function))
