"""Profiles: read strictly, refused with the place and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spin_utils import profiles
from spin_utils.plan import training_at
from spin_utils.settings import Profile, SettingsError

SHIPPED = sorted(p.stem for p in profiles.PROFILES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    profile = profiles.load(name)
    assert profile.name == name
    assert profiles.load(str(profiles.dump(profile, tmp_path / "copy.yaml"))) == profile


def test_the_default_set_of_profiles_is_shipped() -> None:
    assert {"smoke", "cpu", "gpu", "paper"} <= set(SHIPPED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spin.training.bta": 1.0}, "spin.training.bta: unknown setting; did you mean 'beta'?"),
        ({"spinn": {}}, "spinn: unknown setting; did you mean 'spin'?"),
        ({"spin.training.beta": "big"}, "spin.training.beta: expected a number, found 'big'"),
        ({"spin.training.beta": -1}, "spin.training.beta: -1.0 must be above 0"),
        ({"spin.training.beta": True}, "spin.training.beta: expected a number, found true/false True"),
        ({"spin.training.beta": float("nan")}, "spin.training.beta: nan is not a finite number"),
        ({"spin.training.epochs": 1.5}, "spin.training.epochs: expected a whole number"),
        ({"spin.training.loss": "logistics"}, "'logistics' is not a choice; did you mean 'logistic'?"),
        ({"spin.betas": 0.1}, "spin.betas: expected a list, found a number"),
        ({"spin.betas": [0.1, 0]}, "spin.betas: every value must be above 0"),
        ({"spin.training.warmup_ratio": 1}, "warmup_ratio: 1.0 must be at least 0 and below 1"),
        ({"spin.training.schedule_epochs": 1}, "schedule_epochs: 1 is less than epochs (2)"),
        ({"generation.top_p": 0}, "generation.top_p: 0.0 must be above 0"),
        ({"demonstrations.spin_rows": 1000}, "spin_rows: 1000 is more than sft_rows"),
        ({"template.prompt": "no place"}, "template.prompt: must hold {prompt} exactly once"),
        ({"name": "../up"}, "name: '../up' names folders"),
        ({"model": {"source": "hub", "name": "a/b", "revision": "main"}}, "'main' is not a commit"),
        ({"model": {"source": "hub", "name": "ab", "revision": "0" * 40}}, "'ab' is not a hub id"),
        ({"model": {"source": "tiny", "name": "gpt9"}}, "'gpt9' is not a tiny model"),
        ({"model": {"source": "directory"}}, "model.path: empty"),
        ({"model": "llama"}, "model: expected settings by name, found text"),
        ({"demonstrations": {"source": "file"}}, "demonstrations.train: empty"),
        ({"sft.learning_rate": None}, "sft.learning_rate: expected a number, found nothing"),
    ],
)
def test_an_impossible_value_is_refused_with_its_place(change: dict, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        profiles.load("smoke", change)
    assert message in str(error.value)
    assert str(error.value).startswith("smoke.yaml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not readable as YAML"),
        ("- a\n- b\n", "expected settings by name, found a list"),
        ("extends: cpuu\n", "profile 'cpuu': unknown; did you mean 'cpu'?"),
        ("extends: 3\n", "extends: expected a profile's name"),
        ("extends: smoke\nspin: {training: {beta: 1, beta: 2}}\n", "'beta' is written twice"),
        ("extends: mine.yaml\n", "extends itself"),
        ("name: a\n", "missing; this setting has no default"),
    ],
)
def test_a_broken_profile_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        profiles.load(str(path))
    assert message in str(error.value)


def test_a_profile_of_three_lines_changes_model_and_data(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: cpu\nmodel: {source: directory, path: my-model}\ndemonstrations: {source: file, train: rows.jsonl}\n"
    )
    profile = profiles.load(str(path))
    assert profile.name == "mine"
    assert profile.model.path == str(tmp_path / "my-model")
    assert profile.demonstrations.train == str(tmp_path / "rows.jsonl")
    assert profile.demonstrations.families == {}, "settings of the old source must not leak into the new one"
    assert profile.spin == profiles.load("cpu").spin


def test_an_unknown_profile_and_a_missing_file_are_named() -> None:
    with pytest.raises(SettingsError, match="did you mean 'cpu'"):
        profiles.load("cp")
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: no such file"):
        profiles.load("nowhere.yaml")
    with pytest.raises(SettingsError, match="write an override as name=value"):
        profiles.parse_override("beta")


def test_iterations_take_their_own_rate_and_beta_and_repeat_the_last() -> None:
    changes = {"spin.betas": [0.1, 0.1, 0.1, 5.0], "spin.learning_rates": [5e-7, 5e-7, 1e-7]}
    spin = profiles.load("smoke", changes).spin
    assert [training_at(spin, t).beta for t in range(5)] == [0.1, 0.1, 0.1, 5.0, 5.0]
    assert [training_at(spin, t).learning_rate for t in range(4)] == [5e-7, 5e-7, 1e-7, 1e-7]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["name", "model", "spin", "sft", "template", "zzz"]), _JSON))
def test_whatever_a_file_holds_ends_in_a_profile_or_a_settings_error(data: dict) -> None:
    base = yaml.safe_load((profiles.PROFILES / "smoke.yaml").read_text())
    try:
        assert isinstance(profiles.build(Profile, {**base, **data}, ""), Profile)
    except SettingsError as error:
        assert str(error)
