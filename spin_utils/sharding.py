"""Weights spread over processes by FSDP2, so that each holds its part of weights, gradients and optimizer state.

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

from spin_utils import processes


def shard(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Spread a model over the processes, layer by layer. Afterwards call it only as a whole, in all of them at once.

    Args:
        model: whole, the same in every process.
        dtype: of the computation.
    """
    mesh = init_device_mesh(model.device.type, (processes.count(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in [*model.get_decoder().layers, model]:
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)  # the loss has the global batch as its denominator: sum, not mean
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` spread this model."""
    return isinstance(model, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; a tensor that is not spread is its own part."""
    # `detach` first: the way from a whole tensor to its part would be differentiable.
    own = tensor.detach() if isinstance(tensor, DTensor) else tensor
    return own.to_local() if isinstance(own, DTensor) else own


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The parts of all processes put together: on the CPU of the first, empty elsewhere.

    Args:
        part: this process's part.
        like: a parameter that is spread in the same way; `part` itself is returned if it is not spread.
    """
    if not isinstance(like, DTensor):
        return part
    spread = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    full = spread.full_tensor()
    return full.cpu() if processes.rank() == 0 else full.new_empty(0)


def part(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all have whole; the inverse of `whole`."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Weights to write, whole in the first process; None if the model has them itself. Tied weights come once."""
    if not is_sharded(model):
        return None
    buffers = {name: value for name, value in model.state_dict().items() if not isinstance(value, DTensor)}
    return {name: whole(local(value), value) for name, value in model.named_parameters()} | buffers
