"""Rows: read from JSON, JSONL and Parquet files and the hub, check one by one, and write.

A demonstration is a dict with `id`, `prompt`, `response`, `family` and, if given, `system` and `grader`. There are
three layouts: `{"prompt", "response"}`; `{"messages": [{"role", "content"}, ...]}`, from which the first user turn and
the assistant's reply are used; and the released SPIN layout `{"real": [user, assistant], "generated": ...}`, from which
`real` is used. A leading system message, or a column `system`, is the row's system message. The text of a column
`input` (Alpaca) or `context` (Dolly) is appended to the prompt after a blank line.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spin_utils.files.disk import replacing
from spin_utils.files.paths import KitError
from spin_utils.settings.inputs import FAMILY_NAME, FAMILY_RULE, DemonstrationSettings, PreferenceSettings

Row = dict[str, Any]

_logger = logging.getLogger(__name__)

SUFFIXES = (".json", ".jsonl", ".parquet")
USED = frozenset(
    {"id", "prompt", "response", "messages", "real", "generated", "family", "grader", "system", "input", "context"}
)
"""Columns of demonstrations that are read, or known to repeat the others."""
SHOWN = 5
"""Number of faulty rows named in one error message."""


class RowError(KitError):
    """A file or a row cannot be used. The message names the file, the row and the remedy."""


class EmptyRowError(RowError):
    """A row has no prompt or response; `drop_empty` leaves such rows out."""


def checked_rows(
    settings: DemonstrationSettings | PreferenceSettings,
    given: str,
    make: Callable[..., Row],
    fields: Sequence[str],
    used: frozenset[str],
    *,
    drop_empty: bool = False,
    drop_repeated: bool = True,
) -> list[Row]:
    """The checked rows of a file, or of a split of a hub dataset.

    Faulty and repeated rows in a file are errors, because the user can correct them. Those from the hub are dropped
    with a warning: a pinned revision cannot be edited, and published sets have both (the released SPIN data contain
    every row twice). Columns that are not used are named in the log.

    Args:
        settings: source `file` or `hub`, with name and revision of the latter.
        given: the file or the split.
        make: turns a record into a checked row, for example `as_row`.
        fields: keys of a row; rows with equal values in them and the same system message are duplicates.
        used: columns that are read.
        drop_empty: drop rows with an empty text instead of refusing the file.
        drop_repeated: drop repeated rows from the hub.

    Raises:
        RowError: a file or row cannot be used, or no row is left; names the file, the row and the remedy.
    """
    if settings.source == "file":
        name, stem, records = Path(given).name, Path(given).stem, iter(read_records(Path(given)))
    else:
        name, stem = f"{settings.name} [{given}]", given
        records = hub_records(settings.name, settings.revision, given)
    faults: list[str] = []
    repeated: list[str] = []
    empty, unused = 0, Counter[str]()
    first: dict[Any, int] = {}
    rows = []
    for number, record in records:
        place = f"{name}, row {number}"
        if isinstance(record, Mapping):
            unused.update(str(key) for key, value in record.items() if key not in used and value is not None)
        try:
            row = make(record, where=place, default_id=f"{stem}-{number}")
        except RowError as error:
            if drop_empty and isinstance(error, EmptyRowError):
                empty += 1
            else:
                faults.append(str(error))
            continue
        same = first.setdefault(tuple(row.get(field, "") for field in ("system", *fields)), number)
        id_of = first.setdefault(row["id"], number)
        if same != number:
            repeated.append(f"{place}: same {' and '.join(fields)} as row {same}; remove one of them")
        elif id_of != number:
            repeated.append(f"{place}: same id {row['id']!r} as row {id_of}; make ids unique or drop them")
        if same == number or not drop_repeated:
            rows.append(row)
    if settings.source == "file" and (faults or repeated):
        raise RowError(listed(faults + repeated))
    if not rows:
        raise RowError(f"{name}: no usable row; {f'the first fault: {faults[0]}' if faults else 'add rows'}")
    if unused:
        columns = ", ".join(f"{column} ({count} rows)" for column, count in unused.items())
        _logger.warning("%s: unused columns: %s", name, columns)
    if empty:
        _logger.warning("%s: %d rows with an empty prompt or response left out (drop_empty)", name, empty)
    for what, messages in (("faulty", faults), ("repeated", repeated if drop_repeated else [])):
        if messages:
            _logger.warning("%s: %d %s rows left out, the first: %s", name, len(messages), what, messages[0])
    return rows


def read_records(path: Path) -> list[tuple[int, Any]]:
    """All records of a file with their row numbers, unchecked.

    Args:
        path: a .json (one list), .jsonl (one object per line; blank lines are skipped) or .parquet file.

    Returns:
        Pairs of row number, from 1 (the line number in JSONL), and record.

    Raises:
        RowError: the file is missing, a folder, not UTF-8, bad JSON (with its line) or damaged Parquet, or its
            extension is unknown.
    """
    check_file(path)
    if path.suffix == ".parquet":
        return list(enumerate(_parquet(path), start=1))
    text = _text(path)
    if not text.strip():
        raise RowError(f"{path.name}: the file is empty; it needs at least one row")
    if path.suffix == ".jsonl":
        return list(_lines(path, text))
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object per line? then name the file .jsonl" if error.msg == "Extra data" else ""
        raise RowError(f"{path.name}, line {error.lineno}: bad JSON ({error.msg}){hint}") from None
    if not isinstance(records, list):
        raise RowError(f"{path.name}: the top level is {kind(records)}; make it a list of objects, or use .jsonl")
    return list(enumerate(records, start=1))


def check_file(path: Path) -> None:
    """Raise unless the path is a file with a known extension; the message names the closest match."""
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        hint = f"name a file in it, for example {inside[0]}" if inside else "name a .json, .jsonl or .parquet file"
        raise RowError(f"{path}: a folder, not a file; {hint}")
    if not path.is_file():
        others = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, others, n=1, cutoff=0.5)
        hint = f"did you mean {path.parent / near[0]}?" if near else "check the path (from the current folder)"
        raise RowError(f"{path}: no such file; {hint}")
    if path.suffix not in SUFFIXES:
        raise RowError(f"{path.name}: unknown extension {path.suffix!r}; use .json, .jsonl or .parquet")


def hub_records(name: str, revision: str, split: str) -> Iterator[tuple[int, Any]]:
    """All records of a split of a hub dataset with their row numbers, unchecked.

    Args:
        name: hub id.
        revision: its commit, 40 hexadecimal digits.
        split: for example `train_sft`.

    Raises:
        RowError: no revision, or the dataset cannot be loaded.
    """
    if not revision:
        raise RowError(f"{name}: no revision; pin its commit, 40 hexadecimal digits (a branch moves)")
    import datasets  # takes a second, which files can skip

    try:
        return enumerate(datasets.load_dataset(name, revision=revision, split=split), start=1)
    except (OSError, ValueError, RuntimeError) as error:
        raise RowError(
            f"{name} [{split}] at revision {revision[:12]}: {_reason(error)}; check name, revision, split and network, "
            "or download it once and use source: file"
        ) from error


def first_rows(rows: list[Row], wanted: int, setting: str, source: str) -> list[Row]:
    """The first `wanted` rows, or all if it is 0; asking for more than there are is an error."""
    if wanted > len(rows):
        raise RowError(
            f"{setting}: asks for {wanted} rows, but {source} has {len(rows)}; "
            f"add rows or set it to {len(rows)} or less (0 means all)"
        )
    return rows[: wanted or None]


def count_by_family(rows: Iterable[Row], limit: int) -> int:
    """Number of rows if only the first `limit` of each family count, as in an evaluation; 0: all count."""
    return sum(min(size, limit or size) for size in Counter(row["family"] for row in rows).values())


def listed(messages: list[str]) -> str:
    """The first messages, one per line, and how many more there are."""
    more = f"\nand {len(messages) - SHOWN} more rows" if len(messages) > SHOWN else ""
    return "\n".join(messages[:SHOWN]) + more


def as_row(record: Any, *, where: str, default_id: str) -> Row:
    """Turn one record into a checked row.

    Args:
        record: an object in one of the three layouts.
        where: file and row for error messages, for example `demonstrations.jsonl, row 17`.
        default_id: the row's id if the record has no `id`.

    Raises:
        EmptyRowError: prompt or response is empty or whitespace.
        RowError: the row is unusable for another reason.
    """
    if not isinstance(record, Mapping):
        raise RowError(f"{where}: {kind(record)} instead of an object with prompt and response")
    systems: dict[str, str] = {}
    if "response" not in record and "messages" in record:
        systems["messages"], prompt, response = _first_turn(record["messages"], "messages", where)
    elif "response" not in record and "real" in record:
        systems["real"], prompt, response = _first_turn(record["real"], "real", where)
    else:
        for name in ("prompt", "response"):
            if name not in record:
                has = ", ".join(map(str, record)) or "nothing"
                raise RowError(
                    f"{where}: no key {name!r} (it has {has}); "
                    "use prompt and response, or messages with role and content"
                )
        prompt, response = record["prompt"], record["response"]
        for name in ("messages", "real"):
            if record.get(name) is not None:
                systems[name], *turn = _first_turn(record[name], name, where)
                if turn != [prompt, response]:
                    raise RowError(
                        f"{where}: prompt and response differ from the first turn of {name}; keep one of them"
                    )
    family = record.get("family")
    row: Row = {
        "id": checked_id(record, default_id, where),
        "prompt": checked_text(prompt, "prompt", where) + further_text(record, where),
        "response": checked_text(response, "response", where),
        "family": checked_text("demonstrations" if family in (None, "") else family, "family", where),
    }
    if FAMILY_NAME.fullmatch(row["family"]) is None:
        raise RowError(f"{where}: family {row['family'][:80]!r} {FAMILY_RULE}")
    row |= system_message(record, systems, where)
    grader = record.get("grader")
    if grader is not None:
        if not (isinstance(grader, Mapping) and isinstance(grader.get("dataset"), str) and "entry" in grader):
            raise RowError(f"{where}: grader needs the keys dataset and entry; correct it or leave grader out")
        row["grader"] = dict(grader)
    return row


def checked_id(record: Mapping[str, Any], default: str, where: str) -> str:
    """The row's own id as text, or the default if it has none.

    Raises:
        RowError: it is neither text nor a whole number.
    """
    given = record.get("id")
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise RowError(f"{where}: id is {kind(given)}; write text or a whole number, or leave it out")
    return checked_text(str(given), "id", where, remedy="write one or leave it out")


def question(row: Row) -> tuple[str, str]:
    """A row's identity across splits: its system message, if any, and its prompt."""
    return row.get("system", ""), row["prompt"]


def system_message(record: Mapping[str, Any], leading: Mapping[str, str], where: str) -> dict[str, str]:
    """The row's system message as `{"system": text}`; empty if it has none.

    Args:
        record: the row, which may have a column `system`.
        leading: the leading system messages of its conversations, by column.
        where: file and row for error messages.

    Raises:
        RowError: the message is not text, or there are several.
    """
    found = {name: text for name, text in leading.items() if text}
    if record.get("system") is not None:
        found["system"] = record["system"]
    for name, text in found.items():
        if not isinstance(text, str):
            raise RowError(f"{where}: the system message of {name} is {kind(text)}; it must be text")
    texts = {text for text in found.values() if text.strip()}
    if len(texts) > 1:
        raise RowError(f"{where}: {' and '.join(found)} have different system messages; keep one")
    return {"system": texts.pop()} if texts else {}


def further_text(record: Mapping[str, Any], where: str) -> str:
    """Text to append to the prompt: a blank line and the column `input` or `context`; empty if there is none.

    Raises:
        RowError: it is not text.
    """
    parts = {name: record[name] for name in ("input", "context") if record.get(name) is not None}
    for name, text in parts.items():
        if not isinstance(text, str):
            raise RowError(f"{where}: {name} is {kind(text)}; it must be text")
    return "".join(f"\n\n{text}" for text in parts.values() if text.strip())


def conversation(messages: Any, key: str, where: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """The leading system message (empty if there is none), and role and content of every later message.

    Raises:
        RowError: not a list, or a message without role and content.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise RowError(f"{where}: {key} is {kind(messages)}; it must be a list of messages with role and content")
    turns = []
    for place, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise RowError(f"{where}: message {place} of {key} needs the keys role and content")
        turns.append((message["role"], message["content"]))
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
    return system, turns


def checked_text(text: Any, name: str, where: str, remedy: str = "remove the row or set drop_empty: true") -> str:
    """The text, checked.

    Raises:
        EmptyRowError: it is empty or whitespace; the message ends in `remedy`.
        RowError: it is not text.
    """
    if not isinstance(text, str):
        raise RowError(f"{where}: {name} is {kind(text)}; it must be text")
    if not text.strip():
        raise EmptyRowError(f"{where}: empty {name}; {remedy}")
    return text


def kind(value: Any) -> str:
    """The type of a JSON value, in words."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSONL, atomically; the same rows give the same bytes."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    return path


def read_rows(path: Path) -> list[Row]:
    """Rows of a file written by `write_rows`; it may be empty, for example if nothing is held out."""
    if path.is_file() and not path.stat().st_size:
        return []
    return [dict(record) for _, record in read_records(path)]


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RowError(
            f"{path.name}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8"
        ) from None


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            hint = "; one list over several lines? then name the file .json" if line.strip() == "[" else ""
            place = f"{path.name}, line {number}"
            raise RowError(f"{place}: bad JSON ({error.msg}, column {error.colno}){hint}") from None
        if isinstance(record, list) and number == 1:
            raise RowError(f"{path.name}, line 1: a list instead of one object per line; name the file .json")
        yield number, record


def _parquet(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise RowError(f"{path.name}: damaged or not Parquet ({_reason(error)}); save or download it again") from None


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _first_turn(messages: Any, key: str, where: str) -> tuple[Any, Any, Any]:
    """The leading system message, and the contents of the first user message and the assistant's reply."""
    system, turns = conversation(messages, key, where)
    roles = [role for role, _ in turns[:2]]
    if roles != ["user", "assistant"]:
        raise RowError(
            f"{where}: {key} begins with {' and '.join(map(str, roles)) or 'nothing'}; "
            "it must begin with user and assistant (after one system message, if any)"
        )
    return system, turns[0][1], turns[1][1]
