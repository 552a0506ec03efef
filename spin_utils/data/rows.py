"""Rows: read from JSON, JSONL and Parquet files and from the hub, checked one by one, written back.

A row of demonstrations is a dict with `id`, `prompt`, `response`, `family` and, for graded rows, `grader`. Three
layouts are read: `{"prompt", "response"}`; `{"messages": [{"role", "content"}, ...]}`, of which the first user turn and
the assistant's answer to it are taken and a leading system message is left out; and the released SPIN layout
`{"real": [user, assistant], "generated": ...}`, of which `real` is taken.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spin_utils.files.disk import JSONError, parse_json, replacing
from spin_utils.settings.inputs import FAMILY_RULE, is_family_name

Row = dict[str, Any]

SUFFIXES = (".json", ".jsonl", ".parquet")
SHOWN = 5
"""Faulty rows named in one error message."""
_JUNK = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Control characters other than tab and line ends, lone surrogates and non-characters: text holds none on purpose."""
_UNSEEN = re.compile("[\\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]*")
"""White space and what no one sees: a text of nothing else is empty."""
_LONGEST_ID = 200


class RowError(ValueError):
    """A file or a row cannot be used. The message names the file, the row and the remedy."""


class EmptyRowError(RowError):
    """A row without prompt or response, which `drop_empty` may leave out."""


def read_records(path: Path) -> list[tuple[int, Any]]:
    """All records of a file with their row numbers, unchecked.

    Args:
        path: a .json (one list), .jsonl (one object per line; blank lines are passed over) or .parquet file.

    Returns:
        Pairs of row number, from 1 (the line number in JSONL), and record.

    Raises:
        RowError: missing file, folder, unknown extension, not UTF-8, bad JSON (with its line), damaged Parquet.
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
        records = parse_json(text)
    except JSONError as error:
        hint = "; one object per line? then name the file .jsonl" if error.reason == "Extra data" else ""
        line = f", line {error.line}" if error.line else ""
        raise RowError(f"{path.name}{line}: bad JSON ({error.reason}){hint}") from None
    if not isinstance(records, list):
        raise RowError(f"{path.name}: the top level is {kind(records)}; write a list of objects, or use .jsonl")
    return list(enumerate(records, start=1))


def check_file(path: Path) -> None:
    """Refuse what is not a readable file with a known extension, naming the nearest file that is there."""
    try:
        found = path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise RowError(f"{path}: cannot be looked up ({error.strerror}); correct the path") from None
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        hint = f"name a file in it, such as {inside[0]}" if inside else "name a .json, .jsonl or .parquet file"
        raise RowError(f"{path}: a folder, not a file; {hint}")
    if not found:
        beside = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, beside, n=1, cutoff=0.5)
        hint = f"did you mean {path.parent / near[0]}?" if near else "check the path (from the current folder)"
        raise RowError(f"{path}: no such file; {hint}")
    if not path.is_file():
        raise RowError(f"{path}: a pipe or device, not a file; write its content to a file")
    if path.suffix not in SUFFIXES:
        raise RowError(f"{path.name}: unknown extension {path.suffix!r}; use .json, .jsonl or .parquet")


def hub_records(name: str, revision: str, split: str) -> Iterator[tuple[int, Any]]:
    """All records of a split of a hub dataset with their row numbers, unchecked.

    Args:
        name: hub id.
        revision: its commit, 40 hexadecimal digits.
        split: such as `train_sft`.

    Raises:
        RowError: no revision, or the dataset cannot be loaded.
    """
    if not revision:
        raise RowError(f"{name}: no revision; pin its commit, 40 hexadecimal digits (a branch moves)")
    import datasets  # takes a second, which files need not wait for

    try:
        return enumerate(datasets.load_dataset(name, revision=revision, split=split), start=1)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RowError(
            f"{name} [{split}] at revision {revision[:12]}: {reason}; check name, revision, split and network, or "
            "download it once and use source: file"
        ) from error


def first_rows(rows: list[Row], wanted: int, setting: str, source: str) -> list[Row]:
    """The first rows, all if `wanted` is 0; asking for more than there are is an error."""
    if wanted > len(rows):
        raise RowError(
            f"{setting}: asks for {wanted} rows where {source} has {len(rows)}; "
            f"add rows or set it to {len(rows)} or less (0 means all)"
        )
    return rows[: wanted or None]


def count_by_family(rows: Iterable[Row], limit: int) -> int:
    """How many rows there are if only the first `limit` of each family count, as in an evaluation; 0: all do."""
    return sum(min(size, limit or size) for size in Counter(row["family"] for row in rows).values())


def listed(messages: list[str]) -> str:
    """The first messages, one a line, and how many more there are."""
    more = f"\nand {len(messages) - SHOWN} more rows" if len(messages) > SHOWN else ""
    return "\n".join(messages[:SHOWN]) + more


def repeated_rows(rows: Iterable[tuple[int, Row]], name: str, what: str, fields: Sequence[str]) -> list[str]:
    """Messages for rows that equal an earlier one in `fields` and for ids that occur twice.

    Args:
        rows: number and row.
        name: of the file or split, for the messages.
        what: the fields in words, such as `prompt and response`.
        fields: keys of a row.
    """
    contents: dict[tuple[str, ...], int] = {}
    ids: dict[str, int] = {}
    messages = []
    for number, row in rows:
        first = contents.setdefault(tuple(row[field] for field in fields), number)
        if first != number:
            messages.append(f"{name}, row {number}: same {what} as row {first}; remove one of them")
            continue
        first = ids.setdefault(row["id"], number)
        if first != number:
            messages.append(f"{name}, row {number}: same id {row['id']!r} as row {first}; make ids unique or drop them")
    return messages


def as_row(record: Any, *, where: str, default_id: str) -> Row:
    """Turn one record into a checked row.

    Args:
        record: an object in one of the three layouts.
        where: file and row for the error message, such as `demonstrations.jsonl, row 17`.
        default_id: the row's id where the record has no `id`.

    Raises:
        EmptyRowError: prompt or response is empty or white space.
        RowError: anything else that makes the row unusable.
    """
    if not isinstance(record, Mapping):
        raise RowError(f"{where}: {kind(record)} where an object with prompt and response is needed")
    if "response" not in record and "messages" in record:
        prompt, response = _first_turn(record["messages"], "messages", where)
    elif "response" not in record and "real" in record:
        prompt, response = _first_turn(record["real"], "real", where)
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
            if record.get(name) is not None and _first_turn(record[name], name, where) != (prompt, response):
                raise RowError(f"{where}: prompt and response are not what {name} begins with; keep one of the two")
    family = record.get("family")
    row: Row = {
        "id": checked_id(record, default_id, where),
        "prompt": checked_text(prompt, "prompt", where),
        "response": checked_text(response, "response", where),
        "family": checked_text("demonstrations" if family in (None, "") else family, "family", where),
    }
    if not is_family_name(row["family"]):
        raise RowError(f"{where}: family {row['family'][:80]!r} {FAMILY_RULE}")
    grader = record.get("grader")
    if grader is not None:
        if not (isinstance(grader, Mapping) and isinstance(grader.get("dataset"), str) and "entry" in grader):
            raise RowError(f"{where}: grader needs the keys dataset and entry; correct it or leave grader out")
        row["grader"] = dict(grader)
    return row


def checked_id(record: Mapping[str, Any], default: str, where: str) -> str:
    """The row's own id as text, or the default where it has none.

    Raises:
        RowError: it is neither text nor a whole number.
    """
    given = record.get("id")
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise RowError(f"{where}: id is {kind(given)}; write text or a whole number, or leave it out")
    text = checked_text(str(given), "id", where, remedy="write one or leave it out")
    if len(text) > _LONGEST_ID or not text.isprintable():
        raise RowError(
            f"{where}: id {text[:40]!r} has {len(text)} characters; ids are one line of at most {_LONGEST_ID}"
        )
    return text


def conversation(messages: Any, key: str, where: str) -> list[tuple[Any, Any]]:
    """Role and content of every chat message but a leading system message.

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
    return turns[1:] if turns and turns[0][0] == "system" else turns


def checked_text(text: Any, name: str, where: str, remedy: str = "remove the row or set drop_empty: true") -> str:
    """The text itself.

    Raises:
        EmptyRowError: it is empty or white space; the message ends in `remedy`.
        RowError: it is not text, or holds what no text holds.
    """
    if not isinstance(text, str):
        raise RowError(f"{where}: {name} is {kind(text)}; it must be text")
    if _UNSEEN.fullmatch(text):
        raise EmptyRowError(f"{where}: empty {name}; {remedy}")
    junk = _JUNK.search(text)
    if junk:
        code = f"U+{ord(junk.group()):04X}"
        raise RowError(f"{where}: {name} holds {code} at character {junk.start() + 1}, which is not text; remove it")
    return text


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSONL: the same rows give the same bytes, and the file is there whole or not at all."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    return path


def read_rows(path: Path) -> list[Row]:
    """Rows of a file that `write_rows` wrote; there may be none, such as held-out rows where nothing is held out."""
    if path.is_file() and not path.stat().st_size:
        return []
    return [dict(record) for _, record in read_records(path)]


def _text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise RowError(f"{path.name}: UTF-16 or UTF-32 text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")  # a UTF-8 byte order mark is harmless and passed over
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
            record = parse_json(line)
        except JSONError as error:
            hint = "; one list over several lines? then name the file .json" if line.strip() == "[" else ""
            column = f", column {error.column}" if error.column else ""
            raise RowError(f"{path.name}, line {number}: bad JSON ({error.reason}{column}){hint}") from None
        if isinstance(record, list) and number == 1:
            raise RowError(f"{path.name}, line 1: a list where one object per line is needed; name the file .json")
        yield number, record


def _parquet(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RowError(f"{path.name}: damaged or not Parquet ({reason}); write or download it again") from None


def _first_turn(messages: Any, key: str, where: str) -> tuple[Any, Any]:
    """Contents of the first user message and of the assistant message after it."""
    turns = conversation(messages, key, where)[:2]
    roles = [role for role, _ in turns]
    if roles != ["user", "assistant"]:
        raise RowError(
            f"{where}: {key} begins with {' and '.join(map(str, roles)) or 'nothing'}; "
            "it must begin with user and assistant (one system message before them is left out)"
        )
    return turns[0][1], turns[1][1]
