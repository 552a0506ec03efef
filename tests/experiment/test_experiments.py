"""The paper's experiments around the main chain, at the smoke profile and without notebooks."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from spin_utils.data import families
from spin_utils.data.preferences import pair_row
from spin_utils.data.rows import RowError, read_rows
from spin_utils.data.templates import encode_rows
from spin_utils.evaluation import heldout
from spin_utils.experiment import clock, plan, play, publish, run
from spin_utils.files import artifacts, disk, paths
from spin_utils.model import base, lora
from spin_utils.model.logprobs import score
from spin_utils.model.packing import Group, Pairs, write_pairs
from spin_utils.paper import results
from spin_utils.settings import profiles

pytestmark = pytest.mark.usefixtures("module_home")


def make(**changes: object) -> plan.Plan:
    """A plan of the smoke profile; what is not changed is made once for all tests."""
    return plan.make(profiles.load("smoke", {name.replace("__", "."): value for name, value in changes.items()}), 0)


def equal(a: Path, b: Path) -> bool:
    """Whether two models have the same weights."""
    return (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_a_step_taken_from_another_run_comes_with_all_that_it_was_made_from() -> None:
    run.make(make(), "sft")
    other = make(name="other")
    run.make(other, "sft")
    assert list(publish.chain(other, "sft")["chain"]) == ["data", "base", "sft"]


def test_one_run_of_iteration_0_gives_its_model_and_every_epoch_of_figure_4() -> None:
    shown = make()
    folder = run.make(shown, "spin-0")
    alone = run.make(make(spin__epochs_shown=0), "spin-0")
    longer = run.make(make(spin__epochs_shown=0, spin__training__epochs=3), "spin-0")
    assert equal(folder, alone), "the model is that of the epochs of the profile"
    assert shown.checkpoint("spin-0-epoch-3") == shown.directory("spin-0-more")
    assert not equal(folder, longer)
    assert shown.checkpoint("spin-0") == folder
    assert shown.checkpoint("spin-0-epoch-1") == folder / "epoch-1"
    assert not (folder / "epoch-2").exists(), "the model's own epoch is not kept twice"
    more = shown.directory("spin-0-more")
    run.make(shown, "spin-0-more")
    assert equal(more, longer), "what goes on ends with the same bytes as a run that was not interrupted"
    rows = [json.loads((made / "training.json").read_text())["rows"] for made in (more, longer)]
    numbers = [[{k: v for k, v in row.items() if "second" not in k} for row in run] for run in rows]
    assert numbers[0] == numbers[1]
    artifacts.verify(folder)


def test_sft_self_play_control_and_dpo_train_adapters_and_play_with_the_merged_weights() -> None:
    adapters = {"rank": 4, "dropout": 0.1}
    given = {f"{name}__lora": adapters for name in ("sft", "spin__training", "dpo__training")}
    made, longer = make(arms={}, **given), make(arms={}, spin__epochs_shown=0, spin__training__epochs=3, **given)
    starts = {"sft": "base", "sft-more-1": "sft", "spin-0": "sft", "spin-1": "spin-0", "dpo": "sft"}
    ids = torch.tensor([[5, 9, 2, 30]])
    for name, start in starts.items():
        folder = run.make(made, name)
        adapted = PeftModel.from_pretrained(base.load(made.directory(start)), folder / lora.ADAPTERS).eval()
        torch.testing.assert_close(base.load(folder)(input_ids=ids).logits, adapted(input_ids=ids).logits)
        assert not equal(folder, base.resolve(made.directory(start)))
    opponent = score(base.load(made.directory("spin-0")), play.training_pairs(made, "spin-1"), micro_batch_tokens=500)
    np.testing.assert_allclose(np.load(made.directory("spin-1") / play.LOGPS), opponent, rtol=1e-4)
    assert equal(run.make(made, "spin-0-more"), run.make(longer, "spin-0")), "as without an interruption"


def test_an_interrupted_scoring_of_the_opponent_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.load(run.make(make(), "spin-0") / play.LOGPS)
    stopped, scored = make(spin__learning_rates=[2.0e-4, 5.0e-5]), []

    def counted(model: Any, groups: list[Group], **given: Any) -> list[list[float]]:
        if len(scored) == 2:
            scored.append(0)
            raise KeyboardInterrupt
        scored.append(len(groups))
        return score(model, groups, **given)

    monkeypatch.setattr(play, "SHARD_BATCHES", 1)
    monkeypatch.setattr(play, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        run.make(stopped, "spin-0")
    folder = run.make(stopped, "spin-0")
    assert scored == [8, 8, 0, 8], "24 pairs, none of them twice"
    np.testing.assert_array_equal(np.load(folder / play.LOGPS), whole)


def test_algorithm_1_on_checkpoints_gives_the_weights_of_the_plans_steps(tmp_path: Path) -> None:
    made = make(spin__training__end_truncated=False)
    profile, start = made.profile, run.make(made, "sft")
    tokenizer = base.load_tokenizer(start)
    encoded = encode_rows(tokenizer, profile.template, run.rows(made, "spin"))

    def generate(t: int, opponent: Path) -> Path:
        work, seed = tmp_path / f"pairs-{t}", plan.stream(made.seed, t)
        work.mkdir()
        answers = play.generate(opponent, tokenizer, encoded, profile, seed=seed, work=work, what="answers")
        zipped = zip(encoded, answers, strict=True)
        rows = [pair_row(tokenizer.decode, row, t, answer) for row, answer in zipped]
        write_pairs(work / "pairs.arrow", rows)
        return work / "pairs.arrow"

    def update(t: int, opponent: Path, pairs: list[Path]) -> Path:
        work, settings = tmp_path / f"spin-{t}", plan.training_of(profile, f"spin-{t}")
        work.mkdir()
        play.train_from(opponent, Pairs(pairs), settings, seed=plan.stream(made.seed, t), work=work, what="SPIN")
        return work

    thetas = plan.algorithm_1(start, 2, generate, update, mix_previous=profile.spin.mix_previous)
    for t, theta in enumerate(thetas):
        assert equal(theta, run.make(made, f"spin-{t}"))


def test_subsets_of_figure_5_are_nested_and_of_the_papers_proportions() -> None:
    made = make(spin__subsets=[14, 26])
    run.make(made, "pairs-0")
    whole, small, large = (
        play.training_pairs(made, name).table["id"].to_pylist()
        for name in ("spin-0", "spin-0-rows-14", "spin-0-rows-26")
    )
    assert (len(whole), len(small), len(large)) == (24, 24 * 14 // 50, 24 * 26 // 50)
    assert small == large[: len(small)]
    assert large == whole[: len(large)]


def test_preference_pairs_from_samples_hold_a_right_and_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    run.make(make(), "data")
    with monkeypatch.context() as patch:
        patch.setattr(families, "grade", lambda row, text: 0.0)
        with pytest.raises(RowError, match=r"none of 8 prompts got answers .* raise dpo.answers_per_prompt"):
            run.make(make(dpo__preferences={"source": "samples", "rows": 8}), "preferences")
    monkeypatch.setattr(families, "grade", lambda row, text: float(len(text) % 2))
    made = make(dpo__preferences={"source": "samples", "rows": 12})
    pairs = Pairs([run.make(made, "preferences") / "pairs.arrow"])
    used = {row["id"] for row in read_rows(made.directory("data") / "spin.jsonl")}
    assert 0 < len(pairs) <= 12
    assert not used & set(pairs.table["id"].to_pylist()), "DPO gets prompts that SPIN does not use"
    for group in pairs:
        assert group.response_ids[0] != group.response_ids[1]


def test_dpo_on_samples_is_left_out_where_nothing_grades_them() -> None:
    data = {"source": "file", "train": "rows.jsonl"}
    made = profiles.load("smoke", {"demonstrations": data, "dpo.preferences": {"source": "samples"}})
    assert re.fullmatch(r"DPO is left out.*demonstrations are not generated.*", plan.left_out(made))
    assert plan.left_out(profiles.load("cpu")) == ""


def test_a_player_equal_to_its_opponent_drifts_nowhere_on_held_out_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    made, streams, honest = make(), [], heldout.sample
    monkeypatch.setattr(
        heldout, "sample", lambda *given, **named: streams.extend(named["streams"]) or honest(*given, **named)
    )
    folder, rows = run.make(made, "spin-0"), run.rows(made, "validation")
    profile = made.profile
    same = heldout.drifts(folder, folder, rows, template=profile.template, generation=profile.generation, seed=1)
    assert [item["id"] for item in same] == [row["id"] for row in rows]
    assert all(item["real_drift"] == item["generated_drift"] == 0 for item in same)
    assert len(set(streams)) == len(rows)
    assert min(streams) >= 1 << 32, "no random numbers of training: more prompts than anyone trains on"
    document = json.loads((run.make(made, "heldout-spin-0") / "heldout.json").read_text())
    assert document["beta"] == plan.training_of(profile, "spin-0").beta
    assert any(item["real_drift"] for item in document["items"])
    assert [item["real_bytes"] for item in document["items"]] == [len(row["response"].encode()) for row in rows]
    assert all(item["real_logp"] < 0 for item in document["items"])
    tokenizer = base.load_tokenizer(folder)
    how = {"template": profile.template, "generation": profile.generation, "seed": 1, "independent": folder}
    judged = heldout.drifts(folder, folder, rows, **how)
    for item, row in zip(judged, encode_rows(tokenizer, profile.template, rows), strict=True):
        assert item["real_surprise"] == pytest.approx(-item["real_logp"] / len(row.response_ids))
    assert document["items"][0]["generated_surprise"] != judged[0]["generated_surprise"], (
        "of the base model, not of SPIN"
    )


def test_a_generated_response_equal_to_the_real_one_is_a_tie_however_the_two_are_rounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, honest = make(), heldout.score
    folder, rows = run.make(made, "spin-0"), run.rows(made, "validation")
    encoded = encode_rows(base.load_tokenizer(folder), made.profile.template, rows)

    def sample(*given: object, **named: object) -> list[SimpleNamespace]:
        drawn = [list(row.response_ids) for row in encoded]
        return [SimpleNamespace(token_ids=ids if place else ids[1:]) for place, ids in enumerate(drawn)]

    def score(*given: object, **named: object) -> list[list[float]]:
        return [[pair[0] + noise.gauss(0, 0.1), pair[1] + noise.gauss(0, 0.1)] for pair in honest(*given, **named)]

    noise = random.Random(0)
    monkeypatch.setattr(heldout, "sample", sample)
    monkeypatch.setattr(heldout, "score", score)
    how = {"template": made.profile.template, "generation": made.profile.generation, "seed": 1}
    differs, *equal = heldout.drifts(folder, folder, rows, **how, independent=folder)
    assert differs["real_drift"] != differs["generated_drift"]
    assert len(equal) > 1
    assert all(item["real_drift"] == item["generated_drift"] for item in equal)
    assert all(item["real_surprise"] == item["generated_surprise"] for item in equal)


def test_results_cut_the_longer_run_at_the_models_own_epoch_and_estimates_follow_them() -> None:
    made = make()
    assert "no earlier times" in clock.outlook([made])
    for name in ("eval-sft", "eval-spin-0", "transfer-sft", "heldout-spin-0", "spin-0-more"):
        run.make(made, name)
    folder = paths.results("smoke")
    stale = folder / "seed-7" / "training" / "sft.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    theirs = [folder / "tables" / "arms.md", folder / "run.crate.zip", folder / "seed-7" / "cards" / "sft.md"]
    for path in [*theirs, folder / "protocol.md"]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert publish.publish([plan.make(made.profile, 5)]) == []
    assert stale.exists(), "a run without an evaluation takes nothing away, such as the results of a fresh clone"
    publish.publish([made])
    assert not stale.exists(), "results of another run are not drawn with those of this one"
    assert not any(path.exists() for path in theirs), "and what was drawn from them does not stand beside these"
    assert (folder / "protocol.md").exists()
    training = results.load_training(folder)
    assert training[training["model"] == "spin-0"]["epoch"].max() == 2
    assert training[training["model"] == "spin-0-epoch-3"]["epoch"].max() == 3
    assert (folder / "seed-0" / "transfer" / "sft.json").is_file()
    assert set(results.load_heldout(folder)["model"]) == {"spin-0"}
    assert clock.measured("smoke")[0]["spin-0"] > 0
    run.record_drawing(plan.tables([made]), [made], [])
    assert not plan.tables([made]).directory.exists(), "drawing early must not look like the end of the run"
    told = publish.describe_provenance("smoke", 0, "spin-0")
    weights = disk.file_hash(made.directory("spin-0") / "model.safetensors")
    assert f"model.safetensors sha256 {weights}" in told, "from a cell of a table to the file of its model"
    assert told.index("eval-spin-0-") < told.index("spin-0-") < told.index("base-")
    clock.remember("smoke")
    shutil.rmtree(made.directory("transfer-sft"))
    assert f", as measured on {artifacts.environment()['device']})" in clock.outlook([made])
    shutil.rmtree(folder)
    assert "no earlier times" not in clock.outlook([made]), "remembered, though the results that said so are gone"


def test_a_protocol_is_compared_with_the_commits_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(message: str) -> str:
        git("add", "-A")
        git("commit", "-qm", message)
        return git("rev-parse", "HEAD")

    made_at: list[str] = []
    monkeypatch.setattr(results, "chains", lambda _: [("", {"eval-sft": {"commit": each}}) for each in made_at])
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    folder = tmp_path / "results" / "cpu"
    monkeypatch.setattr(paths, "results", lambda profile: tmp_path / "results" / profile)
    git("init", "-q")
    (tmp_path / "code").write_text("1")
    before = commit("code")
    assert publish.protocol("cpu") == ""
    folder.mkdir(parents=True)
    (folder / "protocol.md").write_text("n = 900")
    assert "has uncommitted changes" in publish.protocol("cpu")
    planned = commit("protocol")
    made_at.append(planned)
    assert publish.protocol("cpu").endswith(f"(commit {planned[:12]}) is older than every result.")
    made_at.append(before)
    assert "is not older than all results:" in publish.protocol("cpu")
    (folder / "protocol.md").write_text("n = 90")
    assert "has uncommitted changes" in publish.protocol("cpu")
    shallow, none = tmp_path / "shallow", tmp_path.parent
    git("clone", "-q", "--depth=1", f"file://{tmp_path}", str(shallow))
    monkeypatch.setattr(paths, "results", lambda profile: shallow / "results" / profile)
    for repository in (shallow, none):
        monkeypatch.setattr(paths, "REPOSITORY", repository)
        assert "history is missing, so nothing shows" in publish.protocol("cpu")
