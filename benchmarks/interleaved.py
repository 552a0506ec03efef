"""Two or more ways of doing the same work, timed in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from spin_utils import paths
from spin_utils.artifacts import environment
from spin_utils.documents import SCHEMA
from spin_utils.precision import choose_precision
from spin_utils.records import check_benchmark
from spin_utils.writing import write_text

RESULTS = paths.home() / "benchmarks" / "results"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` counts the processor seconds of this process: for a machine that others use, with one thread."""


def rounds(ways: Mapping[str, Callable[[], float]], runs: int, clock: str = "wall") -> dict[str, list[float]]:
    """Run every way `runs` times, one after the other in each round.

    Args:
        ways: By name, a function that does the work once and returns how much was done.
        runs: Rounds.
        clock: One of `CLOCKS`.

    Returns:
        By name, work per second in each round.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(runs):
        for name, work in ways.items():
            started = CLOCKS[clock]()
            done = work()
            rates[name].append(done / (CLOCKS[clock]() - started))
            print(f"round {number + 1}/{runs}  {name}: {rates[name][-1]:.1f}/s", flush=True)
    return rates


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Ours over theirs, round by round: median, lowest and highest."""
    values = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": len(values)}


def matmul_rate(precision: str, size: int = 2048) -> float:
    """Matrix products of this machine in GFLOP/s, the best of a second of tries."""
    a, b = (torch.randn(size, size, dtype=getattr(torch, precision)) for _ in range(2))
    best, stop = 0.0, time.perf_counter() + 1
    while time.perf_counter() < stop:
        started = time.perf_counter()
        F.linear(a, b)
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best


def fast_precision() -> str:
    """Where this machine is fast, by name: the kit and its peers are timed in it."""
    return str(choose_precision()).removeprefix("torch.")


def machine() -> dict[str, Any]:
    """Processor, threads, precision, matmul rate, commit and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines if ":" in line]
    names = [value for key, value in fields if key == "model name"]
    units = [
        unit for unit in ("amx_bf16", "avx512_bf16") if any(key == "flags" and unit in value for key, value in fields)
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": torch.get_num_threads(),
        "bf16_units": units,
        "precision": (precision := fast_precision()),
        "matmul_gflops": round(matmul_rate(precision)),
        **environment(),
    }


def workload(options: argparse.Namespace) -> dict[str, str]:
    """What was asked for, for a record: of the model the folder's name, and not where the record goes."""
    chosen = vars(options) | {"model": Path(options.model).name}
    return {name: str(value) for name, value in chosen.items() if name != "out"}


def write(name: str, document: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write one benchmark's record as JSON, checked."""
    path = folder / f"{name}.json"
    document = {"schema": SCHEMA, **document}
    check_benchmark(document, str(path))
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return path


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Read one benchmark's record, checked."""
    path = folder / f"{name}.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    check_benchmark(document, str(path))
    return dict(document)
