"""The map of the rooms, drawn from the imports of the code: writes rooms.svg and rooms.md beside this file.

    python docs/make_map.py

A room is a module of `spin_utils`. Every room lies in a storey, and imports go down the stairs only: a room uses rooms
of its own storey and of those below. A new room gets its place in `STOREYS`; a test holds the map to the code.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
STOREYS = {
    "doors": "cli cli_parser cli_results notebooks dpo controls reproduction scheduling check",
    "drawing": "report readme drawing tables time_table table_text figures training_figures generation_figures "
    "generation_tables theory_figures figure_style live_curve item_figures text_tables token_figures "
    "mt_bench_figure crate cards",
    "steps": "publishing explore stages answering self_play pair_training launching provenance clock plan "
    "token_scores input_checks mt_bench forecast hub_access model_folder architectures machine "
    "memory_model fitting step_resources",
    "measuring": "evaluation lm answers heldout generations mt_bench_answers vllm_health",
    "judging": "verdict_page verdicts registry compare statistics footnotes published results documents "
    "document_checks theory cost_model mt_bench_scores paper_suite records",
    "sampling": "sampling decoding vllm_backend vllm_shards vllm_worker",
    "training": "training training_step resuming trackers losses optimizer logprobs fast_layers attention "
    "gpu_attention sharding zero3 pairs packing chunks",
    "data": "demonstrations families worked_solutions worked_numbers worked_words preferences rows templates "
    "models judge mt_bench_questions ",
    "settings": "profiles settings input_settings machine_settings mt_bench_settings",
    "ground": "artifacts versions processes paths writing progress runtime limits gpus pieces seals storage "
    "strict_json strict_yaml precision warm_start",
}
"""Rooms by storey, from the roof down."""
PURPOSES = {
    "doors": "where a person comes in",
    "drawing": "numbers become tables, figures and pages",
    "steps": "the experiment plan, and the making of each step",
    "measuring": "what a checkpoint can do",
    "judging": "what the measurements say about the paper",
    "sampling": "the opponent answers",
    "training": "the policy learns",
    "data": "what goes in",
    "settings": "what can be chosen",
    "ground": "files and the process",
}
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#b15928", "#6a3d9a", "#777777", "#444444")
COMMON = ("settings", "ground")
"""Storeys that everyone uses: drawn without lines, which would hide the others."""
WIDTH, MARGIN, LEFT, ROW, GAP, BOX = 1180, 10, 150, 46, 12, 24
"""Of the picture, in pixels: width, margin, room for the names of storeys, height of a row, gap between storeys, height
of a room."""

Imports = Mapping[str, frozenset[str]]


def read(package: Path) -> tuple[dict[str, frozenset[str]], dict[str, str]]:
    """Imports between the modules of a package, and the first line of every docstring, by module."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(package.glob("*.py"))}
    trees = {name: ast.parse(text) for name, text in sources.items() if not name.startswith("__")}
    imports = {}
    for name, tree in trees.items():
        used = {n for node in ast.walk(tree) for n in _names(node, package.name)}
        imports[name] = frozenset(used & trees.keys() - {name})
    return imports, {name: (ast.get_docstring(tree) or "").split("\n\n")[0] for name, tree in trees.items()}


def _names(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.module == package:
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
        return [node.module.split(".")[1]]  # type: ignore[union-attr]
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{package}.")]
    return []


def storey_of(imports: Imports) -> dict[str, int]:
    """Storey of every room, counted from the roof.

    Raises:
        ValueError: a room has no place, a place has no room, or an import goes up the stairs.
    """
    storeys = {room: number for number, rooms in enumerate(STOREYS.values()) for room in rooms.split()}
    if homeless := sorted(imports.keys() - storeys.keys()):
        raise ValueError(f"{', '.join(homeless)}: no storey; add it to STOREYS in docs/make_map.py")
    if gone := sorted(storeys.keys() - imports.keys()):
        raise ValueError(f"{', '.join(gone)}: no such module; remove it from STOREYS in docs/make_map.py")
    names = list(STOREYS)
    for room, used in imports.items():
        for other in sorted(used):
            if storeys[other] < storeys[room]:
                raise ValueError(
                    f"{room} ({names[storeys[room]]}) imports {other} ({names[storeys[other]]}), which lies above it; "
                    "move what both need further down"
                )
    return storeys


def reduced(imports: Imports) -> dict[str, set[str]]:
    """The imports that the picture draws: those that do not follow from others, none of the common storeys."""
    common = {room for storey in COMMON for room in STOREYS[storey].split()}

    @cache
    def below(room: str) -> frozenset[str]:
        return imports[room].union(*(below(used) for used in imports[room]))

    return {
        room: {u for u in used - common if not any(u in below(v) for v in used - {u})} for room, used in imports.items()
    }


def rows_of(imports: Imports) -> list[tuple[int, list[str]]]:
    """Rows of the picture from the top: storey and rooms, such that lines go down and cross little."""
    storeys, lines = storey_of(imports), reduced(imports)

    @cache
    def depth(room: str) -> int:
        users = [r for r, used in lines.items() if room in used and storeys[r] == storeys[room]]
        return 1 + max(map(depth, users), default=-1)

    rows: dict[tuple[int, int], list[str]] = {}
    for rooms in STOREYS.values():
        for room in rooms.split():
            rows.setdefault((storeys[room], depth(room)), []).append(room)
    ordered = [(storey, rooms) for (storey, _), rooms in sorted(rows.items())]
    for _ in range(30):
        places = {room: x for _, rooms in ordered for room, x in zip(rooms, _middles(rooms), strict=True)}
        for _, rooms in ordered:
            near = {r: [places[o] for o in imports if o in lines[r] or r in lines[o]] or [places[r]] for r in rooms}
            rooms.sort(key=lambda room: (sum(near[room]) / len(near[room]), room))
    return ordered


def svg(imports: Imports) -> str:
    """The picture."""
    rows, lines, storeys = rows_of(imports), reduced(imports), storey_of(imports)
    at: dict[str, tuple[float, float]] = {}
    tops: dict[int, float] = {}
    y = float(MARGIN)
    for number, (storey, rooms) in enumerate(rows):
        if storey not in tops:
            y += GAP if number else 0
            tops[storey] = y
        at |= {room: (x, y + ROW / 2) for room, x in zip(rooms, _middles(rooms), strict=True)}
        y += ROW
    bottoms = {storey: max(at[r][1] for r in at if storeys[r] == storey) + ROW / 2 for storey in tops}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN:.0f}" '
        'font-family="system-ui, sans-serif" font-size="12.5">',
        f'<rect width="{WIDTH}" height="{y + MARGIN:.0f}" fill="white"/>',
    ]
    for (storey, top), name, colour in zip(sorted(tops.items()), STOREYS, COLOURS, strict=True):
        height, middle = bottoms[storey] - top, (top + bottoms[storey]) / 2
        parts += [
            f'<rect x="{MARGIN}" y="{top:.0f}" width="{WIDTH - 2 * MARGIN}" height="{height:.0f}" rx="8" '
            f'fill="{colour}" fill-opacity="0.10"/>',
            *_heading(name, PURPOSES[name], middle),
        ]
    for room, used in lines.items():
        for other in sorted(used):
            upper, lower = sorted((at[room], at[other]), key=lambda place: place[1])
            parts.append(_line(upper, lower, COLOURS[storeys[room]]))
    for room, (x, middle) in at.items():
        width, colour = _width(room), COLOURS[storeys[room]]
        parts.append(
            f'<rect x="{x - width / 2:.1f}" y="{middle - BOX / 2:.0f}" width="{width:.1f}" height="{BOX}" rx="5" '
            f'fill="white" stroke="{colour}" stroke-width="1.5"/>'
            f'<text x="{x:.1f}" y="{middle + 4:.0f}" text-anchor="middle" fill="#111">{room}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def page(imports: Imports, purposes: Mapping[str, str]) -> str:
    """The list of rooms that goes with the picture."""
    lines = [
        "# The rooms",
        "",
        "<!-- written by docs/make_map.py from the code, do not edit -->",
        "A room is a module of [`spin_utils`](../spin_utils). Imports go down only: a room uses rooms of its own "
        "storey and of those below.",
        "Left out are lines that follow from others, and all lines to the two lowest storeys, which everyone uses.",
        "",
        "![Every module and what it imports, in ten storeys](rooms.svg)",
        "",
    ]
    for name, rooms in STOREYS.items():
        lines += [f"## {name.capitalize()}: {PURPOSES[name]}", "", "| room | what it is for |", "|---|---|"]
        for room in rooms.split():
            purpose = " ".join(purposes[room].split()).removesuffix(":").replace("|", "\\|")
            lines.append(f"| [`{room}`](../spin_utils/{room}.py) | {purpose} |")
        lines.append("")
    return "\n".join(lines)


def _width(room: str) -> float:
    return 7.1 * len(room) + 14


def _middles(rooms: list[str]) -> list[float]:
    """Middle of every room of a row: evenly spread over the width."""
    free = WIDTH - LEFT - 2 * MARGIN - sum(map(_width, rooms))
    space, x, middles = free / (len(rooms) + 1), float(LEFT), []
    for room in rooms:
        x += space + _width(room) / 2
        middles.append(x)
        x += _width(room) / 2
    return middles


def _line(start: tuple[float, float], stop: tuple[float, float], colour: str) -> str:
    (x, y), (to_x, to_y) = (start[0], start[1] + BOX / 2), (stop[0], stop[1] - BOX / 2)
    bend = min(60.0, (to_y - y) / 2)
    return (
        f'<path d="M{x:.1f} {y:.0f}C{x:.1f} {y + bend:.0f} {to_x:.1f} {to_y - bend:.0f} {to_x:.1f} {to_y:.0f}" '
        f'fill="none" stroke="{colour}" stroke-opacity="0.55" stroke-width="1.2"/>'
    )


def _heading(name: str, purpose: str, middle: float) -> list[str]:
    """Name and purpose of a storey, in lines around its middle."""
    lines = textwrap.wrap(purpose, 24)
    first, x = middle + 5 - 6.5 * len(lines), MARGIN + 10
    return [f'<text x="{x}" y="{first:.0f}" font-size="15" font-weight="600" fill="#222">{name}</text>'] + [
        f'<text x="{x}" y="{first + 2 + 12 * number:.0f}" font-size="10.5" fill="#555">{escape(line)}</text>'
        for number, line in enumerate(lines, 1)
    ]


def main() -> None:
    imports, purposes = read(HERE.parent / "spin_utils")
    for name, text in (("rooms.svg", svg(imports)), ("rooms.md", page(imports, purposes))):
        (HERE / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
