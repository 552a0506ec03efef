"""The results that are no JSON of a model: verdicts.csv, and the records of the benchmarks. Checked like all others.

`documents.py` says what the files of a model must hold.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.paper.documents import SCHEMA, ResultsError

VERDICT_COLUMNS = ("id", "statement", "paper", "ours", "low", "high", "n", "seeds", "verdict")
"""Columns of verdicts.csv; they are its version."""

OUTCOMES = ("reproduced", "not reproduced", "inconclusive", "not run", "not judged")

_RATIO = ("median", "low", "high", "runs")
_MACHINE = ("versions", "commit", "dirty", "device")


def parse_verdicts(text: str, where: str) -> pd.DataFrame:
    """Read and check the text of a verdicts.csv.

    Args:
        text: the file's content.
        where: named in errors, usually the path.

    Raises:
        ResultsError: not CSV, other columns, an id twice, an unknown verdict, or an interval that is none.
    """
    remedy = "draw it again with `spin-repro figures`"
    try:
        table = pd.read_csv(io.StringIO(text))
    except (ValueError, pd.errors.ParserError) as error:
        raise ResultsError(f"{where}: not readable as CSV ({error}); {remedy}") from None
    if tuple(table.columns) != VERDICT_COLUMNS:
        raise ResultsError(f"{where}: columns are {', '.join(map(str, table.columns))}; {remedy}")
    for number, row in enumerate(table.to_dict("records"), start=1):
        place = f"{where}, row {number}"
        if not isinstance(row["id"], str) or (table["id"] == row["id"]).sum() > 1:
            raise ResultsError(f"{place}: id {row['id']!r} is missing or written twice; {remedy}")
        if row["verdict"] not in OUTCOMES:
            raise ResultsError(f"{place}: verdict is {row['verdict']!r}; use {', '.join(OUTCOMES)}")
        numbers = [row[name] for name in ("paper", "ours", "low", "high", "n", "seeds")]
        if any(not isinstance(value, int | float) or math.isinf(value) for value in numbers):
            raise ResultsError(f"{place}: a value is no finite number; {remedy}")
        if row["low"] > row["high"]:
            raise ResultsError(f"{place}: low is {row['low']}, above high, {row['high']}; {remedy}")
    return table


def read_verdicts(path: Path) -> pd.DataFrame:
    """Read and check results/PROFILE/verdicts.csv. Errors as in `parse_verdicts`, or no such file."""
    try:
        return parse_verdicts(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: cannot be read ({error}); draw it with `spin-repro figures`") from None


def check_benchmark(document: Any, where: str) -> None:
    """Check a record of `benchmarks/results`, its summary included.

    Raises:
        ResultsError: another schema, no machine, or a ratio that is not a median between its lowest and highest run.
    """
    remedy = "run the benchmark again"
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise ResultsError(f"{where}: not a record of schema {SCHEMA}; {remedy}")
    machine, ratios = document.get("machine"), document.get("ratios")
    if not isinstance(machine, Mapping) or any(name not in machine for name in _MACHINE):
        raise ResultsError(f"{where}: machine needs {', '.join(_MACHINE)}; {remedy}")
    if not isinstance(ratios, Mapping):
        raise ResultsError(f"{where}: ratios is no map from name to values; {remedy}")
    for name, ratio in ratios.items():
        if not isinstance(ratio, Mapping) or any(
            isinstance(ratio.get(part), bool) or not isinstance(ratio.get(part), int | float) for part in _RATIO
        ):
            raise ResultsError(f"{where}: ratios.{name} needs the numbers {', '.join(_RATIO)}; {remedy}")
        if not 0 < ratio["low"] <= ratio["median"] <= ratio["high"] < math.inf or ratio["runs"] < 1:
            raise ResultsError(
                f"{where}: ratios.{name} is {dict(ratio)}; its median lies between low and high; {remedy}"
            )
