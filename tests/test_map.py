"""The map of the rooms is drawn from the code as it is, and the code keeps to the stairs."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from spin_utils import paths


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_map", paths.REPOSITORY / "docs" / "make_map.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def code(maker: ModuleType) -> tuple[dict, dict]:
    return maker.read(paths.REPOSITORY / "spin_utils")


def test_the_map_is_that_of_the_code(maker: ModuleType, code: tuple[dict, dict]) -> None:
    imports, purposes = code
    for name, text in (("rooms.svg", maker.svg(imports)), ("rooms.md", maker.page(imports, purposes))):
        assert (maker.HERE / name).read_text() == text, f"docs/{name} is old; run `python docs/make_map.py`"


def test_every_form_of_import_is_seen(maker: ModuleType, tmp_path) -> None:
    package = tmp_path / "spin_utils"
    package.mkdir()
    for name in ("paths", "writing", "results"):
        (package / f"{name}.py").write_text('"""A room."""')
    (package / "report.py").write_text(
        '"""One page.\n\nMore."""\nfrom spin_utils import paths as p\nimport os, spin_utils.writing\n'
        "def later():\n    from spin_utils.results import load\n"
    )
    imports, purposes = maker.read(package)
    assert imports["report"] == {"paths", "writing", "results"}
    assert purposes["report"] == "One page."


def test_an_import_up_the_stairs_and_a_room_without_a_storey_are_refused(
    maker: ModuleType, code: tuple[dict, dict]
) -> None:
    imports, _ = code
    with pytest.raises(ValueError, match=r"packing \(training\) imports report \(drawing\), which lies above it"):
        maker.storey_of({**imports, "packing": frozenset({"report"})})
    with pytest.raises(ValueError, match="attic: no storey"):
        maker.storey_of({**imports, "attic": frozenset()})
    with pytest.raises(ValueError, match="packing: no such module"):
        maker.storey_of({room: used for room, used in imports.items() if room != "packing"})


def test_lines_left_out_follow_from_the_lines_drawn(maker: ModuleType, code: tuple[dict, dict]) -> None:
    imports, _ = code
    drawn = maker.reduced(imports)
    common = {room for storey in maker.COMMON for room in maker.STOREYS[storey].split()}

    def below(room: str, lines) -> set[str]:
        return set(lines[room]).union(*(below(used, lines) for used in lines[room]))

    assert sum(map(len, drawn.values())) < sum(len(used - common) for used in imports.values())
    for room in imports:
        assert below(room, drawn) == below(room, imports) - common
