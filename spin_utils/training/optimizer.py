"""Optimizers with float32 master weights.

At a learning rate of 5e-7 an update is about 1e-5 of a weight, far below half a unit in the last place of bfloat16
(2e-3), so weights in bfloat16 alone would never move (docs/speed.md). In float32 the masters are the model's own
parameters. With sharding, every process has its shard of masters and moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from spin_utils.files import processes
from spin_utils.model import sharding
from spin_utils.settings.run import TrainingSettings

ALPHA, BETA_1, BETA_2, EPSILON = 0.99, 0.9, 0.999, 1e-8
"""RMSprop's alpha, AdamW's two betas, and epsilon: PyTorch's defaults."""
CHUNK, GPU_CHUNK = 2**17, 2**26
"""Weights updated together: on a CPU few enough to stay in the cache after the first pass, on a GPU those of many
tensors, to save calls."""


_Parts = list[tuple[int, slice]]


class MasterOptimizer:
    """RMSprop or AdamW over the trainable parameters of a model, equal to torch.optim in float32.

    Args:
        model: its trainable parameters, or this process's shards of them, are converted to `dtype`; masters start from
            their values before that.
        dtype: compute precision, bfloat16 or float32; for a sharded model the one returned by `sharding.shard`.
    """

    def __init__(self, model: nn.Module, settings: TrainingSettings, dtype: torch.dtype) -> None:
        self.settings = settings
        self.steps = 0
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.sharded = sharding.is_sharded(model)
        self.own = [sharding.local(parameter) for parameter in self.parameters]
        self.masters: list[Tensor] = []
        for own in self.own:
            master = own.detach().float().contiguous()
            own.data = master.to(dtype)  # in float32 the master itself
            self.masters.append(master)
        self.gradients: list[Tensor | None] = [None] * len(self.masters)
        moments = ("square_avg",) if settings.optimizer == "rmsprop" else ("exp_avg", "exp_avg_sq")
        self.moments = {moment: [torch.zeros_like(master) for master in self.masters] for moment in moments}
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._collect, index))
            for index, parameter in enumerate(self.parameters)
        ]

    def add_up(self) -> None:
        """Sum the gradients over processes; with sharding each already has the sum for its shard."""
        if processes.count() > 1 and not self.sharded:
            sums = [gradient.float() for gradient in self._filled()]
            processes.add_up(*sums)
            self.gradients = [*sums]

    def grad_norm(self) -> Tensor:
        """Norm of the summed gradients, float32 scalar on their device."""
        gradients = self._filled()
        norms = [norm for parts in self._parts() for norm in torch._foreach_norm(_floats(gradients, parts))]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if not self.sharded:
            return norm
        square = norm.square()
        processes.add_up(square)
        return square.sqrt()

    @torch.no_grad()
    def step(self, learning_rate: float, norm: Tensor | None = None) -> None:
        """Update the master weights, refresh the model's copies and clear the gradients.

        The norm of the gradients, computed here if it is not given, is only needed for clipping.
        """
        self.steps += 1
        filled = self._filled()
        scale = None
        if self.settings.max_grad_norm:
            norm = self.grad_norm() if norm is None else norm
            scale = (self.settings.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_
        rounded = self.own[0].dtype != torch.float32
        for parts in self._parts():
            gradients, masters = _floats(filled, parts), _views(self.masters, parts)
            if scale is not None:
                torch._foreach_mul_(gradients, scale)
            if self.settings.weight_decay:
                torch._foreach_mul_(masters, 1 - learning_rate * self.settings.weight_decay)
            moments = [_views(moment, parts) for moment in self.moments.values()]
            self._update(masters, gradients, moments, learning_rate)
            if rounded:
                torch._foreach_copy_(_views(self.own, parts), masters)
        self.gradients = [None] * len(self.masters)

    def clear(self) -> None:
        """Discard the summed gradients."""
        self.gradients = [None] * len(self.masters)
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by name, except the number of steps.

        The same for any number of processes: with sharding, whole in the first one and empty in the others.
        """
        return {name: sharding.whole(tensor, parameter) for name, tensor, parameter in self._kept()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore the state returned by `tensors`."""
        for name, tensor, parameter in self._kept():
            tensor.copy_(sharding.part(tensors[name], parameter))
        for own, master in zip(self.own, self.masters, strict=True):
            if own.dtype != torch.float32:
                own.copy_(master)
        self.steps = steps

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Inside the block the model has its float32 weights, as after `close`."""
        copies = [own.data for own in self.own]
        for own, master in zip(self.own, self.masters, strict=True):
            own.data = master
        try:
            yield
        finally:
            for own, copy in zip(self.own, copies, strict=True):
                own.data = copy

    def close(self) -> None:
        """Turn the model back into an ordinary one with its float32 weights: no hooks, no gradients.

        Rounding them to bfloat16 would lose the small updates of the last steps.
        """
        for hook in self._hooks:
            hook.remove()
        for parameter, own, master in zip(self.parameters, self.own, self.masters, strict=True):
            parameter.grad = None
            own.data = master

    def _kept(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, tensor and parameter of everything in the saved state."""
        for kind, tensors in {"master": self.masters, **self.moments}.items():
            for name, tensor, parameter in zip(self.names, tensors, self.parameters, strict=True):
                yield f"{kind}.{name}", tensor, parameter

    def _collect(self, index: int, parameter: Tensor) -> None:
        if parameter.grad is not None:
            gradient, total = sharding.gradient(parameter), self.gradients[index]
            # A first gradient is kept as it is, without a pass over memory; sums are in float32.
            self.gradients[index] = gradient if total is None else total.float().add_(gradient)
            parameter.grad = None

    def _filled(self) -> list[Tensor]:
        """The gradients, with zeros where a weight got none."""
        pairs = zip(self.gradients, self.own, strict=True)
        return [torch.zeros_like(own) if gradient is None else gradient for gradient, own in pairs]

    def _parts(self) -> Iterator[_Parts]:
        """All weights, as tensor index and slice, in lots that are updated together."""
        on_cpu = self.masters[0].device.type == "cpu"
        lot: _Parts = []
        filled = 0
        for index, master in enumerate(self.masters):
            size = CHUNK if on_cpu else max(1, master.numel())
            for start in range(0, master.numel(), size):
                if lot and (on_cpu or filled + size > GPU_CHUNK):
                    yield lot
                    lot, filled = [], 0
                lot.append((index, slice(start, start + size)))
                filled += size
        if lot:
            yield lot

    def _update(
        self, masters: list[Tensor], gradients: list[Tensor], moments: list[list[Tensor]], learning_rate: float
    ) -> None:
        """One pass over weights, gradients and moments, by PyTorch's fused Adam.

        RMSprop is Adam with beta_1 = 0, so that the first moment is the gradient itself, and without bias correction,
        that is, after infinitely many steps.
        """
        adam = self.settings.optimizer == "adamw"
        first, second = moments if adam else (gradients, moments[0])
        step = torch.full((), self.steps if adam else 1e9, device=masters[0].device)
        torch._fused_adam_(
            masters,
            gradients,
            first,
            second,
            [],
            [step] * len(masters),
            lr=learning_rate,
            beta1=BETA_1 if adam else 0.0,
            beta2=BETA_2 if adam else ALPHA,
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )


def _views(tensors: list[Tensor], parts: _Parts) -> list[Tensor]:
    return [tensors[index].view(-1)[part] for index, part in parts]


def _floats(gradients: list[Tensor], parts: _Parts) -> list[Tensor]:
    """Parts of gradients in float32: a copy of what is in bfloat16."""
    return [gradients[index].reshape(-1)[part].float() for index, part in parts]
