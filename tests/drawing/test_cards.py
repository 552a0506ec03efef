"""Model cards hold the run's own numbers, and nothing goes to the hub without a token, results and sound files."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub

from spin_utils.cli.main import main
from spin_utils.drawing import card
from spin_utils.drawing.card import CardError
from spin_utils.experiment import plan, publish, run
from spin_utils.files import paths
from spin_utils.files.artifacts import ArtifactError
from spin_utils.paper import results
from spin_utils.paper.results import ResultsError
from spin_utils.settings import profiles
from spin_utils.settings.run import Profile

QUICK = {"spin.iterations": 1, "spin.epochs_shown": 0, "spin.subsets": [], "sft_more": 0, "dpo": None, "name": "cards"}
TOKEN = "hf_" + "secret" * 5


@pytest.fixture(scope="module")
def profile(module_home: Path) -> Profile:
    """The profile of a small finished run, without its tables."""
    profile = profiles.load("smoke", QUICK)
    made = plan.make(profile, 0)
    for name in ("eval-sft", "eval-spin-0"):
        run.make(made, name)
    publish.publish([made])
    return profile


@pytest.fixture
def hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The same with a token in the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def record(profile: Profile, model: str = "spin-0") -> dict[str, Any]:
    return results.read_json(results.path_of(paths.results(profile.name), 0, "evaluations", model))


def test_the_card_holds_the_numbers_of_the_results_and_the_settings_of_the_run(profile: Profile) -> None:
    path = card.write(profile, "spin-0")
    loaded = ModelCard.load(path)
    measured = {name: round(100 * task["value"], 2) for name, task in record(profile)["tasks"].items()}
    assert {result.dataset_type: result.metric_value for result in loaded.data.eval_results} == measured
    for name, value in measured.items():
        row = next(line for line in loaded.text.splitlines() if line.startswith(f"| {name} "))
        assert f"| {value:.1f} [" in row
    assert f"learning_rate: {profile.spin.learning_rates[0]}" in loaded.text
    chain = record(profile)["provenance"]["chain"]
    assert chain["spin-0"]["weights_sha256"]["model.safetensors"] in loaded.text
    assert chain["spin-0"]["commit"] in loaded.text
    assert str(paths.home()) not in loaded.text, "a path of this machine is nobody's business"
    assert card.text(profile, "spin-0") == path.read_text(), "the same results give the same card"


def test_settings_that_changed_since_the_run_are_not_put_on_its_card(profile: Profile) -> None:
    changed = profiles.load("smoke", QUICK | {"spin.learning_rates": [3e-4]})
    with pytest.raises(CardError, match="spin-0: its results are from spin-0-.*, but the profile's current settings"):
        card.write(changed, "spin-0")


def test_the_hubs_names_of_base_model_and_data_are_metadata(profile: Profile) -> None:
    paper = profiles.load("paper")
    mixed = replace(profile, model=paper.model, demonstrations=paper.demonstrations)
    data = ModelCard(card.text(mixed, "spin-0")).data
    assert data.base_model == "alignment-handbook/zephyr-7b-sft-full"
    assert data.datasets == ["UCLA-AGI/SPIN_iter0"]


def test_checkpoint_and_card_go_to_the_hub_in_one_commit(profile: Profile, hub: LoopbackHub) -> None:
    address = card.push(profile, "spin-0", "someone/tiny-spin")
    assert address.startswith(f"{hub.url}/someone/tiny-spin/commit/")
    posted = {path: body for method, path, _, body in hub.requests if method == "POST"}
    assert json.loads(posted["/api/repos/create"])["visibility"] == "private", "nothing is public unless asked"
    lines = [json.loads(line) for line in posted["/api/models/someone/tiny-spin/commit/main"].splitlines()]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    folder = plan.make(profile, 0).directory("spin-0")
    wanted = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert wanted | {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} == set(files)
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert files["README.md"].decode() == card.text(profile, "spin-0")
    for method, _, headers, _ in hub.requests:
        sent = {name.lower(): value for name, value in headers.items()}
        assert method != "POST" or sent["authorization"] == f"Bearer {TOKEN}"


def test_nothing_is_pushed_without_a_token_results_or_a_sound_checkpoint(
    profile: Profile, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CardError, match="'tiny' is not a hub id; write it as owner/name"):
        card.push(profile, "spin-0", "tiny")
    with pytest.raises(ResultsError, match="no such results file"):
        card.push(profile, "spin-0", "a/b", seed=7)
    weights = plan.make(profile, 0).directory("spin-0") / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + b"x")
    with pytest.raises(ArtifactError, match="changed since it was written"):
        card.push(profile, "spin-0", "a/b")
    weights.write_bytes(kept)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CardError, match="HF_TOKEN: not set"):
        card.push(profile, "spin-0", "a/b")
    assert hub.requests == [], "all of it was refused before the hub was asked"


def test_the_token_is_never_printed(
    profile: Profile, hub: LoopbackHub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    written = profiles.dump(profile, tmp_path / "cards.yaml")
    push = ["push", "--profile", str(written), "--model", "spin-0", "--repo", "someone/tiny-spin"]
    assert main(push) == 0
    assert main([*push[:-1], "no such name/x"]) == 2
    told = capsys.readouterr()
    assert TOKEN not in told.out + told.err
    assert "commit/" in told.out
    assert "no such name/x: not pushed (Repo id must" in told.out


def test_models_that_were_not_trained_here_have_no_card() -> None:
    with pytest.raises(CardError, match="base model of profile paper, which has a card of its own"):
        card.text(profiles.load("paper"), "sft")
