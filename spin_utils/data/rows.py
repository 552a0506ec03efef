"""Rows: read from JSON, JSONL and Parquet files and the hub, check one by one, and write.

A demonstration is a dict with `id`, `prompt`, `response`, `family` and, if there are any, `system` and `earlier` (the
turns before the prompt); rows that the kit generates also have a `grader`. `LAYOUTS` names the columns that are read. A
text may also be a list of messages with role and content, or with from and value (ShareGPT), or one string of turns
that begin with Human: and Assistant: (HH). A leading system message, or a column `system`, is the row's system message.
The text of a column `input` (Alpaca) or `context` (Dolly) is appended to the first prompt after a blank line.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spin_utils.files import hub
from spin_utils.files.disk import replacing
from spin_utils.files.paths import KitError
from spin_utils.settings.inputs import FAMILY_NAME, FAMILY_RULE, DemonstrationSettings, PreferenceSettings

Row = dict[str, Any]

_logger = logging.getLogger(__name__)

LAYOUTS = (
    ("", "messages"),
    ("", "real"),
    ("", "conversations"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "response"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "chosen"),
    ("instruction", "chosen"),
    ("question", "chosen"),
    ("", "chosen"),
)
"""Columns of the question and the answer, of which the first that are there are read. Where there is none for the
question, the answer's holds the whole conversation: it comes first, because it can have a system message and earlier
turns. KTO's `label` is false for a bad answer, in any layout."""
COMMON = ("id", "family", "system", "system_prompt", "input", "context")
"""Columns that are read in every layout."""
_ASSISTANTS = ("gpt", "chatgpt", "bing", "bard", "model")
_ROLES = {"human": "user", "developer": "system"} | dict.fromkeys(_ASSISTANTS, "assistant")
_MESSAGE = (("role", "content"), ("from", "value"))
CONVERSATIONS = ("messages", "real", "conversations")
"""Columns that hold a conversation, in every row that has them."""
_HH = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_WHOLE_HH = re.compile(r"\n\n(Human|Assistant):|Human:.*\n\nAssistant:", re.DOTALL)
"""How a text of such turns begins; some copies have lost the first line breaks."""
LINES = "a .jsonl file has one object per line, a .json file one list"
SHOWN = 5
"""Number of faulty rows named in one error message."""


class RowError(KitError):
    """A file or a row cannot be used. The message names the file, the row and the remedy."""


class EmptyRowError(RowError):
    """A row has no prompt or response; `drop_empty` leaves such rows out."""


def checked_rows(
    settings: DemonstrationSettings | PreferenceSettings,
    given: str,
    make: Callable[[Mapping[str, Any]], tuple[Row | None, list[str]]],
    fields: Sequence[str],
) -> list[Row]:
    """The checked rows of a file, or of a split of a hub dataset.

    Faulty and repeated rows in a file are errors, because the user can correct them. Those from the hub are dropped
    with a warning: a pinned revision cannot be edited, and published sets have both (the released SPIN data contain
    every row twice). Columns that are not used are named in the log.

    Args:
        given: the file or the split.
        make: turns a record into a checked row, like `as_row`, and names what nothing reads; None leaves a row out.
        fields: keys of a row; rows with equal values in them and the same question are duplicates.

    Raises:
        RowError: a file or row cannot be used, or no row is left.
    """
    from_file = settings.source == "file"
    drop_empty = settings.drop_empty if isinstance(settings, DemonstrationSettings) else None
    name, stem = (Path(given).name, Path(given).stem) if from_file else (f"{settings.name} [{given}]", given)
    faults: list[str] = []
    left_out, ignored = Counter[str](), Counter[str]()
    first: dict[Any, int] = {}
    rows = []
    for number, record in read_records(Path(given)) if from_file else hub_records(settings, given):
        try:
            if not isinstance(record, Mapping):
                raise RowError(f"{record!r:.40} instead of an object with {' and '.join(fields)}; {LINES}")
            row, unused = make(record)
            ignored.update(unused)
            if row is None:
                left_out["with the label false left out: a demonstration is a good answer"] += 1
                continue
            row.setdefault("id", f"{stem}-{number}")
            same = first.setdefault((*question(row), *(row[field] for field in fields)), number)
            id_of = first.setdefault(row["id"], number)
            if same != number:
                raise RowError(f"same {' and '.join(fields)} as row {same}; remove one of them")
            if id_of != number:
                raise RowError(f"same id {row['id']!r} as row {id_of}; make ids unique or drop them")
            rows.append(row)
        except RowError as error:
            droppable = isinstance(error, EmptyRowError) and drop_empty is not None
            if droppable and drop_empty:
                left_out["with an empty prompt or response left out (drop_empty)"] += 1
            else:
                remedy = " or set demonstrations.drop_empty: true" if droppable else ""
                faults.append(f"{name}, row {number}: {error}{remedy}")
    if from_file and faults:
        raise RowError(listed(faults))
    if not rows:
        raise RowError(f"{name}: no usable row; {f'the first fault: {faults[0]}' if faults else 'add rows'}")
    if ignored:
        columns = ", ".join(f"{column} ({count} rows)" for column, count in ignored.items())
        _logger.warning("%s: unused columns: %s", name, columns)
    for what, count in left_out.items():
        _logger.warning("%s: %d rows %s", name, count, what)
    if faults:
        _logger.warning("%s: %d faulty or repeated rows left out, the first: %s", name, len(faults), faults[0])
    return rows


def read_records(path: Path) -> list[tuple[int, Any]]:
    """All records of a .json (one list), .jsonl or .parquet file, unchecked, with their row numbers.

    They count from 1, and are line numbers in JSONL.

    Raises:
        RowError: the file is missing, not UTF-8, bad JSON (with its line) or damaged Parquet.
    """
    check_file(path)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return list(enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise RowError(f"{path.name}: damaged or not Parquet ({reason}); save or download it again") from None
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
        raise RowError(f"{path.name}, line {line}: not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from None
    if not text.strip():
        raise RowError(f"{path.name}: the file is empty; it needs at least one row")
    by_line = path.suffix == ".jsonl"
    records = []
    for number, part in enumerate(text.split("\n") if by_line else [text], start=1):
        try:
            records += [(number, json.loads(part))] if part.strip() else []
        except json.JSONDecodeError as error:
            line = number - 1 + error.lineno
            raise RowError(f"{path.name}, line {line}: bad JSON ({error.msg}, column {error.colno}); {LINES}") from None
    if by_line:
        return records
    if not isinstance(records[0][1], list):
        raise RowError(f"{path.name}: the top level is not a list; make it a list of objects, or use .jsonl")
    return list(enumerate(records[0][1], start=1))


def check_file(path: Path) -> None:
    """Raise unless the path is a file with a known extension; the message names the closest match."""
    if path.is_dir():
        raise RowError(
            f"{path}: a folder, not a file; name a .json, .jsonl or .parquet file, as datasets.load_from_disk(folder)"
            "['train'].to_parquet('rows.parquet') writes it (without ['train'] if there are no splits)"
        )
    if not path.is_file():
        files = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, files, n=1, cutoff=0.5)
        hint = f"did you mean {path.parent / near[0]}?" if near else "check the path (from the current folder)"
        raise RowError(f"{path}: no such file; {hint}")
    if path.suffix not in (".json", ".jsonl", ".parquet"):
        raise RowError(f"{path.name}: unknown extension {path.suffix!r}; use .json, .jsonl or .parquet")


def hub_records(settings: DemonstrationSettings | PreferenceSettings, split: str) -> Iterator[tuple[int, Any]]:
    """The same for a split of a hub dataset.

    Raises:
        RowError: no revision, or the dataset cannot be loaded.
    """
    name, revision = settings.name, settings.revision
    if not revision:
        raise RowError(f"{name}: no revision; pin its commit, 40 hexadecimal digits (a branch moves)")
    try:
        return enumerate(hub.load_rows(name, settings.config, revision=revision, split=split), start=1)
    except Exception as error:  # datasets and the hub client raise a dozen kinds; each means the same to the reader
        reason = " ".join(str(error).split())[:300]
        raise RowError(
            f"{name} [{split}] at revision {revision[:12]}: {reason}; check name, revision, config, "
            "split and network, or download it once and use source: file"
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


def as_row(record: Mapping[str, Any], turns: str = "first") -> tuple[Row | None, list[str]]:
    """Turn one record into a checked row.

    Args:
        turns: which answer of a conversation is the response: the `first`, or else the last.

    Returns:
        The row, whose `id` is missing if the record has none, or None if KTO's `label` calls it a bad answer; and what
        of the record is neither read nor known to repeat something else.

    Raises:
        EmptyRowError: prompt or response is empty or whitespace.
        RowError: the row is unusable for another reason.
    """
    asked, answer = layout(record)
    label = record.get("label")
    rates = answer == "completion" or isinstance(label, bool)  # elsewhere another `label` may be the class of a text
    unused = unread(record, (asked, answer, *["label"] * rates), ["generated"] * (answer == "real"))
    if rates and label not in (None, True, False):
        raise RowError(f"label is {label!r}; a good answer has true, a bad one false: correct it")
    if rates and label is not None and not label:
        return None, unused
    systems, said = exchange(record, asked, answer)
    if turns == "first":
        unused += [f"later turns of {answer}"] if len(said) > 2 else []
        said = said[:2]
    elif len(said) > 1 and said[-1][0] == "user":
        said = said[:-1]  # a question without an answer
    check_turns(said, answer)
    row = {
        **asked_of(record, asked, systems, said[:-1]),
        "response": checked_text(said[-1][1], "response"),
        "family": checked_text(record.get("family") or "demonstrations", "family"),
    }
    if FAMILY_NAME.fullmatch(row["family"]) is None:
        raise RowError(f"family {row['family'][:80]!r} {FAMILY_RULE}")
    return row, unused


def unread(record: Mapping[str, Any], read: Sequence[str], repeated: Iterable[str]) -> list[str]:
    """Columns that nothing reads and that repeat no message, and what messages have beside role and text."""
    known, in_message = {*read, *repeated, *COMMON}, {key for pair in _MESSAGE for key in pair}
    messages = [(name, each) for name in read if isinstance(record.get(name), list) for each in record[name]]
    extras = [(name, item) for name, message in messages if isinstance(message, Mapping) for item in message.items()]
    said = [None, *(text for _, (key, text) in extras if key in in_message)]
    found = [str(key) for key, value in record.items() if key not in known and value not in said]
    found += [f"{key} in {name}" for name, (key, value) in extras if key not in in_message and value is not None]
    return list(dict.fromkeys(found))


def layout(record: Mapping[str, Any]) -> tuple[str, str]:
    """The first of `LAYOUTS` that a record has, one with an answer if there is any.

    Raises:
        RowError: it has none.
    """
    there = [each for each in LAYOUTS if each[1] in record and (not each[0] or each[0] in record)]
    if not there:
        missing = "response" if any(asked in record for asked, _ in LAYOUTS) else "prompt"
        has = ", ".join(map(str, record)) or "nothing"
        raise RowError(
            f"no key {missing!r} (it has {has}); use prompt and response, or messages with role and content, "
            "or another layout of docs/your-data.md"
        )
    return next((each for each in there if record[each[1]] not in (None, [])), there[0])


def exchange(record: Mapping[str, Any], asked: str, answer: str) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Leading system messages, and the turns of question and answer as role and text.

    Raises:
        RowError: a conversation is malformed, or the answer's repeats another question.
    """
    systems: list[Any] = []
    said: list[tuple[Any, Any]] = []
    for name, role in ((asked, "user"), (answer, "assistant")):
        if not name:
            continue
        turns = [(role, record[name])]
        if name in CONVERSATIONS or _is_conversation(record[name]):
            system, turns = conversation(record[name], name)
            systems.append(system)
        if role == "user" and isinstance(record[name], str) and turns[-1] == ("assistant", ""):
            turns.pop()  # HH's prompts may end in `Assistant:`, and then its answers begin with a space
            record = {**record, answer: record[answer].lstrip()} if isinstance(record[answer], str) else record
        if said and turns and turns[0][0] == "user":
            if turns[: len(said)] == said or (len(said) == 1 and said[0] in turns[:-1]):
                said = []
            elif isinstance(record[name], str):
                turns = [(role, record[name])]  # an answer that is a dialogue of its own
            else:
                raise RowError(f"{asked} and {answer} have different prompts; correct or remove the row")
        said += turns
    return systems, said


def check_turns(said: Sequence[tuple[Any, Any]], name: str) -> None:
    """Raise unless user and assistant take turns, beginning with the user and ending with the assistant."""
    roles = [role for role, _ in said]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise RowError(
            f"{name} has turns of {', '.join(map(str, roles)) or 'nobody'}; user and assistant must take "
            "turns, after one system message if any: correct or remove the row"
        )


def asked_of(record: Mapping[str, Any], asked: str, systems: Iterable[Any], said: Sequence[tuple[Any, Any]]) -> Row:
    """What is asked: `prompt`, and if there are any the `id`, the `system` message and the texts of `earlier` turns.

    Args:
        asked: the record's column of the question; empty if it is in a conversation.
        systems: the leading system messages of its conversations.
        said: the turns up to the question.
    """
    texts = [checked_text(text, "prompt" if role == "user" else "earlier turn") for role, text in said]
    for name in ("input", "context"):
        more = _text(record.get(name), name)
        there = not asked and more.strip() in texts[0]  # a conversation may hold it already
        texts[0] += f"\n\n{more}" if more.strip() and not there else ""
    systems = (*systems, record.get("system"), record.get("system_prompt"))
    told = {text for each in systems if (text := _text(each, "system message")).strip()}
    if len(told) > 1:
        raise RowError("has different system messages; keep one")
    name = "" if record.get("id") is None else _text(str(record["id"]), "id")
    parts = {"id": name, "prompt": texts[-1], "system": "".join(told), "earlier": texts[:-1]}
    return {key: value for key, value in parts.items() if value}


def question(row: Row) -> tuple[str, ...]:
    """A row's identity across splits: its system message and earlier turns, if any, and its prompt."""
    return row.get("system", ""), *row.get("earlier", ()), row["prompt"]


def conversation(messages: Any, key: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """The leading system message (empty if there is none), and role and content of every later message.

    Raises:
        RowError: not a list, or a message without role and content.
    """
    if isinstance(messages, str) and _WHOLE_HH.match(messages):
        parts = _HH.split(messages)[1:]
        messages = [{"from": role, "value": text.strip()} for role, text in zip(parts[::2], parts[1::2], strict=True)]
    if not isinstance(messages, list):
        raise RowError(
            f"{key} is {messages!r:.40}; it must be a list of messages with role and content: correct or remove the row"
        )
    turns = []
    for place, message in enumerate(messages, start=1):
        names = next((n for n in _MESSAGE if isinstance(message, Mapping) and set(n) <= set(message)), None)
        if names is None:
            raise RowError(
                f"message {place} of {key} needs the keys role and content, or from and value: correct or remove "
                "the row"
            )
        role, text = (message[name] for name in names)
        role = role.lower() if isinstance(role, str) else repr(role)
        turns.append((_ROLES.get(role, role), _joined(text)))
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
    return system, turns


def checked_text(text: Any, name: str) -> str:
    """The text.

    Raises:
        EmptyRowError: it is empty or whitespace.
        RowError: it is not text.
    """
    if not _text(text, name).strip():
        raise EmptyRowError(f"empty {name}; remove the row")
    return str(text)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSONL, atomically; the same rows give the same bytes."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    return path


def read_rows(path: Path) -> list[Row]:
    """Rows of a file written by `write_rows`; it may be empty, for example if nothing is held out."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _joined(text: Any) -> Any:
    """OpenAI's list of text parts as one text; anything else as it is."""
    parts = text if isinstance(text, list) and all(isinstance(part, Mapping) for part in text) else []
    whole = bool(parts) and all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts)
    return "".join(part["text"] for part in parts) if whole else text


def _text(text: Any, name: str) -> str:
    """A text that may be missing."""
    if not isinstance(text, str | None):
        raise RowError(f"{name} is {text!r:.40}; it must be text: correct or remove the row")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        half = ascii(error.object[error.start])
        raise RowError(f"{name} has {half}, half of a character; correct or remove the row") from None
    return text or ""


def _is_conversation(value: Any) -> bool:
    if isinstance(value, str):
        return _WHOLE_HH.match(value) is not None
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
