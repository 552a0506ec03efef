"""Whatever a file holds, each parser ends in a valid value or in its own error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import synthetic_results as synthetic
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import interleaved
from spin_utils.files.disk import sealed
from spin_utils.paper import claims, results

TEXT = st.text(max_size=60) | st.text(alphabet="[]{}:,-&*!<>?|'\"#%@ \n\t0123456789.eE+_~ynaNtrufls", max_size=60)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


GOOD = {
    "evaluations": synthetic.evaluation("spin-0", 0, ability=0.2, items=2),
    "training": synthetic.training("spin-0", 0, steps=2),
    "generations": synthetic.generations("spin-0", 0, ability=0.2, items=2),
    "heldout": synthetic.heldout("spin-0", 0, gap=0.2, items=2),
}


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [here, *(place for key, part in parts for place in places(part, (*here, key)))]


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_results_file_with_anything_anywhere_is_valid_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, folder: str, data: st.DataObject
) -> None:
    document = json.loads(json.dumps(GOOD[folder]))
    *way, last = data.draw(st.sampled_from(places(document)[1:]))
    part = document
    for key in way:
        part = part[key]
    part[last] = data.draw(VALUE | st.integers(min_value=10**300))
    path = tmp_path_factory.getbasetemp() / "cpu" / "seed-0" / folder / "spin-0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_text(json.dumps(sealed(document)))
    except ValueError:  # NaN, which no file has
        return
    try:
        assert results.read_json(path)["model"] == "spin-0"
    except results.ResultsError as error:
        assert str(path) in str(error)


@given(TEXT)
def test_a_results_file_of_any_text_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(results.ResultsError, match=r"any\.json"):
        results.read_json(path)


REPOSITORY = Path(__file__).parents[2]


def test_every_committed_result_keeps_its_schema() -> None:
    files = sorted((REPOSITORY / "results").glob("*/seed-*/*/*.json"))
    assert {path.parent.name for path in files} >= {"evaluations", "transfer", "training", "generations", "heldout"}
    for path in files:
        results.read_json(path)
    for path in (REPOSITORY / "results").glob("*/verdicts.csv"):
        claims.read(path.parent)
    measured = sorted((REPOSITORY / "benchmarks" / "results").glob("*.json"))
    assert measured
    for path in measured:
        interleaved.check(json.loads(path.read_text(encoding="utf-8")), str(path))
