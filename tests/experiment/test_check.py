"""What `spin-repro check` says before a run: fits, does not fit or unknown, and which settings need less."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from huggingface_hub import constants
from loopback_hub import LoopbackHub, serve

from spin_utils.experiment import forecast, memory, plan, preflight, sizes
from spin_utils.experiment.sizes import Architecture, Machine
from spin_utils.files import artifacts, paths
from spin_utils.model.base import ModelError, gguf_path
from spin_utils.paper import results
from spin_utils.settings import profiles
from spin_utils.settings.inputs import ModelSettings

BROKEN = Path(__file__).parents[1] / "malformed" / "demonstrations" / "cut_off.jsonl"
REVISION = {"demonstrations.revision": "0" * 40}
EIGHT = sizes.other_machine(8, 80)
SEVEN = Architecture()
LAPTOP = Machine("cpu", "a laptop", 1, 10e9, 50e9, 600e9, 20e9, 2)


@pytest.fixture(autouse=True)
def _quick(home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Versions of 200 packages take a second; the test of them is the last one."""
    if "versions" not in request.node.name:
        monkeypatch.setattr(preflight, "_versions", lambda: preflight.Finding("versions", "ok", ""))


def states(report: preflight.Report, what: str) -> list[str]:
    return [finding.state for finding in report.findings if finding.what.startswith(what)]


def text(report: preflight.Report) -> str:
    return "\n".join(report.lines())


def test_the_smoke_profile_fits_here_and_everything_is_said() -> None:
    report = preflight.check(profiles.load("smoke"), LAPTOP)
    assert report.verdict == "fits"
    assert report.ready()
    said = {finding.what for finding in report.findings}
    assert {
        "versions",
        "device",
        "demonstrations",
        "model",
        "memory: spin",
        "memory: generation",
        "disk",
        "time",
    } <= said
    assert "sft 48, spin 24" in text(report)


def test_the_gpu_profile_fits_the_24_gb_it_is_made_for_and_uses_them() -> None:
    report = preflight.check(profiles.load("gpu"), sizes.other_machine(1, 24))
    assert report.verdict == "fits"
    assert states(report, "memory: ") == ["ok"] * 6
    assert preflight.check(profiles.load("gpu"), sizes.other_machine(1, 12)).verdict == "does not fit"


def test_the_released_checkpoints_fit_the_24_gb_that_the_readme_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    pinned = {f"released.spin-{t}.revision": "a" * 40 for t in range(4)}
    report = preflight.check(profiles.load("paper-released", pinned), sizes.other_machine(1, 24))
    assert report.verdict == "fits"
    assert states(report, "memory: ") == ["ok"] * 3
    for name in ("evaluation.batch_size", "mt_bench.batch_size"):
        twice = 2 * getattr(profiles.load("paper-released"), name.partition(".")[0]).batch_size
        more = preflight.check(profiles.load("paper-released", pinned | {name: twice}), sizes.other_machine(1, 24))
        assert more.verdict == "does not fit", name


def test_the_paper_profile_fits_eight_gpus_only_when_it_is_sharded() -> None:
    eight = preflight.check(profiles.load("paper", REVISION), sizes.other_machine(8, 80))
    assert eight.verdict == "fits"
    assert states(eight, "memory: spin") == ["note"]
    assert "each when sharded over 8 devices" in text(eight)
    one = preflight.check(profiles.load("paper", REVISION), sizes.other_machine(1, 80))
    assert one.verdict == "does not fit"
    assert not one.ready()
    assert "lower spin.training.micro_batch_tokens, set spin.training.gradient_checkpointing=true, or shard" in text(
        one
    )


def test_a_model_that_fits_only_sharded_is_refused_until_it_is_sharded() -> None:
    whole = preflight.check(profiles.load("paper", REVISION | {"processes.sharding": "ddp"}), EIGHT)
    assert states(whole, "memory: spin") == ["refused"]
    assert "processes.sharding=fsdp2" in text(whole)
    few = preflight.check(profiles.load("paper", REVISION | {"resources.training.gpus": 1}), EIGHT)
    assert states(few, "memory: spin") == ["refused"]


def need(profile: Any, stage: str, architecture: Architecture, lengths: sizes.Lengths) -> float:
    return next(n for n in memory.needs(profile, architecture, lengths, "cuda", 2) if n.stage == stage).total()


VLLM = {"generation.backend": "vllm", "generation.vllm.python": "/opt/vllm/bin/python"}


def test_vllm_needs_its_share_of_a_gpu_and_more_gpus_where_one_is_not_enough() -> None:
    report = preflight.check(profiles.load("paper", REVISION | VLLM), sizes.other_machine(8, 80))
    assert states(report, f"memory: {memory.VLLM}") == ["ok"]
    assert "memory: generation" not in {f.what for f in report.findings}, "the kit samples nothing"
    held_out = preflight.check(profiles.load("paper", REVISION | VLLM | {"demonstrations.validation_rows": 9}), EIGHT)
    assert {f.what for f in held_out.findings} >= {"memory: generation", f"memory: {memory.VLLM}"}
    report = preflight.check(profiles.load("paper", REVISION | VLLM), sizes.other_machine(8, 16))
    assert states(report, f"memory: {memory.VLLM}") == ["refused"]
    assert "raise generation.vllm.tensor_parallel_size" in text(report)
    lengths = sizes.lengths(profiles.load("paper"), None)
    whole, half = (
        need(profiles.load("paper", VLLM | {"generation.vllm.gpu_memory_utilization": s}), memory.VLLM, SEVEN, lengths)
        for s in (1.0, 0.5)
    )
    assert half == 2 * whole, "it takes no more than its share"
    assert whole > 2 * SEVEN.parameters
    more = preflight.check(profiles.load("paper", REVISION | VLLM | {"generation.vllm.processes": 9}), EIGHT)
    assert states(more, "vLLM") == ["refused"]


def test_vllm_on_fewer_gpus_than_there_are_takes_longer() -> None:
    lengths = sizes.lengths(profiles.load("paper"), None)

    def hours(**changes: Any) -> float:
        made = plan.make(profiles.load("paper", REVISION | VLLM | changes), 0)
        return forecast.hours(made, EIGHT, SEVEN, lengths)["pairs-0"]

    assert hours(**{"generation.vllm.processes": 2}) == pytest.approx(4 * hours())
    assert hours(**{"generation.vllm.processes": 4, "generation.vllm.tensor_parallel_size": 2}) == hours()


def test_mt_bench_is_counted_with_a_key_and_said_to_be_left_out_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles.load("paper", REVISION)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    report = preflight.check(profile, EIGHT)
    assert states(report, "left out") == ["note"]
    assert "MT-Bench is left out" in text(report)
    assert not states(report, "memory: mt_bench")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    report = preflight.check(profile, EIGHT)
    assert not states(report, "left out")
    assert states(report, "memory: mt_bench") == ["ok"]
    assert "800 requests to gpt-4 at https://api.openai.com/v1, 160 for each of 5 models" in text(report)
    small = preflight.check(profile, sizes.other_machine(8, 20))
    assert "lower mt_bench.batch_size" in text(small)
    made, lengths = plan.make(profile, 0), sizes.lengths(profile, None)
    found = forecast.hours(made, EIGHT, SEVEN, lengths)
    assert found["mt-bench-sft"] == pytest.approx(160 * forecast.JUDGE_SECONDS / 4 / 3600)
    assert found["mt-answers-sft"] == forecast.hours(made, sizes.other_machine(1, 80), SEVEN, lengths)["mt-answers-sft"]
    few = profiles.load("paper", REVISION | {"mt_bench.limit": 2})
    assert forecast.judge_requests(few.mt_bench) == 32


def test_the_assumed_questions_of_mt_bench_are_its_questions() -> None:
    from spin_utils.evaluation.mt_bench import questions
    from spin_utils.experiment import memory

    turns = [question.turns for question in questions()]
    means = tuple(round(sum(len(pair[turn]) for pair in turns) / len(turns) / sizes.CHARACTERS) for turn in (0, 1))
    assert means == forecast.MT_BENCH_QUESTIONS
    longest = max(len("".join(pair)) for pair in turns) / sizes.CHARACTERS
    assert longest < memory.MT_BENCH_TOKENS < 1.2 * longest


def test_the_control_of_table_5_is_counted_with_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from hub_rows import Hub

    profile = profiles.load("paper", REVISION)
    lengths = sizes.lengths(profile, None)
    assert lengths.control is not None
    assert (lengths.spin_rows, lengths.control.sft_rows) == (49_792, 207_865)
    hours = forecast.hours(plan.make(profile, 0), EIGHT, SEVEN, lengths)
    assert hours["sft-more-2"] == hours["sft-more-1"] > hours["spin-0"] / 2
    report = preflight.check(profile, EIGHT)
    assert states(report, "memory: sft_control") == ["note"]
    unpinned = profiles.load("paper", REVISION | {"sft_control.demonstrations.revision": ""})
    assert "pin the commit with --set sft_control.demonstrations.revision=COMMIT" in text(
        preflight.check(unpinned, EIGHT)
    )
    monkeypatch.setattr(datasets, "load_dataset", Hub(items=4))
    report = preflight.check(profile, EIGHT)
    assert [f.text for f in report.findings if f.what == "sft_control"] == ["sft 4, spin 4"]


def test_a_disk_too_small_is_refused_and_counts_every_checkpoint() -> None:
    profile = profiles.load("smoke")
    report = preflight.check(profile, dataclasses.replace(LAPTOP, disk=1e6))
    assert report.verdict == "does not fit"
    assert states(report, "disk") == ["refused"]
    assert "set SPIN_HOME to a larger disk" in text(report)
    made = plan.make(profile, 0)
    found = sizes.architecture(profile.model)
    assert found is not None
    one = 4 * found[0].parameters
    # base, sft, sft-more, spin-0 and -1, epoch 1 and 3, one subset, dpo twice; states: kept one, two of AdamW's
    expected = one * (1 + 2 + 2 + 2 + 1 + 2) + 2 * one + 2 * 3 * one
    lengths = sizes.lengths(profile, None)._replace(spin_rows=0)
    assert memory.disk(made, found[0], lengths) == expected


def test_pairs_from_a_file_count_by_their_own_length(tmp_path: Path) -> None:
    found, _ = sizes.architecture(profiles.load("smoke").model) or (None, "")
    assert found is not None
    hours, sizes_of_dpo = [], []
    for times in (1, 20):
        file = tmp_path / f"{times}.jsonl"
        file.write_text(json.dumps({"prompt": "Say", "chosen": "yes " * times, "rejected": "no " * times}) + "\n")
        profile = profiles.load("smoke", {"dpo.preferences": {"source": "file", "train": str(file)}})
        lengths = sizes.lengths(profile, None)
        hours.append(forecast.hours(plan.make(profile, 0), LAPTOP, found, lengths)["dpo"])
        needs = {need.stage: need.total() for need in memory.needs(profile, found, lengths, "cpu", 4)}
        sizes_of_dpo.append(needs["dpo"])
    assert hours[1] > 2 * hours[0]
    assert sizes_of_dpo[1] > sizes_of_dpo[0]


def test_what_is_finished_and_a_folder_of_the_users_take_no_more_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan.make(profiles.load("smoke"), 0)
    found, _ = sizes.architecture(made.profile.model) or (None, "")
    assert found is not None
    lengths, one = sizes.lengths(made.profile, None), 4 * found.parameters
    whole = memory.disk(made, found, lengths)
    own = dataclasses.replace(made.profile, model=ModelSettings("directory", path="/mine"))
    assert memory.disk(dataclasses.replace(made, profile=own), found, lengths) == whole - one
    monkeypatch.setattr(artifacts, "is_complete", lambda folder: folder == made.directory("sft"))
    assert memory.disk(made, found, lengths) == whole - one
    monkeypatch.setattr(artifacts, "is_complete", lambda folder: True)
    assert memory.disk(made, found, lengths) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"demonstrations": {"source": "file", "train": "/no/such/rows.jsonl"}},
        {"dpo.preferences": {"source": "file", "train": "/no/such/pairs.jsonl"}},
        {"dpo.preferences": {"source": "file", "train": str(BROKEN)}},
        {"evaluation.tasks": ["/no/such/task.yaml"]},
    ],
)
def test_a_file_that_cannot_be_used_is_one_finding_among_the_others(changes: dict[str, Any]) -> None:
    report = preflight.check(profiles.load("smoke", changes), LAPTOP)
    assert states(report, "plan") == ["refused"]
    assert states(report, "memory: spin") == ["ok"]
    assert report.verdict == "unknown"
    assert not report.ready()


def test_an_unknown_model_leaves_the_verdict_open_and_says_why() -> None:
    model = {"source": "hub", "name": "someone/else", "revision": "1" * 40}
    report = preflight.check(profiles.load("gpu", {"model": model}), sizes.other_machine(1, 24))
    assert report.verdict == "unknown"
    assert "sizes are unknown until its config.json can be read" in text(report)
    assert "not checked: HF_HUB_OFFLINE is set" in text(report), "offline says so"


def test_the_hub_is_asked_for_every_repository_and_each_refusal_has_its_remedy(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    profile = profiles.load("gpu", {"demonstrations.revision": "", "evaluation.limit": 1})
    hub.repositories = {
        "models/Qwen/Qwen2.5-0.5B": profile.model.revision,
        "datasets/HuggingFaceH4/ultrafeedback_binarized": "1" * 40,
        "datasets/allenai/ai2_arc": "2" * 40,
        "datasets/cais/mmlu": "3" * 40,
    }
    hub.gated = {"datasets/cais/mmlu"}
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "num_hidden_layers": 2}
    hub.configs["Qwen/Qwen2.5-0.5B"] = {"model_type": "qwen2", **config, "intermediate_size": 96, "vocab_size": 300}
    found = {wanted.name: preflight.look(wanted) for wanted in preflight.wanted(profile)}
    assert found["Qwen/Qwen2.5-0.5B"] == ("ok", f"reachable at {profile.model.revision[:8]}")
    assert found["HuggingFaceH4/ultrachat_200k"].text.endswith("--set demonstrations.revision=COMMIT")
    assert "has no revision 3949bf5f8c17" in found["HuggingFaceH4/ultrafeedback_binarized"].text
    assert found["allenai/ai2_arc"] == ("ok", "reachable")
    assert f"must be accepted at {hub.url}/datasets/cais/mmlu;" in found["cais/mmlu"].text
    assert found["Rowan/hellaswag"].text.startswith("no such repository")
    report = preflight.check(profile, sizes.other_machine(1, 24))
    assert report.verdict == "fits"
    assert not report.ready(), "it fits, but the hub refuses"
    assert "(its config.json on the hub)" in text(report)


def test_the_pairs_of_dpo_are_asked_for_whether_or_not_the_judge_has_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles.load("paper", REVISION)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    wanted = preflight.wanted(profile)
    assert "HuggingFaceH4/ultrafeedback_binarized" in {repository.name for repository in wanted}
    monkeypatch.delenv("OPENAI_API_KEY")
    assert preflight.wanted(profile) == wanted


def test_a_hub_that_does_not_answer_is_unknown_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(LoopbackHub()) as gone:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    state, said = preflight.look(preflight.Wanted("model", "a/b", "0" * 40, "model.revision"))
    assert state == "unknown"
    assert said.startswith("the hub does not answer (")


def test_the_command_prints_json_asks_the_hub_of_the_environment_and_fails_when_refused(home: Path) -> None:
    with serve(LoopbackHub()) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hf")}
        command = [sys.executable, "-m", "spin_utils", "check", "--profile", "paper-released", "--json"]
        command += ["--set", "released.spin-0.revision=" + "a" * 40, "--gpus", "1", "--gpu-memory", "80"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    report = json.loads(result.stdout)
    assert result.returncode == 1
    assert report["profile"].startswith("paper-released")
    assert not report["ready"]
    asked = {path for _, path, _, _ in hub.requests}
    assert any("zephyr-7b-sft-full-SPIN-iter0/revision/" + "a" * 40 in path for path in asked)
    assert any("SPIN-iter3" in finding["text"] and "no revision" in finding["text"] for finding in report["findings"])


def test_half_a_machine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from spin_utils.cli.main import main

    assert main(["check", "--profile", "smoke", "--gpus", "1"]) == 2
    assert "--gpus and --gpu-memory go together" in capsys.readouterr().out


def test_this_machine_is_measured() -> None:
    here = sizes.this_machine()
    assert here.devices >= 1
    assert here.flops > 1e8
    assert here.bandwidth > 1e7
    assert 0 < here.memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") or here.kind == "cuda"


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_a_tiny_model_has_the_sizes_that_the_profile_says(name: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    from spin_utils.model import base

    settings = ModelSettings("tiny", name=name, hidden_size=64, layers=3, vocabulary_size=300)
    folder = base.materialise(settings, tmp_path, ["a b c d e"] * 50, seed=0)
    config = json.loads((folder / "config.json").read_text())
    read, _ = sizes.architecture(ModelSettings("directory", path=str(folder))) or (None, "")
    said, _ = sizes.architecture(settings) or (None, "")
    assert said is not None
    assert dataclasses.replace(said, vocabulary=config["vocab_size"]) == read
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert read.parameters == sum(file.get_tensor(key).size for key in file.keys())  # noqa: SIM118


@pytest.mark.slow
def test_the_sizes_in_a_gguf_file_are_those_of_its_model() -> None:
    settings = profiles.load("cpu").model
    found, _ = sizes.architecture(settings) or (None, "")
    assert found is not None
    assert gguf_path(settings).is_file()
    assert (found.layers, found.hidden, found.key_value, found.feed_forward) == (30, 576, 192, 1536)
    assert found.parameters == 134_515_008


def test_models_of_other_families_are_refused() -> None:
    with pytest.raises(ModelError, match=r"model type 'gpt2'; the kit trains llama, mistral, qwen2"):
        sizes.of_config({"model_type": "gpt2"}, "mine")
    with pytest.raises(ModelError, match="no usable 'intermediate_size'"):
        sizes.of_config(
            {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2}, "mine"
        )


def test_hours_follow_the_work_and_the_machine() -> None:
    profile = profiles.load("paper", REVISION)
    made, eight = plan.make(profile, 0), sizes.other_machine(8, 80)
    lengths = sizes.lengths(profile, None)
    hours = forecast.hours(made, eight, Architecture(), lengths)
    assert hours["spin-1"] == pytest.approx(2 * hours["spin-0"]), "pairs of t-1 are mixed in"
    assert hours["spin-0-rows-26"] == pytest.approx(hours["spin-0-rows-14"] * 26 / 14)
    assert hours["pairs-0"] == pytest.approx(hours["pairs-3"])
    one = forecast.hours(made, sizes.other_machine(1, 80), Architecture(), lengths)
    assert one["spin-0"] == pytest.approx(8 * hours["spin-0"])
    assert {name for name in hours if name.startswith("transfer-")} == {
        f"transfer-{model}" for model in ("sft", "spin-0", "spin-1", "spin-2", "spin-3")
    }
    assert 0 < hours["transfer-sft"] < hours["eval-sft"]
    limited = profiles.load("paper", REVISION | {"evaluation.limit": 100})
    assert forecast.hours(plan.make(limited, 0), eight, Architecture(), lengths)["eval-dpo"] < hours["eval-dpo"] / 5


def test_the_limit_of_an_evaluation_counts_for_each_family() -> None:
    profile, limited = profiles.load("smoke"), profiles.load("smoke", {"evaluation.limit": 3})
    rows, _ = preflight._rows("demonstrations", profile.demonstrations)
    all_of_them = sizes.lengths(profile, rows)
    assert (all_of_them.test_rows, all_of_them.transfer_rows) == (16, 8)
    few = sizes.lengths(limited, rows)
    assert few == all_of_them._replace(test_rows=6, transfer_rows=3, preferences=few.preferences)
    found, _ = sizes.architecture(profile.model) or (None, "")
    assert found is not None
    hours, more = (forecast.hours(plan.make(limited, 0), LAPTOP, found, n) for n in (few, all_of_them))
    assert hours["eval-sft"] < more["eval-sft"]


def test_finished_steps_cost_no_hours(home: Path) -> None:
    from spin_utils.experiment import run

    made = plan.make(profiles.load("smoke"), 0)
    found, _ = sizes.architecture(made.profile.model) or (None, "")
    assert found is not None
    lengths = sizes.lengths(made.profile, None)
    run.make(made, "data")
    assert "data" not in forecast.hours(made, LAPTOP, found, lengths)


def test_the_entry_test_says_whether_there_is_anything_to_learn() -> None:
    ids, pairs = [str(i) for i in range(100)], {"seed": 0, "model": "spin-0", "beta": 0.1, "generated_drift": 0.0}
    for right, learnable in ((80, True), (52, False), (0, False)):
        drifts = [1.0] * right + [-1.0 if right else 0.0] * (100 - right)
        found, text = preflight.entry_test(pd.DataFrame({"id": ids, "real_drift": drifts, **pairs}))
        assert found == learnable
        assert ("nothing to learn (Theorem 5.2)" in text) != learnable
    _, text = preflight.entry_test(results.load_heldout(paths.REPOSITORY / "results" / "cpu"))
    assert "on 54.4% of 867 held-out pairs that differ [51.1%, 57.8%]" in text


def test_versions_are_held_to_the_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("# a lock\nnumpy==0.0.1\nno-such-package==1.0\n")
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    finding = preflight._versions()
    assert finding.state == "note"
    assert "instead of 0.0.1, no-such-package missing instead of 1.0" in finding.text


def test_a_further_task_that_cannot_be_scored_is_refused_with_its_file(tmp_path: Path) -> None:
    task = tmp_path / "mine.yaml"
    more = {"evaluation.tasks": [str(task)]}
    task.write_text("task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: missing.jsonl}}\n")
    report = preflight.check(profiles.load("smoke", more), LAPTOP)
    assert states(report, "tasks") == ["refused"]
    assert "mine.yaml cannot be loaded" in text(report)
    assert not report.ready()
