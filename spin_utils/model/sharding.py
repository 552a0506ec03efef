"""Weights spread over processes, so that each holds its part of weights, gradients and optimizer state.

By FSDP2, which is described here, or by DeepSpeed ZeRO-3, which is in `zero3`; other rooms know only these functions.
PyTorch's `fully_shard` gathers the weights of one layer at a time, in compute precision, and sums the gradients in
float32 into each process's part. The parts are the float32 masters themselves. (accelerate, asked for FSDP2 on a CPU,
silently trains without sharding; PyTorch's own function works there too, so that the tests run what GPUs run.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from spin_utils.files import processes
from spin_utils.model import zero3


def shard(model: PreTrainedModel, dtype: torch.dtype) -> torch.dtype:
    """Spread a model over the processes, layer by layer. Afterwards call it only as a whole, in all of them at once.

    Args:
        model: whole, the same in every process.
        dtype: of the computation.

    Returns:
        Precision that the parts must have in training: float32 where the weights are rounded as they are gathered.
    """
    if processes.sharding() == "zero3":
        zero3.shard(model)
        return dtype
    mesh = init_device_mesh(model.device.type, (processes.count(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in [*model.get_decoder().layers, model]:
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)  # the loss has the global batch as its denominator: sum, not mean
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    return torch.float32


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` spread this model."""
    return isinstance(model, FSDPModule) or any(map(zero3.is_sharded, model.parameters()))


def local(tensor: Tensor) -> Tensor:
    """This process's part of a parameter, sharing its memory; one that is not spread is its own part."""
    if zero3.is_sharded(tensor):
        return zero3.local(tensor)
    # `detach` first: the way from a whole tensor to its part would be differentiable.
    own = tensor.detach() if isinstance(tensor, DTensor) else tensor
    return own.to_local() if isinstance(own, DTensor) else own


def shape(parameter: Tensor) -> torch.Size:
    """Shape of the whole parameter."""
    return zero3.shape(parameter) if zero3.is_sharded(parameter) else parameter.shape


def gradient(parameter: Tensor) -> Tensor:
    """Gradient of a parameter after a backward pass: this process's part of the sum over all, or its own if whole."""
    assert parameter.grad is not None
    return zero3.gradient(parameter) if zero3.is_sharded(parameter) else local(parameter.grad)


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The parts of all processes put together: on the CPU of the first, empty elsewhere.

    Args:
        part: this process's part.
        like: a parameter that is spread in the same way; `part` itself is returned if it is not spread.
    """
    if zero3.is_sharded(like):
        full = zero3.whole(part, like)
    elif isinstance(like, DTensor):
        spread = DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        full = spread.full_tensor()
    else:
        return part
    return full.cpu() if processes.rank() == 0 else full.new_empty(0)


def part(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all have whole; the inverse of `whole`."""
    if zero3.is_sharded(like):
        return zero3.part(full, like)
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Weights to write, whole in the first process; None if the model has them itself. Tied weights come once."""
    if not is_sharded(model):
        return None
    state = model.state_dict(keep_vars=True)
    buffers = {name: value for name, value in state.items() if not isinstance(value, nn.Parameter)}
    return {name: whole(local(value), value) for name, value in model.named_parameters()} | buffers
