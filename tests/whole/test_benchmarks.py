"""Pages of benchmarks/ say what their records hold, and the benchmark for a GPU works before there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu, scaling
from spin_utils.experiment import cost
from spin_utils.experiment.cost import Architecture, Workload
from spin_utils.files import artifacts
from spin_utils.paper import published
from spin_utils.settings import profiles

PAPER = profiles.load("paper")


def test_the_page_of_scaling_is_what_the_generator_gives() -> None:
    assert scaling.PAGE.read_text(encoding="utf-8") == scaling.render(), "run python -m benchmarks.scaling"


def test_the_papers_cell_is_the_prediction_of_table_2() -> None:
    generation, training = scaling.chain_hours(Architecture(), Workload().prompts, 8, PAPER)
    assumed, (sampled, trained) = Workload().utilisation, scaling.shares()
    generation, training = generation * sampled / assumed, training * trained / assumed
    assert generation == pytest.approx(4 * cost.generation_hours(Workload(), Architecture()))
    assert training == pytest.approx(sum(cost.training_hours(Workload(), Architecture(), t) for t in range(4)))
    hours = published.numbers("wall_clock_hours").groupby("stage")["hours"].sum()
    assert training < hours["training"], "a prediction without communication is below what was needed"


def test_every_measurement_runs_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in gpu.TINY:
        monkeypatch.setattr(gpu, name, getattr(gpu, name))  # given back afterwards
    gpu.main(["--tiny", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["parts"].keys() == gpu.PARTS.keys() - {"sample_qwen_vllm"}
    assert all(part["rate"] > 0 for part in record["parts"].values())
    assert record["ratios"].keys() == {
        "gpu_train_vs_trl_tuned",
        "gpu_sample_vs_generate",
        "gpu_sample_7b_vs_generate",
    }
    assert record["machine"].keys() >= artifacts.environment().keys()


def test_shares_are_of_the_cards_own_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    found = {"sample_mistral_ours": {"rate": 256.0}, "lora_mistral": {"rate": 1.0, "peak_gib": 21.0}}
    shares = gpu.summary({**found, "train_ours": {"failed": "out of memory"}}, tiny=False)["shares"]
    read = 2 * 7_241_732_096 + 256 * 4 * 32 * 1024 * (128 + gpu.TOKENS / 2)  # one step a second: weights and caches
    assert shares["sample_mistral_of_bandwidth"] == pytest.approx(read / 3.35e12)
    assert shares["lora_below_24_gb"]
    assert "train_of_peak" not in shares
