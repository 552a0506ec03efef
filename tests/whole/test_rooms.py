"""The ten rooms keep their order: a room imports only rooms before it, and no private name of another."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from spin_utils.files import paths

PACKAGE = paths.REPOSITORY / "spin_utils"
sys.path.insert(0, str(paths.REPOSITORY / "docs"))
MAP = importlib.import_module("make_map")
ROOMS: tuple[str, ...] = MAP.ROOMS


def test_the_package_is_its_rooms_and_nothing_lies_beside_them() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_earlier_rooms_and_no_private_name_of_another(room: str) -> None:
    later = ROOMS[ROOMS.index(room) + 1 :]
    for path in (PACKAGE / room).rglob("*.py"):
        for name in MAP.imported(path):
            other, *inside = name.split(".")
            assert other not in later, f"{path}: imports {name}, of a later room"
            private = any(part.startswith("_") and not part.startswith("__") for part in inside)
            assert not private or other == room, f"{path}: imports the private {name}"


def test_an_import_of_a_later_room_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "packing.py"
    file.write_text(
        "import os\ndef later():\n    from spin_utils.drawing import report\n    import spin_utils.files.paths\n"
    )
    assert list(MAP.imported(file)) == ["drawing.report", "files.paths"]


def test_the_picture_of_the_rooms_is_that_of_the_code() -> None:
    text = (paths.REPOSITORY / "docs" / "rooms.md").read_text(encoding="utf-8")
    assert text == MAP.page(), "docs/rooms.md is old; run `python docs/make_map.py`"


def test_the_way_of_a_number_leads_downhill_through_functions_that_exist() -> None:
    rooms = [ROOMS.index(room) for room, *_ in MAP.PATH]
    assert rooms == sorted(rooms, reverse=True)
    for room, module, function, _ in MAP.PATH:
        assert callable(getattr(importlib.import_module(f"spin_utils.{room}.{module}"), function))
