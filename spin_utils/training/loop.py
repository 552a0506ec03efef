"""The training loop: SFT on single responses, SPIN and DPO on pairs.

The seed determines the order of the groups; `step.StepRunner` takes the steps. A stopped run continues from its saved
state and ends with the same bytes. Several processes (see `processes`) share every batch; their result equals that of
one process up to rounding, and a run may continue with a different number of processes.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from spin_utils.files import processes, runtime
from spin_utils.files.disk import write_text
from spin_utils.files.runtime import choose_precision, progress
from spin_utils.model import sharding
from spin_utils.model.general import on_its_path
from spin_utils.model.layers import decoder_layers, lending
from spin_utils.model.logprobs import check_supported
from spin_utils.model.packing import Group, check_groups
from spin_utils.settings.inputs import identity as identity_of
from spin_utils.settings.run import TrainingSettings
from spin_utils.training.optimizer import MasterOptimizer
from spin_utils.training.state import SavedState, StopRequest, load_state, save_state
from spin_utils.training.step import Row, StepRunner, pair_micro_batches
from spin_utils.training.trackers import Tracker, open_trackers

logger = logging.getLogger(__name__)

TRIMMED_EVERY = 5
"""Steps between two calls of `runtime.trim_memory`, each of which costs a small fraction of a step."""


WORTH_MEASURING = 30.0
"""Seconds of training after which its speed is compared with the machine's."""


class Interrupted(RuntimeError):  # noqa: N818 - it is a request, not an error
    """Training was asked to stop and saved its state. The message says how to continue."""

    exit_status = 130


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run returns besides the trained model."""

    rows: list[Row]
    """One metric row per logged step, including those before an interruption. The last one has `matrix_share`, the
    useful operations per second over what the machine's matrix products reach, unless the run was short."""
    precision: str
    """Compute precision used: bfloat16 or float32."""


def train(
    model: PreTrainedModel,
    groups: Sequence[Group],
    settings: TrainingSettings,
    *,
    opponent_logps: Sequence[Sequence[float]] | None = None,
    seed: int,
    work: Path,
    stops: Mapping[int, Callable[[PreTrainedModel], None]] = MappingProxyType({}),
    keep_state: bool = False,
    what: str = "training",
    describe: Callable[[int], str] = "group {}".format,
) -> TrainingResult:
    """Train a model in place.

    Without `opponent_logps` every group has one response, and the loss is the mean negative log-likelihood of the
    response tokens in the global batch (eq. 3.1). With them every group is a pair (real, generated), or a real response
    with several generated ones, and the loss is the mean of eq. 4.7 over the pairs in the global batch.
    `settings.historical` takes triplets: real, generated, and the SFT model's.

    Args:
        model: on its device, the same in every process. Afterwards its weights are the float32 master weights; with
            sharding each process has its shard (`sharding.whole_weights` puts them together).
        groups: one response each (SFT) or two and more (pairs); may read from disk.
        opponent_logps: summed log-probabilities of every group's responses under the opponent.
        seed: of the order of the groups.
        work: folder for metrics.jsonl and the saved state; a stopped run continues from it.
        stops: what to do with the model, with its float32 weights, after some numbers of steps; done again if the run
            is stopped right after it.
        keep_state: also save the state after the last step, so that a run with more epochs can continue from it.
        what: a few words for progress lines and trackers.
        describe: a group's name in messages by its index, for example the id of its row.

    Raises:
        PairsError: a group is empty or has the wrong number of responses.
        ModelError: no path is right for the model.
        KitError: the state in `work` belongs to another run, or a tracker is not installed.
        TrainingError: a loss, gradient or weight is not finite (the last saved state is kept), or a single group does
            not fit into memory.
        Interrupted: SIGINT or SIGTERM arrived; the state is saved.
    """
    responses = 1 if opponent_logps is None else len(opponent_logps[0])
    assert opponent_logps is None or len(opponent_logps) == len(groups)
    assert responses in (1, 3) or not settings.historical
    check_supported(model, check_groups(groups, responses))
    work.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(len(groups), settings, seed)
    # A saved state depends on all settings except the number of epochs, which only ends the run.
    own = {"epochs": None, "schedule_epochs": settings.schedule_epochs or settings.epochs}
    identity = {"settings": {**identity_of(settings), **own}, "seed": seed, "groups": len(groups)}
    identity["pairs"] = opponent_logps is not None
    saved = load_state(work, identity)
    wanted = saved.precision if saved else settings.precision
    dtype = processes.from_first(lambda: choose_precision(wanted, model.device))  # even if machines differ
    precision = str(dtype).removeprefix("torch.")
    if processes.sharded():
        dtype = sharding.shard(model.float(), dtype)
    with ExitStack() as stack:
        optimizer = MasterOptimizer(model, settings, dtype)
        stack.callback(optimizer.close)
        rows: list[Row] = saved.rows if saved else []
        if saved:
            optimizer.load(saved.tensors, saved.step)
            saved.tensors.clear()  # mapped from the file that the next save removes
        names = settings.trackers if processes.rank() == 0 else ()
        trackers, close = open_trackers(names, what, work, done=optimizer.steps)
        stack.callback(close)
        stack.enter_context(on_its_path(model))
        stack.enter_context(_training_mode(model, settings))
        stop = stack.enter_context(StopRequest())
        schedule.warn_if_idle(what)
        step = StepRunner(model, groups, settings, opponent_logps, optimizer, describe)
        run = _Run(step, schedule, rows, trackers, identity, precision, work, what, stops)
        run.take_steps(stop)
        if step.seconds >= WORTH_MEASURING:
            rate = runtime.matrix_rate(model.device, choose_precision(precision))  # `dtype` may be that of shards
            share = step.flops / step.seconds / rate / processes.count()
            runtime.tell(share=share)
            logger.info("%s: %.0f %% of this machine's matrix rate", what, 100 * share)
            rows[-1]["matrix_share"] = share
        if keep_state:
            run.save()
    return TrainingResult(rows, precision)


class Schedule:
    """The groups of each step, in a new seeded order every epoch, and the learning rate of each step.

    Attributes:
        steps_per_epoch: optimizer steps in one epoch, whose last batch may be smaller.
        steps: optimizer steps in the whole run.
    """

    def __init__(self, groups: int, settings: TrainingSettings, seed: int) -> None:
        self.groups, self.settings, self.seed = groups, settings, seed
        self.steps_per_epoch = -(-groups // settings.batch_size)
        self.steps = self.steps_per_epoch * settings.epochs
        self._epoch, self._order = -1, torch.empty(0)

    def indices(self, step: int) -> list[int]:
        """The groups of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.groups, generator=generator)
        size = self.settings.batch_size
        return self._order[place * size : (place + 1) * size].tolist()

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, then linear or cosine decay or a constant.

        Equal to transformers' `get_scheduler`: step 0 has rate 0 if there is any warm-up.
        """
        settings = self.settings
        total = self.steps_per_epoch * (settings.schedule_epochs or settings.epochs)
        warmup = math.ceil(total * settings.warmup_ratio)
        if step < warmup:
            return settings.learning_rate * step / warmup
        if settings.schedule == "constant":
            return settings.learning_rate
        left = max(0.0, (total - step) / max(1, total - warmup))
        return settings.learning_rate * (left if settings.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)

    def warn_if_idle(self, what: str) -> None:
        """Warn if the run is so short that every step has the learning rate of 0 with which warm-up starts."""
        if not any(map(self.learning_rate, range(self.steps))):
            logger.warning(
                "%s: nothing will be learnt: warm-up starts at a learning rate of 0, and this run has no other step; "
                "lower batch_size (%d), or set warmup_ratio to 0",
                what,
                self.settings.batch_size,
            )


def first_micro_batches(groups: Sequence[Group], settings: TrainingSettings, seed: int) -> list[list[int]]:
    """Every pair once, in the micro-batch in which `train` sees it first.

    On some processors (AMX) the rounding of a product depends on its number of rows. An opponent that is scored in
    these micro-batches is therefore exactly equal to the policy before the first step, and its noise is the policy's.
    """
    schedule = Schedule(len(groups), settings, seed)
    steps = map(schedule.indices, range(schedule.steps_per_epoch))
    return [chosen for indices in steps for chosen in pair_micro_batches({i: groups[i] for i in indices}, settings)]


@dataclass
class _Run:
    """The loop over the steps, with metrics, saved states and stops."""

    step: StepRunner
    schedule: Schedule
    rows: list[Row]
    """The metric rows, starting with those in the saved state."""
    trackers: Sequence[Tracker]
    identity: dict[str, Any]
    precision: str
    work: Path
    what: str
    stops: Mapping[int, Callable[[PreTrainedModel], None]]

    def take_steps(self, stop: StopRequest) -> None:
        """Take all remaining steps."""
        optimizer, saved_at = self.step.optimizer, time.monotonic()
        if processes.rank() == 0:
            write_text(self.work / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        self._stop_over()  # the run may have been stopped before the last call finished
        with progress(self.schedule.steps, self.what, "steps", done=optimizer.steps) as bar:
            while optimizer.steps < self.schedule.steps:
                row = self._take_step(optimizer.steps)
                bar.advance(1, f"loss {row['loss']:.4f}" if row else "")
                if optimizer.steps % TRIMMED_EVERY == 0:
                    runtime.trim_memory()
                due = time.monotonic() - saved_at >= 60 * self.step.settings.save_minutes
                stopping, due = processes.any_of(stop.asked, due)
                if stopping or due:
                    self.save()
                    saved_at = time.monotonic()
                if stopping:
                    raise Interrupted(
                        f"{self.what}: stopped after step {optimizer.steps} of {self.schedule.steps}; the state is in "
                        f"{self.work}, and the same command continues from there"
                    )
                self._stop_over()
        self.step.check_weights()

    def save(self) -> None:
        """Save the state between two steps. All processes call this; the first one writes."""
        self.step.check_finite()
        self.step.check_weights()
        optimizer = self.step.optimizer
        state = SavedState(optimizer.steps, self.precision, optimizer.tensors(), self.rows)
        if processes.rank() == 0:
            save_state(self.work, self.identity, state)
        processes.barrier()

    def _take_step(self, number: int) -> Row | None:
        schedule, lora = self.schedule, self.step.settings.lora
        if lora is not None and lora.dropout:  # drawn anew for every step, so that a resumed run draws the same
            torch.manual_seed((schedule.seed * 1_000_003 + number) * 1009 + processes.rank())
        logged = (number + 1) % self.step.settings.log_every == 0 or number + 1 == schedule.steps
        row = self.step(schedule.indices(number), schedule.learning_rate(number), logged)
        if row is not None:
            row = {"step": number + 1, "epoch": (number + 1) / schedule.steps_per_epoch, **row}
            self.rows.append(row)
            if processes.rank() == 0:
                with (self.work / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
            for tracker in self.trackers:
                tracker(row)
        return row

    def _stop_over(self) -> None:
        if (stop := self.stops.get(self.step.optimizer.steps)) is not None:
            with self.step.optimizer.exact():
                stop(self.step.model)


@contextmanager
def _training_mode(model: PreTrainedModel, settings: TrainingSettings) -> Iterator[None]:
    """No dropout (the opponent is scored without it) but that of adapters, and gradient checkpointing if set."""
    model.eval()
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            module.train()
    layers = decoder_layers(model) if settings.gradient_checkpointing else []
    forward = {layer: layer.forward for layer in layers}

    def checkpointed(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward[layer], *args, use_reentrant=False, **kwargs)

    try:
        with lending(checkpointed, layers):  # transformers only does it in training mode, which turns dropout on
            yield
    finally:
        model.eval()
