"""Two or more ways of doing the same work, timed in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from spin_utils.files import paths
from spin_utils.files.artifacts import environment
from spin_utils.files.disk import write_text
from spin_utils.files.runtime import child_environment, choose_precision
from spin_utils.model.base import device
from spin_utils.paper.results import SCHEMA

RESULTS = paths.home() / "benchmarks" / "results"


def wall() -> float:
    """Seconds on the clock, when a GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def alone(
    *arguments: object, environment: Mapping[str, str] | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """The benchmark that is running, in a process of its own with further arguments; what that gave to `hand_over`.

    Raises:
        SystemExit: it failed; with the end of what it said.
        TimeoutExpired: it was not done in so many seconds.
    """
    command = [sys.executable, *sys.orig_argv[1:], *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def hand_over(**values: Any) -> None:
    """End of a process started by `alone`: print its values and the most memory that it held, in GiB, of a GPU if there
    is one."""
    if torch.cuda.is_available():
        print(json.dumps({**values, "peak_gib": torch.cuda.max_memory_reserved() / 2**30}))
        return
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with the peak of the process that started this one
        (peak,) = (int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    print(json.dumps({**values, "peak_gib": peak / 2**20}))


def rounds(ways: Sequence[str], runs: int, *arguments: object, plain: Sequence[str] = ()) -> dict[str, list[dict]]:
    """Measure every way, for the option `--way`, in a process of its own, one after the other in each round.

    Each process hands over `rate`, the work done in a second. It has the memory allocator set as the kit sets it,
    unless its way is `plain`. Returned is what each round gave, by way.
    """
    kits = child_environment()
    unset = {name: value for name, value in kits.items() if not name.startswith("MALLOC_")}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(runs):
        for way in ways:
            found[way].append(one := alone("--way", way, *arguments, environment=unset if way in plain else kits))
            print(f"round {number + 1}/{runs}  {way}: {one['rate']:.1f}/s, {one['peak_gib']:.2f} GiB", flush=True)
    return found


def column(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """One value of every run."""
    return [run[name] for run in runs]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Ours over theirs, round by round: median, lowest and highest."""
    values = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": len(values)}


def matmul_rate(precision: str) -> float:
    """Matrix products of this machine in GFLOP/s, the best of a second of tries."""
    size, place = 8192 if torch.cuda.is_available() else 2048, device()
    a, b = (torch.randn(size, size, dtype=getattr(torch, precision), device=place) for _ in range(2))
    best, stop = 0.0, wall() + 1
    while (started := wall()) < stop:
        F.linear(a, b)
        best = max(best, 2 * size**3 / (wall() - started) / 1e9)
    return best


def fast_precision() -> str:
    """Where this machine is fast, by name: the kit and its peers are timed in it."""
    return str(choose_precision("auto", device())).removeprefix("torch.")


def load(folder: str | Path, precision: str | None = None) -> PreTrainedModel:
    """A model on the accelerator if there is one, in the precision that is fast there or in another."""
    dtype = getattr(torch, precision or fast_precision())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, local_files_only=True)
    return model.to(device()).eval()


def machine() -> dict[str, Any]:
    """Processor, threads, precision, matmul rate, commit and versions, and the accelerator as `device`."""
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*: (.*)", known, re.MULTILINE)
    return {
        "cpu": name[1] if name else platform.processor(),
        "cores": torch.get_num_threads(),
        "bf16_units": [unit for unit in ("amx_bf16", "avx512_bf16") if unit in known],
        "precision": (precision := fast_precision()),
        "matmul_gflops": round(matmul_rate(precision)),
        **environment(),
    }


def options_parser(text: str, ways: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every comparison has: a model, a number of rounds and, for `rounds`, the way to measure."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--way", choices=ways, help=argparse.SUPPRESS)
    return parser


def write(name: str, document: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write one benchmark's record as JSON."""
    path = folder / f"{name}.json"
    write_text(path, json.dumps({"schema": SCHEMA, **document}, indent=1, allow_nan=False) + "\n")
    return path
