"""The training loop: SFT on single responses, SPIN and DPO on pairs.

One optimizer step takes exactly `batch_size` groups. They are sorted by length and cut into micro-batches by
a token budget, which changes neither the loss nor (up to rounding) the gradient. A run that is stopped goes on
from its saved state and ends, on a CPU, with the same bytes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spin_utils.attention import packed_attention
from spin_utils.fast_layers import fast_layers
from spin_utils.logprobs import check_supported, sequence_logps
from spin_utils.losses import link, spin_loss
from spin_utils.optimizer import MasterOptimizer, choose_precision, learning_rate_at
from spin_utils.packing import Group, PackingError, check_groups, micro_batches, pack
from spin_utils.progress import progress
from spin_utils.resuming import SavedState, StopRequest, load_state, save_state
from spin_utils.settings import TrainingSettings
from spin_utils.trackers import open_trackers

logger = logging.getLogger(__name__)

Row = dict[str, float]
"""One metric row; see `_Step.row` for its names."""


class Interrupted(RuntimeError):  # noqa: N818 - it is a request, not an error
    """Training was asked to stop and has saved its state. The message says how to go on."""


class NonFiniteLossError(ValueError):
    """A loss is not a number or infinite. The message names the groups."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves besides the trained model."""

    rows: list[Row]
    """One metric row per logged step, those before an interruption included."""
    precision: str
    """Compute precision used: bfloat16 or float32."""
    steps: int
    """Optimizer steps of the whole run."""


def train(
    model: PreTrainedModel,
    groups: Sequence[Group],
    settings: TrainingSettings,
    *,
    opponent_logps: Sequence[Sequence[float]] | None = None,
    seed: int,
    work: Path,
    on_epoch_end: Callable[[int, PreTrainedModel], None] | None = None,
    trackers: Sequence[str] = (),
    what: str = "training",
) -> TrainingResult:
    """Train a model in place.

    Without `opponent_logps` every group has one response, and the loss is the mean negative log-likelihood of
    the response tokens of the global batch (eq. 3.1). With them every group is a pair (real, generated), and
    the loss is the mean of eq. 4.7 over the pairs of the global batch; pairs whose responses are equal give
    exactly l(0) and no gradient, and are left out of the computation but not of the mean.

    Args:
        model: on its device. Afterwards its weights are the exact float32 masters.
        groups: one response each (SFT) or two (pairs); may read from disk.
        settings: of this run.
        opponent_logps: (real, generated) summed log-probabilities of every pair under the opponent.
        seed: of the order of the groups.
        work: folder for metrics.jsonl and the state for resuming; a run that was stopped goes on from it.
        on_epoch_end: called with the number of epochs done and the model; called again for the same epoch if
            the run is stopped right after it.
        trackers: further places for the metrics: tensorboard, wandb, trackio.
        what: a few words for progress lines and trackers.

    Raises:
        PackingError: a group is empty or has the wrong number of responses.
        UnsupportedModelError: the model cannot work on packed groups.
        OtherRunError: the state in `work` is of another run.
        NonFiniteLossError: a loss is not finite; the last saved state is kept.
        Interrupted: SIGINT or SIGTERM arrived; the state is saved.
    """
    longest_row = _check_data(groups, opponent_logps)
    check_supported(model, longest_row)
    work.mkdir(parents=True, exist_ok=True)
    run = {"settings": asdict(settings), "seed": seed, "groups": len(groups), "pairs": opponent_logps is not None}
    saved = load_state(work, run)
    dtype = choose_precision(saved.precision if saved else settings.precision, model.device)
    precision = str(dtype).removeprefix("torch.")
    with ExitStack() as stack:
        optimizer = MasterOptimizer(model, settings, dtype)
        stack.callback(optimizer.close)
        if saved:
            optimizer.load(saved.tensors, saved.step)
        log = _MetricLog(work / "metrics.jsonl", optimizer.steps)
        track, close = open_trackers(trackers, what, work)
        stack.callback(close)
        stack.enter_context(packed_attention(model))
        stack.enter_context(fast_layers(model))
        stack.enter_context(_training_mode(model, settings))
        stop = stack.enter_context(StopRequest())
        plan = _Plan(len(groups), settings, seed)
        bar = stack.enter_context(progress(plan.steps, what, "steps", done=optimizer.steps))
        step_of = _StepRunner(model, groups, settings, opponent_logps, optimizer)
        saved_at = time.monotonic()

        def save() -> None:
            step_of.check_finite()
            save_state(work, run, SavedState(optimizer.steps, precision, optimizer.tensors()))

        def end_epoch() -> None:
            if on_epoch_end is not None and optimizer.steps and optimizer.steps % plan.steps_per_epoch == 0:
                on_epoch_end(optimizer.steps // plan.steps_per_epoch, model)

        end_epoch()  # the run may have been stopped before the last call was done
        while optimizer.steps < plan.steps:
            number = optimizer.steps
            rate = learning_rate_at(number, plan.scheduled_steps, settings)
            logged = (number + 1) % settings.log_every == 0 or number + 1 == plan.steps
            row = step_of(plan.indices(number), rate, logged)
            if row is not None:
                row = {"step": number + 1, "epoch": (number + 1) / plan.steps_per_epoch, **row}
                log.append(row)
                for tracker in track:
                    tracker(row)
            bar.advance(1, f"loss {row['loss']:.4f}" if row else "")
            if stop.asked or time.monotonic() - saved_at >= 60 * settings.save_minutes:
                save()
                saved_at = time.monotonic()
            if stop.asked:
                raise Interrupted(
                    f"{what}: stopped after step {optimizer.steps} of {plan.steps}; the state is in {work}, "
                    "and the same command goes on from there"
                )
            end_epoch()
    return TrainingResult(log.rows, precision, optimizer.steps)


class _Plan:
    """Which groups belong to which step: a fresh seeded order every epoch."""

    def __init__(self, groups: int, settings: TrainingSettings, seed: int) -> None:
        self.groups, self.batch_size, self.seed = groups, settings.batch_size, seed
        self.steps_per_epoch = -(-groups // settings.batch_size)
        self.steps = self.steps_per_epoch * settings.epochs
        self.scheduled_steps = self.steps_per_epoch * (settings.schedule_epochs or settings.epochs)
        self._epoch, self._order = -1, torch.empty(0)

    def indices(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.groups, generator=generator)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


@dataclass
class _Sums:
    """What one global batch adds up to; tensors stay on the device until a row is asked for."""

    values: list[Tensor] = field(default_factory=list)
    """Per micro-batch, shape (parts, groups): the loss, and for pairs also the margin, real and generated reward,
    real and generated drift."""
    order: list[int] = field(default_factory=list)
    """The groups' indices in the same order."""
    tokens: int = 0


class _StepRunner:
    """One optimizer step: forward and backward over the micro-batches, update, metrics."""

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Sequence[Group],
        settings: TrainingSettings,
        opponent_logps: Sequence[Sequence[float]] | None,
        optimizer: MasterOptimizer,
    ) -> None:
        self.model, self.groups, self.settings = model, groups, settings
        self.opponent_logps, self.optimizer = opponent_logps, optimizer
        self.budget = settings.micro_batch_tokens
        self.since_row = _Interval()
        self.last = _Sums()

    def __call__(self, indices: list[int], learning_rate: float, logged: bool) -> Row | None:
        """Take a step; returns the metric row if `logged`.

        Raises:
            NonFiniteLossError: looked for when logged, and at every step on a CPU; no update is made then.
        """
        batch = {index: self.groups[index] for index in indices}
        self.last = sums = self._accumulate(batch)
        norm = self.optimizer.grad_norm() if logged or self.settings.max_grad_norm else None
        self.since_row.add(len(batch), sums.tokens)
        if logged or self.model.device.type == "cpu":
            self.check_finite()
        row = self._row(batch, norm) if logged and norm is not None else None
        self.optimizer.step(learning_rate, norm)
        return None if row is None else {**row, "learning_rate": learning_rate, **self.since_row.rates()}

    def check_finite(self) -> None:
        """Refuse to go on after a loss that is not finite.

        Raises:
            NonFiniteLossError: names the groups.
        """
        if not self.last.values:
            return
        bad = ~torch.isfinite(torch.cat(self.last.values, 1)[0])
        if bad.any():
            names = [self.last.order[i] for i in bad.nonzero()[:, 0].tolist()]
            raise NonFiniteLossError(
                f"the loss of groups {names[:20]} is not finite; the last saved state is kept. "
                "Look at these rows, lower learning_rate, or use precision: float32"
            )

    def _accumulate(self, batch: dict[int, Group]) -> _Sums:
        """Sum the gradients of a global batch; when memory is short, start again with half the budget."""
        while True:
            try:
                return self._accumulate_once(batch)
            except (RuntimeError, MemoryError) as error:
                smallest = max(group.tokens for group in batch.values())
                if not _out_of_memory(error) or self.budget <= smallest:
                    raise
                self.budget //= 2
                logger.warning("out of memory: going on with micro-batches of %d tokens", self.budget)
            self.optimizer.clear()  # some parameters may have their gradient already
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulate_once(self, batch: dict[int, Group]) -> _Sums:
        sums = _Sums()
        pairs = self.opponent_logps is not None
        skip = pairs and self.settings.skip_identical
        kept = [i for i, g in batch.items() if not (skip and list(g.response_ids[0]) == list(g.response_ids[1]))]
        denominator = len(batch) if pairs else sum(len(g.response_ids[0]) for g in batch.values())
        for chosen in micro_batches([batch[i].tokens for i in kept], self.budget):
            chosen = [kept[i] for i in chosen]
            packed = pack([batch[i] for i in chosen]).to(self.model.device)
            logps = sequence_logps(self.model, packed)
            losses, values = self._pair_losses(logps, chosen) if pairs else (-logps, -logps.detach()[None])
            (losses.sum() / denominator).backward()
            sums.values.append(values)
            sums.order += chosen
            sums.tokens += packed.tokens
        return sums

    def _pair_losses(self, logps: Tensor, chosen: list[int]) -> tuple[Tensor, Tensor]:
        assert self.opponent_logps is not None
        rows = [[float(v) for v in self.opponent_logps[i]] for i in chosen]
        opponent = torch.tensor(rows, dtype=torch.float32, device=logps.device)
        policy = logps.view(-1, 2)
        result = spin_loss(
            policy_real_logps=policy[:, 0],
            policy_generated_logps=policy[:, 1],
            opponent_real_logps=opponent[:, 0],
            opponent_generated_logps=opponent[:, 1],
            beta=self.settings.beta,
            loss=self.settings.loss,
        )
        drifts = (policy.detach() - opponent).T
        parts = (result.losses.detach(), result.margins, result.real_rewards, result.generated_rewards, *drifts)
        return result.losses, torch.stack(parts)

    def _row(self, batch: dict[int, Group], norm: Tensor) -> Row:
        """Metrics of the last global batch, with one transfer from the device.

        Loss, accuracy and margin are means over all pairs, skipped ones included; rewards and drifts (policy
        minus opponent log-probability) are means over the pairs that were computed.
        """
        values = torch.cat(self.last.values, 1) if self.last.values else torch.zeros(6, 0, device=norm.device)
        wins = (values[1:2] > 0).sum()
        grad_norm, won, loss, *others = torch.stack([norm, wins.float(), *values.double().sum(1)]).tolist()
        if self.opponent_logps is None:
            return {"loss": loss / sum(len(g.response_ids[0]) for g in batch.values()), "grad_norm": grad_norm}
        computed = len(self.last.order)
        skipped = len(batch) - computed
        at_zero = float(link(torch.zeros(()), self.settings.loss))
        margin, *means = (value / max(1, computed) for value in others)
        names = ("rewards_real", "rewards_generated", "drift_real", "drift_generated")
        return {
            "loss": (loss + skipped * at_zero) / len(batch),
            "accuracy": won / len(batch),
            "margin": margin * computed / len(batch),
            **dict(zip(names, means, strict=True)),
            "skipped": skipped,
            "grad_norm": grad_norm,
        }


class _Interval:
    """Work done and time gone since the last metric row."""

    def __init__(self) -> None:
        self.groups, self.tokens, self.started = 0, 0, time.perf_counter()

    def add(self, groups: int, tokens: int) -> None:
        self.groups += groups
        self.tokens += tokens

    def rates(self) -> Row:
        now = time.perf_counter()
        seconds = now - self.started
        rates = {
            "seconds": seconds,
            "tokens_per_second": self.tokens / seconds,
            "groups_per_second": self.groups / seconds,
        }
        self.groups, self.tokens, self.started = 0, 0, now
        return rates


class _MetricLog:
    """metrics.jsonl; rows after the resumed step are forgotten."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [row for row in map(_parsed, lines) if row and row["step"] <= step]
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def append(self, row: Row) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _parsed(line: str) -> Row | None:
    """A row, or None for the half line of a run that was killed."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _check_data(groups: Sequence[Group], opponent_logps: Sequence[Sequence[float]] | None) -> int:
    """Refuse impossible data before any work; returns the longest row in tokens."""
    check_groups(groups)
    expected = 1 if opponent_logps is None else 2
    longest_row = 0
    for number, group in enumerate(groups):
        if len(group.response_ids) != expected:
            raise PackingError(
                f"group {number}: {len(group.response_ids)} responses; "
                + ("SFT takes one (opponent_logps are missing for pairs)" if expected == 1 else "a pair has two")
            )
        longest_row = max(longest_row, group.longest_row)
    if opponent_logps is not None and len(opponent_logps) != len(groups):
        raise PackingError(f"opponent_logps: {len(opponent_logps)} rows for {len(groups)} pairs; score all pairs")
    return longest_row


@contextmanager
def _training_mode(model: PreTrainedModel, settings: TrainingSettings) -> Iterator[None]:
    """Training mode without dropout (the opponent's log-probabilities are without), checkpointing if asked."""
    was_training = model.training
    model.train()
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for module in dropouts:
        module.eval()
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if settings.gradient_checkpointing:
            model.activation_checkpointing_disable()
        model.train(was_training)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
