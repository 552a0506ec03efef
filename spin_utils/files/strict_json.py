"""JSON read strictly: no key twice, no NaN, and every fault is one kind of error."""

from __future__ import annotations

import json
from typing import Any

_LEVELS = 100


class JSONError(ValueError):
    """Text is not JSON, or is JSON that means two things. The readers add the file and the remedy.

    Attributes:
        reason: what is wrong.
        line: where, from 1; 0 if unknown.
        column: where, from 1; 0 if unknown.
    """

    def __init__(self, reason: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"{reason}, line {line}, column {column}" if line else reason)
        self.reason, self.line, self.column = reason, line, column


def parse(text: str, *, allow_nan: bool = False) -> Any:
    """Parse JSON.

    Python keeps the last of two equal keys, reads NaN and Infinity, and gives up on deep nesting and on very long
    numbers with errors of their own; all of these are faults of the text here.

    Args:
        text: one JSON value.
        allow_nan: let NaN and Infinity pass, for a reader that says itself which field holds them.

    Raises:
        JSONError: with the reason, and the place where the parser names one.

    >>> parse('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    spin_utils.files.strict_json.JSONError: key 'a' is written twice
    """
    try:
        value = (_LENIENT if allow_nan else _STRICT).decode(text)
    except json.JSONDecodeError as error:
        raise JSONError(error.msg, error.lineno, error.colno) from None
    except RecursionError:
        raise JSONError("nested too deeply") from None
    except JSONError:
        raise
    except ValueError:
        raise JSONError("a number with thousands of digits") from None
    if is_too_deep(value):
        raise JSONError("nested too deeply")
    return value


def is_too_deep(value: Any) -> bool:
    """Whether data has over a hundred levels: a parser may take it, and what copies or writes it later give up."""
    level = [value]
    for _ in range(_LEVELS):
        tables = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list)))
        level = [part for table in tables for part in table]
        if not level:
            return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JSONError(f"key {twice!r} is written twice")
    return record


def _constant(name: str) -> Any:
    raise JSONError(f"{name} is not a number")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_LENIENT = json.JSONDecoder(object_pairs_hook=_object)
