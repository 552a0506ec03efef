"""One optimizer step: forward and backward over the micro-batches of a global batch, update, metrics.

A step takes exactly `batch_size` groups. They are sorted by length and cut into micro-batches by a token budget,
which changes neither the loss nor (up to rounding) the gradient.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spin_utils.logprobs import sequence_logps
from spin_utils.losses import link, spin_loss
from spin_utils.optimizer import MasterOptimizer
from spin_utils.packing import Group, micro_batches, pack
from spin_utils.settings import TrainingSettings

logger = logging.getLogger(__name__)

_NAMED = 20  # groups in one message
_REMEDY = (
    "the last saved state is kept. Look at these rows, lower learning_rate, or use precision: float32, "
    "then run the same command"
)

Row = dict[str, float]
"""One metric row; see `StepRunner` for its names."""


class NonFiniteLossError(ValueError):
    """A loss, a gradient or a weight is not a number or infinite. The message names the groups."""


class NoMemoryError(RuntimeError):
    """A group does not fit into memory by itself. The message names it and the remedy."""


class StepRunner:
    """One optimizer step: forward and backward over the micro-batches, update, metrics."""

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Sequence[Group],
        settings: TrainingSettings,
        opponent_logps: Sequence[Sequence[float]] | None,
        optimizer: MasterOptimizer,
        describe: Callable[[int], str] = "group {}".format,
    ) -> None:
        self.describe = describe
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
        if row is not None and not math.isfinite(row["grad_norm"]):
            raise NonFiniteLossError(f"the gradient of {self._names(indices)} is not finite; {_REMEDY}")
        self.optimizer.step(learning_rate, norm)
        return None if row is None else {**row, "learning_rate": learning_rate, **self.since_row.rates()}

    def check_finite(self) -> None:
        """Refuse to go on after a loss, or another part of a metric row, that is not finite.

        Raises:
            NonFiniteLossError: names the groups.
        """
        if not self.last.values:
            return
        bad = ~torch.isfinite(torch.cat(self.last.values, 1)).all(0)
        if bad.any():
            found = [self.last.order[i] for i in bad.nonzero()[:, 0].tolist()]
            raise NonFiniteLossError(f"the loss of {self._names(found)} is not finite; {_REMEDY}")

    def check_weights(self) -> None:
        """Refuse to keep weights that are not finite: a gradient can overflow where the loss does not.

        Raises:
            NonFiniteLossError: names a weight and the groups of the last step.
        """
        masters = self.optimizer.masters
        finite = torch.stack([master.sum() for master in masters]).isfinite().tolist()
        if not all(finite):
            name = self.optimizer.names[finite.index(False)]
            raise NonFiniteLossError(f"{name} is not finite after a step on {self._names(self.last.order)}; {_REMEDY}")

    def _names(self, indices: Sequence[int]) -> str:
        more = f" and {len(indices) - _NAMED} more" if len(indices) > _NAMED else ""
        return ", ".join(map(self.describe, indices[:_NAMED])) + more

    def _accumulate(self, batch: dict[int, Group]) -> _Sums:
        """Sum the gradients of a global batch; when memory is short, start again with half the budget."""
        while True:
            try:
                return self._accumulate_once(batch)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                largest = max(batch, key=lambda index: batch[index].tokens)
                if self.budget <= batch[largest].tokens:
                    raise NoMemoryError(
                        f"out of memory with {self.describe(largest)} alone, {batch[largest].tokens} tokens; set "
                        "gradient_checkpointing: true, shorten the rows (template.max_prompt_tokens, "
                        "template.max_response_tokens), or use a machine with more memory"
                    ) from None
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


@dataclass
class _Sums:
    """What one global batch adds up to; tensors stay on the device until a row is asked for."""

    values: list[Tensor] = field(default_factory=list)
    """Per micro-batch, shape (parts, groups): the loss, and for pairs also the margin, real and generated reward,
    real and generated drift."""
    order: list[int] = field(default_factory=list)
    """The groups' indices in the same order."""
    tokens: int = 0


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


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
