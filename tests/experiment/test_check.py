"""What `spin-repro check` says before a run: fits, does not fit or unknown, and which settings need less."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from loopback_hub import LoopbackHub, serve

from spin_utils.cli import main as cli
from spin_utils.data.rows import write_rows
from spin_utils.evaluation import suites
from spin_utils.experiment import estimate, plan, preflight
from spin_utils.experiment.estimate import Architecture, Machine
from spin_utils.files import artifacts, paths
from spin_utils.model import base
from spin_utils.settings import profiles
from spin_utils.settings.inputs import ModelSettings

BROKEN = Path(__file__).parents[1] / "malformed" / "demonstrations" / "cut_off.jsonl"
REVISION = {"demonstrations.revision": "0" * 40}
EIGHT = estimate.machine(8, 80)
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
    monkeypatch.setattr(artifacts, "is_complete", lambda folder: folder == made.directory("sft"))
    assert estimate.disk(made, found[0]) == expected - one, "what is finished takes no more"


@pytest.mark.parametrize(
    ("changes", "refused", "verdict"),
    [
        ({"demonstrations": {"source": "file", "train": "/no/rows.jsonl"}}, {"demonstrations", "plan"}, "unknown"),
        ({"dpo.preferences": {"source": "file", "train": str(BROKEN)}}, {"dpo"}, "fits"),
        ({"evaluation.tasks": ["/no/such/task.yaml"]}, {"tasks"}, "fits"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_finding_among_the_others(
    changes: dict[str, Any], refused: set[str], verdict: str
) -> None:
    report = preflight.check(profiles.load("smoke", changes), LAPTOP)
    assert {finding.what for finding in report.findings if finding.state == "refused"} == refused
    assert states(report, "memory: spin") == ["ok"]
    assert report.verdict == verdict
    assert states(report, "time") == ["ok"] * (verdict == "fits")
    assert not report.ready()


def test_a_template_or_a_row_that_a_run_would_refuse_is_refused_by_the_check(tmp_path: Path) -> None:
    base.materialise(ModelSettings("tiny", name="llama", hidden_size=16, layers=1), tmp_path, ["some words"], seed=0)
    rows = [{"prompt": f"Say {i}", "response": "word " * (1000 if i == 7 else 1)} for i in range(30)]
    changes = {
        "model": {"source": "directory", "path": str(tmp_path)},
        "demonstrations": {"source": "file", "train": str(write_rows(tmp_path / "rows.jsonl", rows))},
        "template": {"kind": "chat"},
        "dpo": None,
    }
    report = preflight.check(profiles.load("smoke", changes), LAPTOP)
    assert states(report, "demonstrations") == ["ok", "refused"]
    assert "(rows-8): response of" in text(report)
    assert states(report, "model") == ["ok"]
    (tmp_path / "chat_template.jinja").write_text("hello")
    report = preflight.check(profiles.load("smoke", changes), LAPTOP)
    assert states(report, "model") == ["refused"]
    assert "the chat template writes the user's message 0 times" in text(report)


def test_an_unknown_model_and_a_hub_out_of_reach_leave_the_verdict_open(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"source": "hub", "name": "someone/else", "revision": "1" * 40}
    report = preflight.check(profiles.load("gpu", {"model": model}), estimate.machine(1, 24))
    assert report.verdict == "unknown"
    assert "sizes are unknown until its config.json can be read" in text(report)
    assert "not checked: HF_HUB_OFFLINE is set" in text(report)
    with serve(LoopbackHub()) as gone:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert preflight.look(preflight.Wanted("model", "a/b", "0" * 40, "model.revision"))[0] == "unknown"


def test_the_hub_is_asked_for_every_repository_and_each_refusal_has_its_remedy(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, home: Path
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
    hub.configs["Qwen/Qwen2.5-0.5B"] = {"model_type": "qwen2", **config, "intermediate_size": 96, "vocab_size": 300}
    found = {wanted.name: preflight.look(wanted) for wanted in preflight.wanted(profile)}
    assert found["Qwen/Qwen2.5-0.5B"] == ("ok", f"reachable at {profile.model.revision[:8]}")
    assert found["HuggingFaceH4/ultrachat_200k"][1].endswith("--set demonstrations.revision=COMMIT")
    assert "has no revision 3949bf5f8c17" in found["HuggingFaceH4/ultrafeedback_binarized"][1]
    assert found["allenai/ai2_arc"] == ("ok", "reachable at 210d026f")
    assert f"must be accepted at {hub.url}/datasets/cais/mmlu;" in found["cais/mmlu"][1]
    assert found["Rowan/hellaswag"][1].startswith("no such repository")
    report = preflight.check(profile, estimate.machine(1, 24))
    assert report.verdict == "fits"
    assert not report.ready(), "it fits, but the hub refuses"
    assert "(its config.json on the hub)" in text(report)
    assert "without network a run would fail: not fetched: Qwen/Qwen2.5-0.5B (model), " in text(report)


def test_the_command_prints_json_and_fails_when_the_hub_refuses(
    hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_versions_are_held_to_the_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("# a lock\nnumpy==0.0.1\nno-such-package==1.0\n")
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    finding = preflight._versions()
    assert finding.state == "note"
    assert "instead of 0.0.1, no-such-package missing instead of 1.0" in finding.text
    installed = version("typing_extensions")
    (tmp_path / "requirements.lock").write_text(f"Typing.Extensions=={installed}\n")
    assert preflight._versions().state == "ok", "names are compared as pip compares them"
