"""Pages of benchmarks/ say what their records hold, and the benchmark for a GPU works before there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu, scaling
from benchmarks.search import summary
from spin_utils.experiment import cost
from spin_utils.experiment.cost import Architecture, Workload
from spin_utils.files import artifacts, paths
from spin_utils.paper import published
from spin_utils.settings import profiles

PAPER = profiles.load("paper")
RECORD = paths.results("cpu") / "search.jsonl"


def test_the_page_of_scaling_is_what_the_generator_gives() -> None:
    assert scaling.PAGE.read_text(encoding="utf-8") == scaling.render(), "run python -m benchmarks.scaling"


def test_the_papers_cell_is_the_prediction_of_table_2() -> None:
    generation, training = scaling.chain_hours(Architecture(), Workload().prompts, 8, PAPER)
    assumed, (sampled, trained) = Workload().utilisation, scaling.shares()
    generation, training = generation * sampled / assumed, training * trained / assumed
    assert generation == pytest.approx(4 * cost.generation_hours(Workload(), Architecture()))
    assert training == pytest.approx(sum(cost.training_hours(Workload(), Architecture(), t) for t in range(4)))
    hours = published.wall_clock_hours().groupby("stage")["hours"].sum()
    assert training < hours["training"], "a prediction without communication is below what was needed"


def test_every_model_has_its_public_number_of_parameters() -> None:
    billions = {name: round(a.parameters / 1e9, 3) for name, a in scaling.MODELS.items()}
    assert billions == {
        "SmolLM2-135M": 0.135,
        "Qwen2.5-0.5B": 0.494,
        "SmolLM2-1.7B": 1.711,
        "Mistral-7B": 7.242,
        "Llama-2-13B": 13.016,
        "Llama-3-70B": 70.554,
    }


def test_the_page_of_the_search_is_what_the_record_gives():
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()]
    assert summary([row for row in rows if "changes" in row]) == RECORD.with_suffix(".md").read_text()


def test_scores_are_the_single_items_counted():
    rows = [row for line in RECORD.read_text().splitlines() if "items" in (row := json.loads(line))]
    assert rows
    for row in rows:
        shares = {task: flags.count("1") / len(flags) for task, flags in row["items"].items()}
        assert sum(map(len, row["items"].values())) == row["n"]
        assert 100 * sum(shares.values()) / len(shares) == pytest.approx(row["average"], abs=0.01)
        assert row["by_family"] == {task: pytest.approx(100 * share, abs=0.1) for task, share in shares.items()}


def test_gains_are_over_sft_of_the_same_data_and_seed():
    base, spin = {"demonstrations.spin_rows": 4}, {"demonstrations.spin_rows": 4, "spin.betas": [0.1]}
    rows = [
        row(base, "sft", 0, "0011"),
        row(base, "sft", 1, "0111"),
        row(spin, "spin-0", 0, "0111"),
        row({}, "sft", 0, "0000"),
    ]
    assert "| spin-0 | 0 | 4 | 75.0 | +25.0 [−86.4, +100.0] |" in summary(rows), "four items show nothing"
    del rows[0]["items"]
    assert "| spin-0 | 0 | 4 | 75.0 | +25.0 |" in summary(rows)


def row(changes, model, seed, flags):
    average = 100 * flags.count("1") / len(flags)
    return {"changes": changes, "model": model, "seed": seed, "n": 4, "average": average, "items": {"sums": flags}}


def test_every_measurement_runs_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in gpu.TINY:
        monkeypatch.setattr(gpu, name, getattr(gpu, name))  # given back afterwards
    gpu.main(["--tiny", "--only", "train", "sample", "lora", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["parts"].keys() == {name for name in gpu.PARTS if name not in ("tests", "sample_qwen_vllm")}
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
