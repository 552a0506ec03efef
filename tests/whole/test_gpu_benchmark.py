"""The benchmark for a GPU runs in full at a tiny size, so that it works when there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from spin_utils.files import artifacts


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
