"""The processes that share the work of a stage: this one's rank, and communication between them.

With one process nothing is communicated, and every function returns at once. Several are started by
`experiment.launch`, `torchrun` or `accelerate launch`; all run the same code in the same order. The first one (rank 0)
writes for all.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

from spin_utils.files.paths import KitError, WorkError

if TYPE_CHECKING:
    from torch import Tensor

Sharding = Literal["ddp", "fsdp2", "zero3"]

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

RENDEZVOUS = "SPIN_RENDEZVOUS"
"""Names the file through which processes of `experiment.launch` find each other; others use MASTER_ADDR and
MASTER_PORT."""
LOST = "another process is gone"
PATIENCE = timedelta(hours=6)
"""Longest wait for another process: the first one may be writing or making data for all."""
_LOOK_S = 1.0


@dataclass(frozen=True)
class _Place:
    rank: int = 0
    count: int = 1
    sharding: Sharding = "ddp"


_place = _Place()


def rank() -> int:
    """Number of this process; 0 writes for all."""
    return _place.rank


def count() -> int:
    """Number of processes that share the work."""
    return _place.count


def sharded() -> bool:
    """Whether training shards weights, gradients and optimizer state over the processes."""
    return _place.count > 1 and _place.sharding != "ddp"


def sharding() -> Sharding:
    """The kind of sharding."""
    return _place.sharding


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def group(sharding: Sharding) -> Iterator[None]:
    """Inside the block the processes of a launch work together; a single process is unaffected.

    The configuration file of `accelerate launch` overrides `sharding`.

    Raises:
        WorkError: another process is gone.
        KitError: the launcher asks for something that the kit does not support.
    """
    global _place
    if not launched():
        yield
        return
    import torch
    from torch import distributed

    place = _Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), _chosen(sharding))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own = os.environ.get(RENDEZVOUS)
    distributed.init_process_group(
        backend,
        init_method=f"file://{own}" if own else "env://",
        rank=place.rank,
        world_size=place.count,
        timeout=PATIENCE,
    )
    if own:
        threading.Thread(target=_stop_with_launcher, args=(os.getppid(),), daemon=True).start()
    if place.rank:
        logging.getLogger("spin_utils").setLevel(logging.WARNING)  # the first one reports
    log.info("%d processes, %s", place.count, place.sharding)
    _place = place
    try:
        yield
    except RuntimeError as error:
        if "gloo/transport" in str(error) or isinstance(error, distributed.DistError):
            raise WorkError(f"{LOST}, and this one cannot continue without it") from error
        raise
    finally:
        _place = _Place()
    distributed.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process counts as the only one; the others wait for it at the next barrier."""
    global _place
    before, _place = _place, _Place()
    try:
        yield
    finally:
        _place = before


def leave(status: int) -> NoReturn:
    """Exit this process; a worker exits at once, because its group's threads sometimes abort a regular exit."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def barrier() -> None:
    """Wait for all processes."""
    gather(None)


def gather(value: T) -> list[T]:
    """The values from all processes, by rank; anything that can be pickled."""
    if _place.count == 1:
        return [value]
    from torch import distributed

    values: list[T] = [value] * _place.count
    distributed.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """The result of `make` in the first process, returned in all: for clocks, files and anything that could differ."""
    return gather(make() if _place.rank == 0 else None)[0]  # type: ignore[return-value]


def any_of(*flags: bool) -> list[bool]:
    """Whether each flag is set in any process."""
    return [any(values) for values in zip(*gather(flags), strict=True)]


def add_up(*tensors: Tensor) -> None:
    """Sum tensors over the processes in place, with the same result in each."""
    if _place.count == 1:
        return
    from torch import distributed

    for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
        work.wait()


def take_turns(items: Sequence[T], work: Callable[[T], R]) -> Iterator[list[tuple[T, R]]]:
    """In each round every process does one item, and all get the round's results, in the order of the items.

    `work` must not communicate.
    """
    for start in range(0, len(items), _place.count):
        share = items[start : start + _place.count]
        results = gather(work(share[_place.rank]) if _place.rank < len(share) else None)
        yield list(zip(share, results, strict=False))  # type: ignore[arg-type]


def deal(items: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """The items of each process, dealt so that all get about the same total size, with the sizes by item.

    A single process gets them in the given order.
    """
    if _place.count == 1:
        return [list(items)]
    order = [items[i] for i in sorted(range(len(items)), key=lambda i: -sizes[i])]
    # There and back again, or the first process would get the largest item of every round.
    lap = 2 * _place.count
    return [order[rank::lap] + order[lap - 1 - rank :: lap] for rank in range(_place.count)]


def shown(progress: Callable[[int], object] | None) -> Callable[[int], object] | None:
    """A progress callback for one process's share of the work, assuming that the others are about as far."""
    if progress is None or _place.count == 1:
        return progress
    return lambda units: progress(units * _place.count)


def _chosen(sharding: Sharding) -> Sharding:
    """The sharding that `accelerate launch` asks for, or else the setting."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
        if stage != "3":
            raise KitError(f"accelerate asks for DeepSpeed's ZeRO stage {stage}; the kit has stage 3 (zero_stage: 3)")
        return "zero3"
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return sharding
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise KitError("accelerate asks for FSDP of version 1; set fsdp_version: 2 in its configuration file")
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # otherwise transformers loads no weights on most ranks
    return "fsdp2"


def _stop_with_launcher(launcher: int) -> None:
    """Stop, as after SIGTERM, when the launcher has been killed."""
    while os.getppid() == launcher:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
