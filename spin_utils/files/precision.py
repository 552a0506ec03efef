"""Which precision this machine computes in: bfloat16 where it is fast, else float32."""

from __future__ import annotations

import logging
import time
from functools import cache

import torch

logger = logging.getLogger(__name__)

WORTH = 1.5
"""How many times faster bfloat16 must be to be taken. Below that float32 is exact for little; and a near tie would be
decided by chance, another way in every process."""


def choose_precision(setting: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """Compute precision for a setting; `auto` takes bfloat16 where its matrix products are much faster.

    Processors without bfloat16 units emulate it, up to a hundred times slower than float32, so a CPU is measured, once
    in a process.

    Args:
        setting: bfloat16, float32 or auto. Training has it in its settings; sampling and scoring are always `auto`.
        device: where the model is.
    """
    if setting != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[setting]
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return _fast_on_this_cpu()


@cache
def _fast_on_this_cpu() -> torch.dtype:
    gain = _seconds_of_a_product(torch.float32) / _seconds_of_a_product(torch.bfloat16)
    chosen = torch.bfloat16 if gain >= WORTH else torch.float32
    logger.info("precision auto: %s; bfloat16 is %.2g times as fast as float32", chosen, gain)
    return chosen


def _seconds_of_a_product(dtype: torch.dtype, budget: float = 0.1) -> float:
    """The fastest of many tries, in processor time of one thread: other work on the machine would stretch the clock's,
    and leave no try of several threads undisturbed."""
    inputs, weight = (torch.ones(384, 384, dtype=dtype) for _ in range(2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.nn.functional.linear(inputs, weight)
        best, stop = float("inf"), time.thread_time() + budget
        while (started := time.thread_time()) < stop:
            torch.nn.functional.linear(inputs, weight)
            best = min(best, time.thread_time() - started)
        return best
    finally:
        torch.set_num_threads(threads)
