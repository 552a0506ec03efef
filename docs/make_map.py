"""The picture of the rooms, drawn from the imports of the code: writes rooms.md beside this file.

    python docs/make_map.py

Diagrams are Mermaid, which GitHub, GitLab and JupyterLab draw. A test holds the page to the code.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "spin_utils"
ROOMS = ("files", "settings", "data", "model", "training", "paper", "evaluation", "experiment", "drawing", "cli")
"""In their order: a room imports only rooms before it."""
PATH = (
    ("drawing", "tables", "table4", "puts it into the table"),
    ("experiment", "publish", "publish", "copies the scores of items to `results/PROFILE/seed-N/evaluations`"),
    ("experiment", "measure", "make_evaluation", "is the step that measures a checkpoint and keeps these scores"),
    ("experiment", "play", "make_model", "is the step that makes the checkpoint: one iteration of Algorithm 1"),
    ("evaluation", "harness", "evaluate", "asks the checkpoint every item and grades the answers"),
    ("paper", "statistics", "paired", "turns the scores of items and seeds into a difference with its interval"),
    ("training", "loop", "train", "takes the optimizer steps of the iteration"),
    ("training", "loss", "spin_loss", "computes the loss of each pair (eq. 4.7)"),
    ("model", "logprobs", "score", "computes the opponent's log-probabilities in that loss"),
    ("model", "sampling", "sample", "samples the generated answers from the opponent"),
    ("data", "demonstrations", "load", "reads the demonstrations: prompts and real answers"),
)
"""From a cell of Table 4 down to a row of demonstrations: room, module, function, and what it does."""

Imports = Mapping[str, frozenset[str]]


def modules(room: str) -> dict[str, Path]:
    """Source files of a room by their dotted names in it, such as `views.tokens`."""
    folder = PACKAGE / room
    found = (path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py")
    return {".".join(path.relative_to(folder).with_suffix("").parts): path for path in found}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the package that a file imports, lazy imports included; a name taken from a module counts too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spin_utils"):
            yield from (f"{node.module}.{alias.name}".removeprefix("spin_utils.") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("spin_utils.") for a in node.names if a.name.startswith("spin_utils."))


def between_rooms() -> dict[str, frozenset[str]]:
    """Which rooms each room imports."""
    used = {room: {name.split(".")[0] for path in modules(room).values() for name in imported(path)} for room in ROOMS}
    return {room: frozenset(names & set(ROOMS) - {room}) for room, names in used.items()}


def within_room(room: str) -> dict[str, frozenset[str]]:
    """Which modules of a room each of its modules imports."""
    names = modules(room)
    return {
        name: frozenset(
            other
            for other in names
            for used in imported(path)
            if other != name and f"{used}.".startswith(f"{room}.{other}.")
        )
        for name, path in names.items()
    }


def reduced(imports: Imports) -> dict[str, set[str]]:
    """The imports that do not follow from others."""

    def below(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        new = imports[name] - seen - {name}  # lazy imports may close a circle
        return set(new).union(*(below(used, seen | new | {name}) for used in new))

    return {name: {u for u in used if not any(u in below(v) for v in used - {u})} for name, used in imports.items()}


def diagram(imports: Imports, marked: frozenset[str] = frozenset()) -> list[str]:
    """A Mermaid flow chart from users to what they use."""
    lines = ["```mermaid", "flowchart TD"]
    lines += [f"  {_node(name)}[{name}]" for name in imports]
    lines += [f"  {_node(name)} --> {_node(used)}" for name, uses in reduced(imports).items() for used in sorted(uses)]
    if marked:
        lines.append("  classDef path fill:#cfe8fa,stroke:#135c9a,color:#08264a")
        lines.append(f"  class {','.join(_node(name) for name in imports if name in marked)} path")
    return [*lines, "```", ""]


def _node(name: str) -> str:
    return "m_" + name.replace(".", "_")  # a word such as `end` would end the chart


def page() -> str:
    """The whole of rooms.md."""
    rooms, passed = between_rooms(), dict.fromkeys(step[0] for step in PATH)
    lines = [
        "# The rooms",
        "",
        "<!-- written by docs/make_map.py from the code, do not edit -->",
        "The package is ten subpackages, called rooms, in one order: a room imports only those below it. Arrows that "
        f"follow from others are left out. A number of Table 4 passes through {', '.join(passed)} (blue).",
        "",
        *diagram({room: rooms[room] for room in reversed(ROOMS)}, frozenset(passed)),
        "## The way of one number",
        "",
        "The functions behind a cell of Table 4, from the room that draws it down to the one that reads the data:",
        "",
    ]
    for number, (room, module, function, what) in enumerate(PATH, 1):
        target = f"../spin_utils/{room}/{module.replace('.', '/')}.py"
        lines.append(f"{number}. [`{room}.{module}.{function}`]({target}) {what}")
    lines.append("")
    for room in reversed(ROOMS):
        purpose, doors = _docstring(PACKAGE / room / "__init__.py").split("Doors: ", 1)
        lines += [f"## {room}", "", _flat(purpose), "", f"Doors: {_flat(doors)}", ""]
        imports = within_room(room)
        if any(imports.values()):
            lines += diagram(imports)
        lines += ["| module | what it is for |", "|---|---|"]
        for name, path in modules(room).items():
            link = f"../spin_utils/{room}/{path.relative_to(PACKAGE / room).as_posix()}"
            lines.append(f"| [`{name}`]({link}) | {_flat(_docstring(path).split(chr(10) * 2)[0])} |")
        lines.append("")
    return "\n".join(lines)


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    (HERE / "rooms.md").write_text(page(), encoding="utf-8", newline="\n")
