"""Names of models are read and written in one place."""

from __future__ import annotations

import pytest

from spin_utils.settings.names import ModelName, label

MORE = ("sft-more-2", "dpo", "spin-0-epoch-3", "spin-0-rows-14", "spin-0-more", "spin-3-dpo")
NAMES = ("base", "sft", "spin-0", "spin-12", *MORE)


def test_different_names_are_different_models_with_different_labels() -> None:
    assert len({ModelName.parse(name) for name in NAMES}) == len({label(name) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", ["", "spin-", "spin-01", "spin-0-epoch-0", "sft-1", "dpo-0", "spin-0-rows", "SFT"])
def test_what_is_no_name_is_refused_with_what_names_look_like(name: str) -> None:
    with pytest.raises(ValueError, match="names look like sft, spin-0"):
        ModelName.parse(name)


def test_an_iterate_plays_the_one_before_it_and_the_first_plays_sft() -> None:
    opponents = [str(ModelName.parse(name).opponent) for name in ("spin-0", "spin-1", "spin-3")]
    assert opponents == ["sft", "spin-0", "spin-2"]
    assert [p for p in NAMES if ModelName.parse(p).is_iterate] == ["spin-0", "spin-12"]
