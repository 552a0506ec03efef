"""One GPU in a few minutes: training, sampling and adapters, on random weights in the shapes of real models.

    python -m benchmarks.gpu [--vllm PYTHON] [--only train sample lora] [--tiny]

Nothing is downloaded. `train`: pairs per second on UltraChat's lengths in the shape of Qwen2.5-0.5B, against TRL's
DPOTrainer tuned as in `train_vs_trl`, and as a share of the card's bfloat16 peak. `sample`: tokens per second in that
shape and in Mistral-7B's, against `generate`, and vLLM if its Python is given, and as a share of the card's bandwidth.
`lora`: a step with adapters in Mistral-7B's shape, which must stay below 24 GB. Each measurement is a process of its
own; one that fails, or that eight minutes do not suffice for, is named in the record, benchmarks/results/gpu.json.

`--tiny` runs the same functions in this process on shapes that a CPU can do in seconds; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from benchmarks import sample_vs_generate, train_vs_trl
from benchmarks.interleaved import RESULTS, alone, fast_precision, hand_over, machine, wall, write
from spin_utils.experiment import estimate
from spin_utils.model import lora, vllm
from spin_utils.model.base import device, tiny_config
from spin_utils.settings.inputs import ModelSettings
from spin_utils.settings.machine import VllmSettings
from spin_utils.settings.run import GenerationSettings, LoraSettings, TrainingSettings

PEAKS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.04e12), "L40S": (362e12, 0.864e12)}
"""Dense bfloat16 FLOP/s and bytes per second by data sheet (SXM); part of the device's name."""
SHAPES = {"qwen": "Qwen/Qwen2.5-0.5B", "mistral": "alignment-handbook/zephyr-7b-sft-full"}
LIMIT_GB, MINUTES = 24, 8
PAIRS, STEPS, PROMPTS, TOKENS, BATCH = 64, 4, 512, 128, 256
TINY = {"PAIRS": 4, "STEPS": 2, "PROMPTS": 6, "TOKENS": 8, "BATCH": 4}


def configuration(shape: str, tiny: bool) -> PretrainedConfig:
    """The shape of Qwen2.5-0.5B or Mistral-7B, or one with two narrow layers in its place."""
    real = estimate.KNOWN[SHAPES[shape]]
    narrow = ModelSettings("tiny", name=real["model_type"], hidden_size=64, layers=2)
    return tiny_config(narrow, 300) if tiny else AutoConfig.for_model(**real)


def model_of(config: PretrainedConfig) -> PreTrainedModel:
    """Random weights, made where they are used."""
    torch.manual_seed(0)
    with device():
        dtype = getattr(torch, fast_precision())
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()


def train_ours(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    return {"rate": train_vs_trl.run_ours(folder, "ultrachat", PAIRS, STEPS, 16_384)}


def train_trl(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    return {"rate": train_vs_trl.run_trl(folder, "ultrachat", PAIRS, STEPS, min(8, PAIRS), tuned=True)}


def sample_with(way: str, shape: str) -> Callable[[Path, argparse.Namespace], dict[str, float]]:
    def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
        config = configuration(shape, options.tiny)
        prompts = sample_vs_generate.random_prompts(PROMPTS, 128, config.vocab_size)
        return sample_vs_generate.measure(way, model_of(config), prompts, [], TOKENS, BATCH)

    return measure


def sample_vllm(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    config = configuration("qwen", options.tiny)
    prompts = sample_vs_generate.random_prompts(PROMPTS, 128, config.vocab_size)
    settings = GenerationSettings(max_new_tokens=TOKENS, backend="vllm", vllm=VllmSettings(python=options.vllm))
    with tempfile.TemporaryDirectory() as work:
        started = wall()  # vLLM's start is counted: it starts once for each step of a run
        answers, _ = vllm.answer(folder, prompts, eos_ids=[], settings=settings, seed=0, work=Path(work), what="vLLM")
        return {"rate": sum(len(ids) for ids, _, _ in answers) / (wall() - started)}


def lora_step(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Pairs per second with adapters, as in the profile `gpu-7b`."""
    config = configuration("mistral", options.tiny)
    settings = TrainingSettings(
        learning_rate=5e-6,
        epochs=STEPS,
        batch_size=PAIRS // 4,
        precision=fast_precision(),
        micro_batch_tokens=2048,
        gradient_checkpointing=True,
        lora=LoraSettings(rank=64, alpha=64),
        save_minutes=1e6,
    )
    model, pairs = model_of(config), train_vs_trl.make_pairs("ultrachat", PAIRS // 4, config.vocab_size)
    assert settings.lora is not None
    lora.attach(model, settings.lora, seed=0)
    return {"rate": train_vs_trl.rate(PAIRS // 4, train_vs_trl.seconds_of_steps(model, pairs, settings))}


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, float]]] = {
    "train_ours": train_ours,
    "train_trl": train_trl,
    "sample_qwen_ours": sample_with("ours", "qwen"),
    "sample_qwen_generate": sample_with("generate", "qwen"),
    "lora_mistral": lora_step,
    "sample_mistral_ours": sample_with("ours", "mistral"),
    "sample_mistral_generate": sample_with("generate", "mistral"),
    "sample_qwen_vllm": sample_vllm,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["train", "sample", "lora"])
    parser.add_argument("--vllm", default="", help="Python of the environment in which vLLM is installed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tiny:
        globals().update(TINY)
    if options.part:
        hand_over(**PARTS[options.part](options.folder, options))
        return
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("no GPU here; --tiny tries the script on a CPU")
    wanted = [name for name in PARTS if name.startswith(tuple(options.only)) and (options.vllm or "vllm" not in name)]
    until, found = time.monotonic() + 60 * MINUTES, {}
    with tempfile.TemporaryDirectory() as folder:
        model_of(configuration("qwen", options.tiny)).save_pretrained(folder)
        for name in wanted:
            given = PARTS[name](Path(folder), options) if options.tiny else _alone(name, folder, until)
            found[name] = given
            print(f"{name:24} {json.dumps(given)}", flush=True)
    document = {"machine": machine(), **summary(found, options.tiny), "parts": found}
    print(json.dumps({"shares": document["shares"], "ratios": document["ratios"]}, indent=1))
    print(write("gpu", document, options.out))


def _alone(name: str, folder: str, until: float) -> dict[str, Any]:
    """A part in a process of its own; what went wrong if it did."""
    try:
        return alone("--part", name, "--folder", folder, seconds=max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return {"failed": "the minutes were over"}
    except SystemExit as failure:
        return {"failed": str(failure)[-1500:]}


def summary(found: dict[str, dict[str, Any]], tiny: bool) -> dict[str, Any]:
    """Ours over the peers', and ours as shares of the card's peaks."""
    done = {name: part for name, part in found.items() if "rate" in part}
    rate = {name: part["rate"] for name, part in done.items()}
    peers = {
        "gpu_train_vs_trl_tuned": ("train_ours", "train_trl"),
        "gpu_sample_vs_generate": ("sample_qwen_ours", "sample_qwen_generate"),
        "gpu_sample_7b_vs_generate": ("sample_mistral_ours", "sample_mistral_generate"),
        "gpu_sample_vs_vllm": ("sample_qwen_ours", "sample_qwen_vllm"),
    }
    values = {name: rate[ours] / rate[theirs] for name, (ours, theirs) in peers.items() if {ours, theirs} <= set(rate)}
    ratios = {name: {"median": v, "low": v, "high": v, "runs": 1} for name, v in values.items()}
    shares: dict[str, Any] = {}
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    flops, bandwidth = next((peak for part, peak in PEAKS.items() if part in card), (None, None))
    if flops and bandwidth:
        qwen = configuration("qwen", tiny)
        pairs = train_vs_trl.make_pairs("ultrachat", PAIRS, qwen.vocab_size)
        if "train_ours" in rate:
            shares["train_of_peak"] = rate["train_ours"] * train_vs_trl.useful_flop(qwen, pairs) / PAIRS / flops
        for shape in ("qwen", "mistral"):
            if f"sample_{shape}_ours" in rate:
                a = estimate.of_config(configuration(shape, tiny))
                cache = 4 * a.layers * a.key_value * (128 + TOKENS / 2)  # keys and values in two bytes each
                steps = rate[f"sample_{shape}_ours"] / BATCH
                shares[f"sample_{shape}_of_bandwidth"] = steps * (2 * a.parameters + BATCH * cache) / bandwidth
    if "lora_mistral" in done:
        shares["lora_mistral_gib"] = done["lora_mistral"].get("peak_gib")
        shares["lora_below_24_gb"] = (done["lora_mistral"].get("peak_gib") or 0) * 2**30 < LIMIT_GB * 1e9
    return {"card": card, "shares": shares, "ratios": ratios}


if __name__ == "__main__":
    main()
