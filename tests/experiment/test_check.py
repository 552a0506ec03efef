"""What `spin-repro check` says before a run, and what is refused then because it would end a run after hours."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from stand_in_hub import StandInHub
from tiny_models import trainable_folder

from spin_utils.cli import main as cli
from spin_utils.data.rows import RowError, write_rows
from spin_utils.data.templates import encode_conversation
from spin_utils.evaluation import suites
from spin_utils.evaluation.answers import EvaluationError
from spin_utils.experiment import estimate, plan, preflight, run
from spin_utils.experiment.cost import Architecture, Machine
from spin_utils.files import artifacts, paths
from spin_utils.files.paths import KitError
from spin_utils.model import base
from spin_utils.model.base import ModelError
from spin_utils.settings import profiles

BROKEN = Path(__file__).parents[1] / "malformed" / "demonstrations" / "cut_off.jsonl"
REVISION = {"demonstrations.revision": "0" * 40}
EIGHT = estimate.machine(8, 80)
SEVEN = Architecture()
LAPTOP = Machine("cpu", "a laptop", 1, 10e9, 50e9, 600e9, 20e9, 2)
GOOD = {"prompt": "who sat?", "chosen": "the cat", "rejected": "the dog"}


versions = preflight._versions


@pytest.fixture(autouse=True)
def _quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of 200 packages take a second; one test is of them."""
    monkeypatch.setattr(preflight, "_versions", lambda: preflight.Finding("versions", "ok", ""))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The folder of a tiny model."""
    return trainable_folder(tmp_path / "tiny")


def states(report: preflight.Report, what: str) -> list[str]:
    return [finding.state for finding in report.findings if finding.what.startswith(what)]


def text(report: preflight.Report) -> str:
    return "\n".join(report.lines())


def test_the_smoke_profile_fits_here_and_everything_is_said() -> None:
    report = preflight.check(profiles.load("smoke"), LAPTOP)
    assert report.verdict == "fits"
    assert report.ready()
    said = {finding.what for finding in report.findings}
    assert said >= {"versions", "device", "demonstrations", "model", "memory: spin", "memory: generation", "disk"}
    assert "time" in said
    assert "sft 48, spin 24" in text(report)


PINNED = {f"released.spin-{t}.revision": "a" * 40 for t in range(4)}


@pytest.mark.parametrize(
    ("profile", "changes", "memory", "verdict"),
    [
        ("gpu", {}, 24, "fits"),
        ("gpu", {}, 12, "does not fit"),
        ("gpu-7b", {}, 24, "fits"),
        ("paper-released", PINNED, 24, "fits"),
    ],
)
def test_profiles_fit_the_memory_that_they_and_the_readme_name(
    profile: str, changes: dict[str, Any], memory: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    report = preflight.check(profiles.load(profile, changes), estimate.machine(1, memory))
    assert report.verdict == verdict
    assert (set(states(report, "memory: ")) == {"ok"}) == (verdict == "fits")


def test_main_memory_has_room_for_the_whole_model_of_every_process() -> None:
    for name, changes, gpus, needed in (("gpu-7b", {}, 1, 29.6), ("paper", REVISION, 8, 237)):
        machine, profile = estimate.machine(gpus, 80), profiles.load(name, changes)
        assert f"{needed} GB of an unknown size beside the GPUs" in text(preflight.check(profile, machine))
        report = preflight.check(profile, dataclasses.replace(machine, host=needed * 0.9e9))
        assert states(report, "memory: main") == ["refused"]
        assert report.verdict == "does not fit"


def test_the_paper_profile_fits_eight_gpus_only_when_it_is_sharded() -> None:
    eight = preflight.check(profiles.load("paper", REVISION), EIGHT)
    assert eight.verdict == "fits"
    assert states(eight, "memory: spin") == ["note"]
    assert "each when sharded over 8 devices" in text(eight)
    one = preflight.check(profiles.load("paper", REVISION), estimate.machine(1, 80))
    assert one.verdict == "does not fit"
    assert not one.ready()
    assert "lower spin.training.micro_batch_tokens, set spin.training.gradient_checkpointing=true" in text(one)
    whole = preflight.check(profiles.load("paper", REVISION | {"processes.sharding": "ddp"}), EIGHT)
    assert states(whole, "memory: spin") == ["refused"]
    assert "processes.sharding=fsdp2" in text(whole)
    small = {"spin.training.micro_batch_tokens": 2048, "dpo": None, "sft_more": 0}
    loaded = preflight.check(profiles.load("paper", REVISION | small), estimate.machine(8, 24))
    assert states(loaded, "memory: spin") == ["refused"], "its shard fits, but every process loads all 29 GB first"
    assert "every process loads the whole model first" in text(loaded)


def test_vllm_needs_a_gpu_for_each_part_of_each_process() -> None:
    by_vllm = REVISION | {"generation.backend": "vllm", "generation.vllm.python": "/opt/vllm/bin/python"}
    assert not states(preflight.check(profiles.load("paper", by_vllm), EIGHT), "vLLM")
    more = preflight.check(profiles.load("paper", by_vllm | {"generation.vllm.processes": 9}), EIGHT)
    assert states(more, "vLLM") == ["refused"]


def test_mt_bench_is_counted_with_a_key_and_said_to_be_left_out_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles.load("paper", REVISION)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    report = preflight.check(profile, EIGHT)
    assert states(report, "left out") == ["note"]
    assert not states(report, "memory: mt_bench")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    report = preflight.check(profile, EIGHT)
    assert not states(report, "left out")
    assert states(report, "memory: mt_bench") == ["ok"]
    assert "about 800 requests to gpt-4 at https://api.openai.com/v1, on the account" in text(report)


def test_a_judge_on_this_machine_has_to_fit_as_well(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = {"source": "directory", "path": str(tiny)}
    profile = profiles.load("gpu", {"mt_bench.judge_model": judge})
    assert states(preflight.check(profile, estimate.machine(1, 24)), "memory: judge") == ["ok"]
    config = json.loads((tiny / "config.json").read_text())
    big = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128_256}
    (tiny / "config.json").write_text(json.dumps({**config, **big, "num_attention_heads": 64, "head_dim": 128}))
    report = preflight.check(profile, dataclasses.replace(estimate.machine(1, 80), host=100e9))
    assert states(report, "memory: judge") == states(report, "memory: main") == ["refused"]
    assert "take a smaller mt_bench.judge_model" in text(report)
    hub = {"source": "hub", "name": "someone/judge", "revision": "1" * 40}
    report = preflight.check(profiles.load("gpu", {"mt_bench.judge_model": hub}), estimate.machine(1, 24))
    assert report.verdict == "unknown"
    assert "the judge's sizes are unknown" in text(report)


def test_the_control_of_table_5_is_counted_with_its_own_rows() -> None:
    profile = profiles.load("paper", REVISION)
    rows = estimate.rows_of(profile, None)
    assert (rows["spin"], rows["control"]) == (49_792, 207_865)
    hours = estimate.hours(plan.make(profile, 0), estimate.workload(profile, EIGHT, None), SEVEN, rows)
    assert hours["sft-more-2"] == hours["sft-more-1"] > hours["spin-0"] / 2
    unpinned = profiles.load("paper", REVISION | {"sft_control.demonstrations.revision": ""})
    report = preflight.check(unpinned, EIGHT)
    assert states(report, "memory: sft_control") == ["note"]
    assert "pin the commit with --set sft_control.demonstrations.revision=COMMIT" in text(report)


def test_a_disk_too_small_is_refused_and_counts_every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles.load("smoke")
    report = preflight.check(profile, dataclasses.replace(LAPTOP, disk=1e6))
    assert report.verdict == "does not fit"
    assert states(report, "disk") == ["refused"]
    assert "set SPIN_HOME to a larger disk" in text(report)
    made = plan.make(profile, 0)
    found = estimate.architecture(profile.model)
    assert found is not None
    one = 4 * found[0].parameters
    # base, sft, sft-more, spin-0 and -1, epoch 1 and 3, subset, arm, dpo twice; states: kept one, two of AdamW's
    expected = one * (1 + 2 + 2 + 2 + 1 + 1 + 2) + 2 * one + 2 * 3 * one
    assert estimate.disk(made, found[0]) == expected
    few = [plan.make(profiles.load("smoke", {"spin.epochs_shown": shown}), 0) for shown in (0, 1)]
    assert estimate.disk(few[1], found[0]) == estimate.disk(few[0], found[0]) + one, "the epoch before the model's"
    monkeypatch.setattr(artifacts, "is_complete", lambda folder: folder == made.directory("sft"))
    assert estimate.disk(made, found[0]) == expected - one, "what is finished takes no more"
    monkeypatch.setattr(artifacts, "is_complete", lambda folder: folder != made.directory("spin-0-more"))
    assert estimate.disk(made, found[0]) == one + 2 * 3 * one, "epoch 3, and states"


def test_a_finished_run_takes_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "is_complete", lambda folder: True)
    assert "every step is done" in text(preflight.check(profiles.load("smoke"), LAPTOP))


def test_released_checkpoints_take_their_downloads_on_disk_and_no_more() -> None:
    profile = profiles.load("paper-released", PINNED)
    assert estimate.disk(plan.make(profile, 0), SEVEN) == 5 * 2 * SEVEN.parameters


@pytest.mark.parametrize(
    ("changes", "refused", "verdict"),
    [
        ({"demonstrations": {"source": "file", "train": "/no/rows.jsonl"}}, {"demonstrations", "plan"}, "unknown"),
        ({"dpo.preferences": {"source": "file", "train": str(BROKEN)}}, {"dpo"}, "fits"),
        ({"evaluation.tasks": ["/no/such/task.yaml"]}, {"tasks"}, "fits"),
        ({"generation.backend": "vllm", "generation.vllm.python": "/no/python"}, {"generation"}, "fits"),
    ],
)
def test_what_cannot_be_used_is_one_finding_among_the_others(
    changes: dict[str, Any], refused: set[str], verdict: str
) -> None:
    report = preflight.check(profiles.load("smoke", changes), LAPTOP)
    assert {finding.what for finding in report.findings if finding.state == "refused"} == refused
    assert states(report, "memory: spin") == ["ok"]
    assert report.verdict == verdict
    assert states(report, "time") == ["ok"] * (verdict == "fits")
    assert not report.ready()


def test_a_template_or_a_row_that_a_run_would_refuse_is_refused_by_the_check(tiny: Path) -> None:
    rows = [{"prompt": f"Say {i}", "response": "word " * (1000 if i == 7 else 1)} for i in range(30)]
    changes = {
        "model": {"source": "directory", "path": str(tiny)},
        "demonstrations": {"source": "file", "train": str(write_rows(tiny / "rows.jsonl", rows))},
        "template": {"kind": "chat"},
        "dpo": None,
    }
    report = preflight.check(profiles.load("smoke", changes), LAPTOP)
    assert states(report, "demonstrations") == ["ok", "refused"]
    assert "(rows-8): response of" in text(report)
    assert states(report, "model") == ["ok"]
    (tiny / "chat_template.jinja").write_text("hello")
    report = preflight.check(profiles.load("smoke", changes), LAPTOP)
    assert states(report, "model") == ["refused"]
    assert "the chat template writes the user's message 0 times" in text(report)


def test_an_unknown_model_and_a_hub_out_of_reach_leave_the_verdict_open(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"source": "hub", "name": "someone/else", "revision": "1" * 40}
    report = preflight.check(profiles.load("gpu", {"model": model}), estimate.machine(1, 24))
    assert report.verdict == "unknown"
    assert "sizes are unknown until its config.json can be read" in text(report)
    assert "not checked: HF_HUB_OFFLINE is set" in text(report)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert preflight.look(preflight.Wanted("model", "a/b", "0" * 40, "model.revision"))[0] == "unknown"


def test_the_hub_is_asked_for_every_repository_and_each_refusal_has_its_remedy(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    profile = profiles.load("gpu", {"demonstrations.revision": "", "evaluation.limit": 1})
    hub.repositories = {
        "models/Qwen/Qwen2.5-0.5B": profile.model.revision,
        "datasets/HuggingFaceH4/ultrafeedback_binarized": "1" * 40,
        "datasets/allenai/ai2_arc": suites.REVISIONS["allenai/ai2_arc"],
        "datasets/cais/mmlu": suites.REVISIONS["cais/mmlu"],
    }
    hub.gated = {"datasets/cais/mmlu"}
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "num_hidden_layers": 2}
    config |= {"model_type": "qwen2", "intermediate_size": 96, "vocab_size": 300}
    hub.files["models/Qwen/Qwen2.5-0.5B"] = {"config.json": json.dumps(config).encode()}
    found = {wanted.name: preflight.look(wanted) for wanted in preflight.wanted(profile)}
    assert found["Qwen/Qwen2.5-0.5B"] == ("ok", f"reachable at {profile.model.revision[:8]}")
    assert found["HuggingFaceH4/ultrachat_200k"][1].endswith("--set demonstrations.revision=COMMIT")
    assert "has no revision 3949bf5f8c17" in found["HuggingFaceH4/ultrafeedback_binarized"][1]
    assert found["allenai/ai2_arc"] == ("ok", "reachable at 210d026f")
    assert f"must be accepted at {constants.ENDPOINT}/datasets/cais/mmlu;" in found["cais/mmlu"][1]
    assert found["Rowan/hellaswag"][1].startswith("no such repository")
    report = preflight.check(profile, estimate.machine(1, 24))
    assert report.verdict == "fits"
    assert not report.ready(), "it fits, but the hub refuses"
    assert "(its config.json on the hub)" in text(report)
    assert "without network a run would fail: not fetched: Qwen/Qwen2.5-0.5B (model), " in text(report)


def test_a_model_on_the_hub_that_is_no_decoder_is_one_finding(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    hub.repositories["models/a/t5"] = "1" * 40
    hub.files["models/a/t5"] = {"config.json": b'{"model_type": "t5"}'}
    hub.repositories["datasets/a/rows"] = "1" * 40
    model, rows = ({"source": "hub", "name": f"a/{name}", "revision": "1" * 40} for name in ("t5", "rows"))
    changes = {"model": model, "demonstrations": rows | {"train": "no_such_split"}}
    report = preflight.check(profiles.load("gpu", changes), estimate.machine(1, 24))
    assert states(report, "demonstrations") == ["refused"], "the hub answers, so the rows are at fault"
    assert states(report, "model") == ["refused"]
    assert "a/t5: config.json does not describe a causal language model (ValueError: Unrecognized" in text(report)


def test_the_command_prints_json_and_fails_when_the_hub_refuses(
    hub: StandInHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    retried = logging.getLogger("huggingface_hub.utils._http").warning
    monkeypatch.setattr(preflight, "_versions", lambda: retried("again") or preflight.Finding("versions", "ok", ""))
    pinned = "released.spin-0.revision=" + "a" * 40
    machine = ["--gpus", "1", "--gpu-memory", "80"]
    assert cli.main(["check", "--profile", "paper-released", "--json", "--set", pinned, *machine]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["profile"].startswith("paper-released")
    assert not report["ready"]
    assert any("zephyr-7b-sft-full-SPIN-iter0/revision/" + "a" * 40 in path for path in hub.requests)
    assert any("SPIN-iter3" in finding["text"] and "no revision" in finding["text"] for finding in report["findings"])


def test_hours_follow_the_work_and_the_machine() -> None:
    def hours(machine: Machine, **changes: Any) -> dict[str, float]:
        profile = profiles.load("paper", REVISION | changes)
        run = estimate.workload(profile, machine, None)
        return estimate.hours(plan.make(profile, 0), run, SEVEN, estimate.rows_of(profile, None))

    eight, one = hours(EIGHT), hours(estimate.machine(1, 80))
    assert eight["spin-1"] == pytest.approx(2 * eight["spin-0"]), "pairs of t-1 are mixed in"
    assert eight["spin-0-rows-26"] == pytest.approx(eight["spin-0-rows-14"] * 26 / 14)
    assert one["spin-0"] == pytest.approx(8 * eight["spin-0"])
    assert 0 < eight["transfer-sft"] < eight["eval-sft"]
    assert hours(EIGHT, **{"evaluation.limit": 100})["eval-dpo"] < eight["eval-dpo"] / 5
    alone = hours(EIGHT, **{"spin.mix_previous": False})
    triplets = hours(EIGHT, **{"spin.mix_previous": False, "spin.training.historical": 0.1})
    assert triplets["spin-0"] == alone["spin-1"] < triplets["spin-1"] < 1.5 * alone["spin-1"], "one more response"
    local = {"evaluation.suite": "local", "demonstrations.test_rows": 100}
    arms = {"it": {"generation.max_new_tokens": 64}, "one": {"generation.batch_size": 1, "generation.temperature": 0.5}}
    armed = hours(EIGHT, arms=arms | {"many": {"spin.answers_per_prompt": 64}})
    assert armed["pairs-0-arm-many"] == pytest.approx(64 * eight["pairs-0"])
    assert 1.5 * armed["pairs-0-arm-it"] < eight["pairs-0"] < armed["pairs-0-arm-one"] / 2
    assert armed["spin-0-arm-it"] < armed["spin-0-arm-one"] == eight["spin-0"]
    drawn = hours(EIGHT, **local, **{"evaluation.samples": 2})["eval-sft"]
    assert drawn == pytest.approx(3 * hours(EIGHT, **local)["eval-sft"])


def test_the_gpu_profile_says_the_minutes_of_the_cost_model() -> None:
    profile = profiles.load("gpu")
    known = estimate.architecture(profile.model)
    assert known is not None
    run, rows = estimate.workload(profile, estimate.machine(1, 80), None), estimate.rows_of(profile, None)
    minutes = 60 * sum(estimate.hours(plan.make(profile, 0), run, known[0], rows).values())
    for file in (profiles.PROFILES / "gpu.yaml", paths.REPOSITORY / "README.md"):
        assert f"{minutes:.0f} minutes by the cost model" in file.read_text().replace("\n# ", " "), file


def test_versions_are_held_to_the_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("# a lock\nnumpy==0.0.1\nno-such-package==1.0\n")
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    finding = versions()
    assert finding.state == "note"
    assert "instead of 0.0.1, no-such-package missing instead of 1.0" in finding.text
    installed = version("typing_extensions")
    (tmp_path / "requirements.lock").write_text(f"Typing.Extensions=={installed}\n")
    assert versions().state == "ok", "names are compared as pip compares them"


def pairs(tmp_path: Path, *records: Any) -> dict[str, str]:
    return {"source": "file", "train": str(write_rows(tmp_path / "pairs.jsonl", records))}


def test_pairs_with_a_held_out_prompt_are_refused_before_any_work(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": f"Say {i}", "response": f"{i}"} for i in range(20)])
    write_rows(tmp_path / "test.jsonl", [{"id": "t", "prompt": "Say it", "response": "it"}])
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    changes = {"demonstrations": {"source": "file", **files}, "dpo.preferences": pairs(tmp_path, GOOD)}
    profile = profiles.load("smoke", changes)
    preflight.check_inputs(profile)
    pairs(tmp_path, GOOD, GOOD | {"prompt": "Say it"})
    with pytest.raises(RowError, match=r"dpo\.preferences, row pairs-2: .* is held out for evaluation \(row t\)"):
        preflight.check_inputs(profile)


def test_what_would_end_a_run_after_its_main_chain_is_refused_before_any_work(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"Say {i}", "response": f"{i}"} for i in range(30)])
    data = {"source": "file", "train": str(tmp_path / "rows.jsonl"), "spin_rows": 20}
    with pytest.raises(RowError, match=r"spin\.subsets: 1 fiftieths of 20 prompts is less than one; raise"):
        preflight.check_inputs(profiles.load("smoke", {"demonstrations": data, "spin.subsets": [1]}))


def test_what_an_arm_trains_with_is_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    arm = {"spin.training.optimizer": "adamw", "spin.training.trackers": ["wandb"]}
    plain, armed = (
        profiles.load("smoke", {"sft": None, "sft_more": 0, "dpo": None, "arms": a}) for a in ({}, {"it": arm})
    )
    with pytest.raises(KitError, match="wandb"):
        preflight.check_inputs(armed)
    needs = [next(n for s, n, _ in estimate.memory(p, SEVEN, EIGHT) if s == "spin").sharded for p in (plain, armed)]
    assert needs[1]["moments"] == 2 * needs[0]["moments"]
    more = estimate.disk(plan.make(armed, 0), SEVEN) - estimate.disk(plan.make(plain, 0), SEVEN)
    assert more == 3 * estimate.checkpoint(SEVEN), "its model, and two states with another moment"


def test_a_tracker_without_an_account_is_found_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Error(Exception):
        pass

    def login() -> None:
        raise Error("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=login, Error=Error))
    with pytest.raises(KitError, match=r"'wandb': No API key configured.*`wandb login`.*WANDB_MODE=offline"):
        preflight.check_inputs(profiles.load("smoke", {"sft.trackers": ["wandb"]}))


def test_answers_of_an_arm_that_are_longer_or_more_are_counted(tiny: Path) -> None:
    def needs(arm: dict[str, Any]) -> dict[str, float]:
        profile = profiles.load("smoke", {"arms": {"it": arm} if arm else {}})
        return {stage: need.total() for stage, need, _ in estimate.memory(profile, SEVEN, EIGHT)}

    plain, many = needs({}), needs({"spin.answers_per_prompt": 64})
    wide, long = needs({"generation.batch_size": 512}), needs({"generation.max_new_tokens": 2048})
    assert [stage for stage in plain if wide[stage] > plain[stage]] == ["generation"]
    assert [stage for stage in plain if long[stage] > plain[stage]] == ["spin", "generation"]
    assert [stage for stage in plain if many[stage] > plain[stage]] == ["spin"]
    with pytest.raises(base.ModelError, match=r"the longest spin prompt with its answer"):
        armed = profiles.load("smoke", {"arms": {"it": {"generation.max_new_tokens": 2048}}})
        preflight.check_fit(tiny, armed, {"spin": [{"id": "1", "prompt": "some words", "response": "yes"}]})


def test_the_judge_of_released_checkpoints_is_checked_before_any_work(tmp_path: Path) -> None:
    judge = {"source": "directory", "path": str(tmp_path / "none")}
    released = profiles.load("paper-released", PINNED | {"mt_bench.judge_model": judge})
    with pytest.raises(ModelError, match="none"):
        preflight.check_inputs(released)


def test_a_notebook_on_its_own_refuses_a_task_before_training(home: Path) -> None:
    (home / "mine.yaml").write_text("task: mine")
    made = plan.make(profiles.load("smoke", {"evaluation.tasks": [str(home / "mine.yaml")]}), 0)
    with pytest.raises(EvaluationError, match=r"mine\.yaml cannot be loaded"):
        run.make(made, "eval-sft")
    assert artifacts.is_complete(made.directory("base"))
    assert not artifacts.is_complete(made.directory("sft"))


def test_prompts_and_answers_that_need_more_positions_than_the_model_has_are_refused(tiny: Path) -> None:
    rows = {"spin": [{"id": "1", "prompt": "some words", "response": "yes"}]}
    profile = profiles.load("smoke")
    preflight.check_fit(tiny, profile, rows)
    with pytest.raises(base.ModelError, match=r"has 2048 positions, .* needs .* lower .* generation\.max_new_tokens"):
        preflight.check_fit(tiny, profiles.load("smoke", {"generation.max_new_tokens": 2048}), rows)
    prompt = len(encode_conversation(base.load_tokenizer(tiny), profile.template, ["some words"]))
    full = {"generation.max_new_tokens": 2048 - prompt, "evaluation.max_new_tokens": 2048 - prompt}
    preflight.check_fit(tiny, profiles.load("smoke", {**full, "spin.training.end_truncated": False}), rows)
    with pytest.raises(base.ModelError, match="needs 2049; shorten it"):
        preflight.check_fit(tiny, profiles.load("smoke", full), rows)
    rows = {"transfer": [{"id": "1", "prompt": "some more words", "response": "yes"}]}
    with pytest.raises(base.ModelError, match=r"the longest transfer prompt .* evaluation\.max_new_tokens"):
        preflight.check_fit(tiny, profiles.load("smoke", full), rows)
    judged = profiles.load("smoke", {"mt_bench": {"judge": "gpt-4", "max_new_tokens": 2048}})
    with pytest.raises(base.ModelError, match=r"the longest question of MT-Bench .* mt_bench\.max_new_tokens"):
        preflight.check_fit(tiny, judged, {})


def test_rows_and_pairs_longer_than_the_model_are_refused_before_training(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 96}))
    rows = [{"id": "1", "prompt": "some words", "response": "cat " * 100}]
    few = {"generation.max_new_tokens": 8, "evaluation.max_new_tokens": 8}
    for split in ("sft", "spin"):
        with pytest.raises(base.ModelError, match=f"has 96 positions, and the longest {split} row needs"):
            preflight.check_fit(tiny, profiles.load("smoke", few), {split: rows})
    profile = profiles.load("smoke", {"dpo.preferences": pairs(tiny, GOOD | {"rejected": "cat " * 100})})
    with pytest.raises(base.ModelError, match=r"the longest row of dpo\.preferences needs"):
        preflight.check_pair_lengths(tiny, profile)
