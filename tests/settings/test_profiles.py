"""Profiles: read strictly, refused with the place and the nearest name; names of models, and of artifacts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spin_utils.experiment import plan
from spin_utils.experiment.plan import training_of
from spin_utils.settings import profiles
from spin_utils.settings.inputs import SettingsError
from spin_utils.settings.names import ModelName, label
from spin_utils.settings.run import Profile

SHIPPED = sorted(p.stem for p in profiles.PROFILES.glob("*.yaml"))


def read(tmp_path: Path, text: str) -> Profile:
    """The profile `mine.yaml` with this text."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return profiles.load(str(path))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    assert {"smoke", "cpu", "gpu", "paper"} <= set(SHIPPED)
    profile = profiles.load(name)
    assert profile.name == name
    assert profiles.load(str(profiles.dump(profile, tmp_path / "copy.yaml"))) == profile


def test_other_tasks_stand_aside_of_what_a_model_is_trained_for() -> None:
    real = {"evaluation.big_bench": {"social_iqa": {}}}
    assert (
        profiles.load("cpu").aside == profiles.load("dialogue").aside == set(profiles.load("cpu").evaluation.big_bench)
    )
    own = {"demonstrations": {"source": "file", "train": "rows.jsonl"}}
    assert not profiles.load("smoke", real | own).aside


def test_a_name_is_text_as_it_is_written(tmp_path: Path) -> None:
    names = ["no", "Yes", "on", "1", "010", "12:30", "1e3", "null"]
    families = "".join(f"    {name}: *sums\n" for name in names)
    smoke = profiles.load("smoke").demonstrations.families
    text = f"extends: smoke\ndemonstrations:\n  families:\n    a: &sums {{dataset: chain_sum}}\n{families}"
    profile = read(tmp_path, text)
    assert list(profile.demonstrations.families) == [*smoke, "a", *names]
    assert profiles.load(str(profiles.dump(profile, tmp_path / "copy.yaml"))) == profile


def test_every_fault_is_named_in_a_line_of_its_own() -> None:
    with pytest.raises(SettingsError) as error:
        profiles.load("smoke", {"sft.epochs": 0, "spin.training.bta": 1.0})
    assert [line.partition(": should")[0].partition(": unk")[0] for line in str(error.value).splitlines()] == [
        "smoke.yaml: sft.epochs",
        "smoke.yaml: spin.training.bta",
    ]


def test_a_profile_of_three_lines_changes_model_and_data(tmp_path: Path) -> None:
    model, data = "model: {source: directory, path: my-model}", "demonstrations: {source: file, train: rows.jsonl}"
    profile = read(tmp_path, f"extends: cpu\n{model}\n{data}\n")
    assert profile.name == "mine"
    assert profile.model.path == str(tmp_path / "my-model")
    assert profile.demonstrations.train == str(tmp_path / "rows.jsonl")
    assert profile.demonstrations.families == {}, "settings of the old source must not leak into the new one"
    assert profile.spin == profiles.load("cpu").spin
    given = {"demonstrations.source": "file", "demonstrations.train": "rows.jsonl", "template.kind": "chat"}
    profile = profiles.load("cpu", given)
    assert (profile.demonstrations.families, profile.template.end) == ({}, ""), "one by one, too"


def test_an_empty_section_takes_away_what_the_profile_below_has(tmp_path: Path) -> None:
    assert profiles.load("smoke").arms
    assert not read(tmp_path, "extends: smoke\narms: {}\n").arms


def test_a_setting_of_a_section_that_is_null_begins_the_section(tmp_path: Path) -> None:
    written = profiles.dump(profiles.load("smoke"), tmp_path / "whole.yaml")
    assert "mt_bench: null" in written.read_text()
    change = {"mt_bench.judge": "instructions", "arms": {"own": {"spin.training.lora.rank": 8}}}
    profile = profiles.load(str(written), change)
    assert profile.mt_bench
    assert profiles.of_arm(profile, "own").spin.training.lora


def test_a_template_of_another_kind_keeps_no_markers_of_the_old_one(tmp_path: Path) -> None:
    template = read(tmp_path, "extends: cpu\ntemplate: {kind: chat, max_prompt_tokens: 99}\n").template
    assert (template.kind, template.end, template.max_prompt_tokens) == ("chat", "", 99)
    changed = read(tmp_path, "extends: cpu\ntemplate: {too_long: drop}\n")
    assert changed.template.end == profiles.load("cpu").template.end


@pytest.mark.parametrize(("name", "by_iteration"), [("beta", "betas"), ("learning_rate", "learning_rates")])
def test_a_value_hidden_by_a_list_is_refused(name: str, by_iteration: str, tmp_path: Path) -> None:
    message = f"spin.training.{name}: changes nothing, because spin.{by_iteration} overrides it"
    with pytest.raises(SettingsError, match=re.escape(message)):
        profiles.load("cpu", {f"spin.training.{name}": 0.5})
    with pytest.raises(SettingsError, match=re.escape(f"mine.yaml: {message}")):
        read(tmp_path, f"extends: cpu\nspin: {{training: {{{name}: 0.5}}}}\n")
    profile = read(tmp_path, f"extends: cpu\nspin: {{{by_iteration}: [], training: {{{name}: 0.5}}}}\n")
    assert getattr(training_of(profile, "spin-3"), name) == 0.5


def test_files_lie_beside_the_profile_that_names_them(tmp_path: Path) -> None:
    profile = read(
        tmp_path,
        "extends: smoke\nsft: null\n"
        "dpo: {training: {learning_rate: 5e-7}, preferences: {source: file, train: p.jsonl}, answers_per_prompt: 8}\n"
        "sft_control:\n  demonstrations: {source: file, train: more.jsonl}\n"
        "  training: {learning_rate: 1.0e-3, epochs: 1}\n",
    )
    assert profile.dpo is not None
    assert profile.dpo.preferences.train == str(tmp_path / "p.jsonl")
    assert (profile.dpo.answers_per_prompt, profile.dpo.training.learning_rate) == (8, 5e-7)
    assert profile.sft_control is not None
    assert profile.sft_control.demonstrations is not None
    assert profile.sft_control.demonstrations.train == str(tmp_path / "more.jsonl")


def test_a_tracker_does_not_make_another_model() -> None:
    trackers = {"sft.trackers": ["tensorboard"], "spin.training.trackers": ["tensorboard"]}
    plain, tracked = (plan.make(profiles.load("smoke", changes), 0) for changes in ({}, trackers))
    assert [step.directory for step in tracked] == [step.directory for step in plain]
    assert tracked.profile.spin.training.trackers == ("tensorboard",)


def test_iterations_take_their_own_rate_and_beta_and_repeat_the_last() -> None:
    changes = {"spin.betas": [0.1, 0.1, 0.1, 5.0], "spin.learning_rates": [5e-7, 5e-7, 1e-7]}
    runs = [training_of(profiles.load("smoke", changes), f"spin-{t}") for t in range(5)]
    assert [run.beta for run in runs] == [0.1, 0.1, 0.1, 5.0, 5.0]
    assert [run.learning_rate for run in runs] == [5e-7, 5e-7, 1e-7, 1e-7, 1e-7]


def test_a_subset_is_iteration_0_stopped_after_one_epoch_of_its_schedule() -> None:
    profile = profiles.load("smoke", {"spin.training.epochs": 2, "spin.training.schedule_epochs": 6})
    whole, subset = training_of(profile, "spin-0"), training_of(profile, "spin-0-rows-14")
    assert (subset.epochs, subset.schedule_epochs) == (1, 6)
    assert (subset.learning_rate, subset.beta) == (whole.learning_rate, whole.beta)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["name", "model", "spin", "sft", "template", "zzz"]), _JSON))
def test_whatever_a_file_holds_ends_in_a_profile_or_a_settings_error(data: dict) -> None:
    base = yaml.safe_load((profiles.PROFILES / "smoke.yaml").read_text())
    try:
        assert isinstance(profiles.build(Profile, {**base, **data}), Profile)
    except SettingsError as error:
        assert str(error)


KEYS = Path(__file__).with_name("keys.json")
"""Keys of every step, seed 0, as version 0.1.0 computed them. Delete a line only with a reason in the changelog."""


@pytest.mark.parametrize("profile", ["smoke", "cpu", "paper"])
def test_a_refactoring_does_not_invalidate_anybodys_artifacts(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")  # so that MT-Bench is planned too
    steps = plan.make(profiles.load(profile), 0)
    keys = {step.name: step.directory.name.rpartition("-")[2] for step in steps}
    assert keys == json.loads(KEYS.read_text())[profile]


MORE = ("sft-more-2", "dpo", "spin-0-epoch-3", "spin-0-rows-14", "spin-0-more", "spin-3-dpo")
NAMES = ("base", "sft", "spin-0", "spin-12", *MORE)


def test_different_names_are_different_models_with_different_labels() -> None:
    assert len({ModelName.parse(name) for name in NAMES}) == len({label(name) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", ["", "spin-", "spin-01", "spin-0-epoch-0", "sft-1", "dpo-0", "spin-0-rows", "SFT"])
def test_what_is_no_name_is_refused_with_what_names_look_like(name: str) -> None:
    with pytest.raises(ValueError, match="names look like sft, spin-0"):
        ModelName.parse(name)
