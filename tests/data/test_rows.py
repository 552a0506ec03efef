"""Whatever a record holds, it ends in a checked row or in an error that says what is wrong."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spin_utils.data import preferences, rows

SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = sorted({*rows.COMMON, "chosen", "rejected", "label", *(name for each in rows.LAYOUTS for name in each[:2])})
ROLE = st.sampled_from(["user", "assistant", "system"]) | SCALAR
RECORD = st.dictionaries(
    st.sampled_from(COLUMNS), VALUE | st.lists(st.fixed_dictionaries({"role": ROLE, "content": VALUE}))
)


@given(RECORD)
def test_a_record_ends_in_a_checked_row_or_a_row_error(record: dict[str, Any]) -> None:
    for make, names in ((rows.as_row, ("prompt", "response")), (preferences.as_preference, ("chosen", "rejected"))):
        with contextlib.suppress(rows.RowError):
            row, _ = make(record)
            assert row is None or all(isinstance(row[name], str) and row[name].strip() for name in names)
