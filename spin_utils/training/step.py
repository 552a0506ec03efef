"""One optimizer step: forward and backward over the micro-batches of a global batch, update, metrics.

A step takes exactly `batch_size` groups. They are sorted by length and split into micro-batches by a token budget,
which changes neither the loss nor (up to rounding) the gradient. Several processes share the groups of a batch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spin_utils.files import processes
from spin_utils.files.paths import KitError
from spin_utils.model.logprobs import IDLE, sequence_logps
from spin_utils.model.packing import Group, micro_batches, pack
from spin_utils.settings.run import TrainingSettings
from spin_utils.training.loss import SpinLoss, link, spin_loss
from spin_utils.training.optimizer import MasterOptimizer

logger = logging.getLogger(__name__)

_NAMED = 20  # groups in one message
_REMEDY = (
    "the last saved state is kept. Look at these rows, lower learning_rate, or use precision: float32, "
    "then run the same command again"
)

Row = dict[str, float]
"""One metric row; most of its names are in `StepRunner._row`."""


class TrainingError(KitError):
    """Training cannot continue: a number is not finite, or memory ran out. The message names the groups."""

    exit_status = 1


class StepRunner:
    """One optimizer step: forward and backward over the micro-batches, update, metrics."""

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Sequence[Group],
        settings: TrainingSettings,
        opponent_logps: Sequence[Sequence[float]] | None,
        optimizer: MasterOptimizer,
        describe: Callable[[int], str],
    ) -> None:
        self.model, self.groups, self.settings = model, groups, settings
        self.opponent_logps, self.optimizer, self.describe = opponent_logps, optimizer, describe
        self.budget = settings.micro_batch_tokens
        self.row_at, self.tokens_since, self.groups_since = time.perf_counter(), 0, 0
        self.weights = matrix_weights(model)
        self.flops = 0.0
        """Floating-point operations of the steps taken so far, each token counted once."""
        self.seconds = 0.0
        """Their time."""
        self.values: list[Tensor] = []
        """Of the last global batch, per micro-batch, on the device until a row is requested. Shape (parts, groups): the
        loss, and for pairs also the share won, the margin, real and generated reward, real and generated drift."""
        self.order: list[int] = []
        """The groups' indices in the same order."""

    def __call__(self, indices: list[int], learning_rate: float, logged: bool) -> Row | None:
        """Take a step; return the metric row if `logged`.

        Raises:
            TrainingError: the loss or gradient is not finite, in which case no update is made. Checked when logging,
                and at every step on a CPU.
        """
        started = time.perf_counter()
        batch = {index: self.groups[index] for index in indices}
        shares = _shares(batch, self.settings, paired=self.opponent_logps is not None)
        self._accumulate(batch, shares)
        self.optimizer.add_up()
        norm = self.optimizer.grad_norm() if logged else None
        computed = [batch[i] for share in shares for i in share]
        tokens = sum(group.tokens for group in computed)
        body, head = self.weights
        passes = 3.0 if self.settings.lora is None else 2.0  # weights that do not train need no gradient
        head *= sum(len(ids) for group in computed for ids in group.response_ids)
        self.flops += 2 * passes * (body * tokens + head)
        self.groups_since += len(batch)
        self.tokens_since += tokens
        if logged or self.model.device.type == "cpu":
            self.check_finite()
        row = None if norm is None else self._row(batch, norm)
        if row is not None and not math.isfinite(row["grad_norm"]):
            raise TrainingError(f"the gradient of {self._names(indices)} is not finite; {_REMEDY}")
        self.optimizer.step(learning_rate, norm)
        self.seconds += time.perf_counter() - started
        if row is None:
            return None
        row |= {"learning_rate": learning_rate, "seconds": time.perf_counter() - self.row_at}
        row["tokens_per_second"] = self.tokens_since / row["seconds"]
        row["groups_per_second"] = self.groups_since / row["seconds"]
        self.row_at, self.tokens_since, self.groups_since = time.perf_counter(), 0, 0
        return row

    def check_finite(self) -> None:
        """Raise a `TrainingError` that names the groups if a loss or another value in the metric row is not finite."""
        finite = torch.cat(self.values, 1).isfinite().all(0).tolist() if self.values else []
        own = [index for index, fine in zip(self.order, finite, strict=True) if not fine]
        found = [index for indices in processes.gather(own) for index in indices]
        if found:
            raise TrainingError(f"the loss of {self._names(found)} is not finite; {_REMEDY}")

    def check_weights(self) -> None:
        """Raise a `TrainingError` if weights are not finite: a gradient can overflow even if the loss does not."""
        finite = torch.stack([master.sum() for master in self.optimizer.masters]).isfinite().tolist()
        bad = [name for name, fine in zip(self.optimizer.names, finite, strict=True) if not fine]
        order = [index for indices in processes.gather(self.order) for index in indices]
        for name in (name for names in processes.gather(bad) for name in names):
            raise TrainingError(f"{name} is not finite after a step on {self._names(order)}; {_REMEDY}")

    def _names(self, indices: Sequence[int]) -> str:
        more = f" and {len(indices) - _NAMED} more" if len(indices) > _NAMED else ""
        return ", ".join(map(self.describe, indices[:_NAMED])) + more

    def _accumulate(self, batch: dict[int, Group], shares: list[list[int]]) -> None:
        """Sum the gradients of a global batch; if memory runs out, start again with half the budget."""
        own = shares[processes.rank()]
        while True:
            try:
                self._accumulate_once(batch, shares)
                return
            except (RuntimeError, MemoryError) as error:
                if not (own and _out_of_memory(error)):
                    raise
                largest = max(own, key=lambda index: batch[index].tokens)
                if self.budget <= batch[largest].tokens:
                    raise TrainingError(
                        f"out of memory with {self.describe(largest)} alone, {batch[largest].tokens} tokens; set "
                        "gradient_checkpointing: true, shorten the rows (template.max_prompt_tokens, "
                        "template.max_response_tokens), or use a machine with more memory"
                    ) from None
                if processes.sharded():  # the others are in the middle of their pass and cannot restart
                    raise TrainingError(
                        f"out of memory with micro-batches of {self.budget} tokens, which cannot be halved during a "
                        "sharded step; lower training.micro_batch_tokens, or set gradient_checkpointing: true"
                    ) from None
                self.budget //= 2
                logger.warning("out of memory: continuing with micro-batches of %d tokens", self.budget)
            self.optimizer.clear()  # some parameters may already have a gradient
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulate_once(self, batch: dict[int, Group], shares: list[list[int]]) -> None:
        self.values, self.order = [], []
        pairs = self.opponent_logps is not None
        tokens = sum(len(g.response_ids[0]) for g in batch.values())
        denominator = len(batch) if pairs else tokens
        planned = [_planned(batch, share, self.budget) for share in shares]
        own = planned[processes.rank()]
        for chosen in own:
            packed = pack([batch[i] for i in chosen], self.model.device)
            logps = sequence_logps(self.model, packed)
            if pairs:
                losses, values = self._pair_losses(logps, chosen, len(batch) / tokens)
            else:
                losses, values = -logps, -logps.detach()[None]
            (losses.sum() / denominator).backward()
            self.values.append(values)
            self.order += chosen
        for _ in range(max(map(len, planned)) - len(own)):
            (sequence_logps(self.model, pack([IDLE], self.model.device)).sum() * 0).backward()

    def _pair_losses(self, logps: Tensor, chosen: list[int], groups_per_token: float) -> tuple[Tensor, Tensor]:
        """The loss of each group and its parts, shape (parts, groups); several pairs of one prompt are averaged."""
        assert self.opponent_logps is not None
        settings = self.settings
        values = np.array([self.opponent_logps[i] for i in chosen])
        opponent = torch.tensor(values, dtype=torch.float32, device=logps.device)
        policy = logps.view(len(chosen), -1)

        def compare(better: slice, worse: slice, positive: float = 0.0) -> SpinLoss:
            others = policy[:, worse].shape
            return spin_loss(
                policy_real_logps=policy[:, better].expand(others),
                policy_generated_logps=policy[:, worse],
                opponent_real_logps=opponent[:, better].expand(others),
                opponent_generated_logps=opponent[:, worse],
                beta=settings.beta,
                loss=settings.loss,
                positive=positive,
                reference_free=settings.reference_free,
            )

        real, generated, first = slice(1), slice(1, 2 if settings.historical else None), slice(2, None)
        result = compare(real, generated, settings.positive)
        losses = result.losses.mean(1)
        if settings.nll:  # TRL's mean over the real tokens of the batch, not over responses
            losses = losses - settings.nll * groups_per_token * policy[:, 0]
        if settings.historical:  # T-SPIN: y' in the place of y, and y_0 in that of y'
            losses = losses + settings.historical * compare(generated, first).losses.mean(1)
        drifts = policy.detach() - opponent
        means = (result.margins > 0, *result[1:], drifts[:, real], drifts[:, generated])
        return losses, torch.stack([losses.detach(), *(part.float().mean(1) for part in means)])

    def _row(self, batch: dict[int, Group], norm: Tensor) -> Row:
        """Metrics of the last global batch, with a single transfer from the device.

        Loss, accuracy and margin are means over all pairs, including skipped ones; rewards and drifts (policy minus
        opponent log-probability) are means over the pairs that were computed, by all processes.
        """
        parts = 1 if self.opponent_logps is None else 7
        values = torch.cat(self.values, 1) if self.values else torch.zeros(parts, 0, device=norm.device)
        count = torch.tensor([values.shape[1]], device=norm.device)
        sums = torch.cat([count, values.double().sum(1)])
        processes.add_up(sums)
        grad_norm, computed, loss, *others = torch.cat([norm[None], sums]).tolist()
        if self.opponent_logps is None:
            return {"loss": loss / sum(len(g.response_ids[0]) for g in batch.values()), "grad_norm": grad_norm}
        skipped = len(batch) - int(computed)
        at_zero = float(link(torch.zeros(()), self.settings.loss))
        won, *others = others
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


def pair_micro_batches(batch: dict[int, Group], settings: TrainingSettings) -> list[list[int]]:
    """All micro-batches of a global batch of pairs, by index; pairs that are not computed are in the last ones."""
    parts = _shares(batch, settings, paired=True)
    computed = {index for part in parts for index in part}
    parts.append([index for index in batch if index not in computed])
    return [chosen for part in parts for chosen in _planned(batch, part, settings.micro_batch_tokens)]


def _shares(batch: dict[int, Group], settings: TrainingSettings, paired: bool) -> list[list[int]]:
    """The groups that each process computes, by index."""
    moves = settings.nll or settings.positive or settings.historical  # even if real and generated are equal
    skip = paired and settings.skip_identical and not moves
    kept = [i for i, g in batch.items() if not (skip and len({tuple(ids) for ids in g.response_ids}) == 1)]
    return processes.deal(kept, [batch[i].tokens for i in kept])


def _planned(batch: dict[int, Group], share: list[int], budget: int) -> list[list[int]]:
    """The micro-batches of one process, by index."""
    return [[share[i] for i in chosen] for chosen in micro_batches([batch[i].tokens for i in share], budget)]


def matrix_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Weights that every token is multiplied with, and those of the head, which only response tokens meet."""
    heads: list[Any] = [model.get_output_embeddings(), model.get_input_embeddings()]
    head, table = (module.weight for module in heads)
    outside = _size(head) + (0 if head is table else _size(table))
    return sum(map(_size, model.parameters())) - outside, _size(head)


def _size(parameter: Tensor) -> int:
    """Numbers in a whole parameter; in itself it has none if DeepSpeed shards it."""
    return getattr(parameter, "ds_numel", parameter.numel())


def _out_of_memory(error: BaseException) -> bool:
    signs = ("can't allocate memory", "STATUS_ALLOC_FAILED")  # PyTorch's on the CPU; cuBLAS's and cuDNN's
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
