"""Model cards hold the run's own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic_results as synthetic
from huggingface_hub import ModelCard

from spin_utils.drawing import card
from spin_utils.files import paths
from spin_utils.files.paths import KitError
from spin_utils.paper import results
from spin_utils.settings import profiles
from spin_utils.settings.run import Profile


@pytest.fixture
def profile(after_smoke: Path) -> Profile:
    return profiles.load("smoke")


def test_the_card_holds_the_numbers_of_the_results_and_the_settings_of_the_run(profile: Profile) -> None:
    path = card.write(profile, "spin-0")
    loaded = ModelCard.load(path)
    record = results.read_json(results.path_of(paths.results(profile.name), 0, "evaluations", "spin-0"))
    measured = {name: round(100 * task["value"], 2) for name, task in record["tasks"].items()}
    assert {result.dataset_type: result.metric_value for result in loaded.data.eval_results} == measured
    for name, value in measured.items():
        row = next(line for line in loaded.text.splitlines() if line.startswith(f"| {name} "))
        assert f"| {value:.1f} [" in row
    assert f"learning_rate: {profile.spin.learning_rates[0]}" in loaded.text
    chain = record["provenance"]["chain"]
    assert chain["spin-0"]["weights_sha256"]["model.safetensors"] in loaded.text
    assert chain["spin-0"]["commit"] in loaded.text
    assert str(paths.home()) not in loaded.text, "a path of this machine is nobody's business"


def test_the_card_says_which_tasks_its_average_leaves_out(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = set(results.load_summaries(paths.results(profile.name))["task"])
    first = min(tasks)
    assert "(aside)" not in card.write(profile, "spin-0").read_text()
    monkeypatch.setattr(results, "aside", lambda folder: {first})
    text = card.write(profile, "spin-0").read_text()
    assert f"| {first} (aside) |" in text
    assert text.count("(aside)") == 1
    monkeypatch.setattr(results, "aside", lambda folder: tasks)
    text = card.write(profile, "spin-0").read_text()
    assert (f"| {first} (aside) |" in text, "| average |" in text) == (True, False)


def test_settings_that_changed_since_the_run_are_not_put_on_its_card(profile: Profile) -> None:
    changed = profiles.load("smoke", {"spin.learning_rates": [3e-4]})
    with pytest.raises(KitError, match="spin-0: its results are from spin-0-.*, but the profile's current settings"):
        card.write(changed, "spin-0")


def test_the_hubs_names_of_base_model_and_data_are_metadata() -> None:
    data = card.metadata(profiles.load("paper"), "SFT", synthetic.evaluation("sft", 0, ability=0))
    assert data.base_model == "alignment-handbook/zephyr-7b-sft-full"
    assert data.datasets == ["UCLA-AGI/SPIN_iter0"]


def test_models_that_were_not_trained_here_have_no_card() -> None:
    with pytest.raises(KitError, match="sft: profile paper does not train it; it has a card of its own"):
        card.write(profiles.load("paper"), "sft")
