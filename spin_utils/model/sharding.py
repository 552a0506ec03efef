"""Weights spread over processes, so that each holds its part of weights, gradients and optimizer state.

By FSDP2 or by DeepSpeed ZeRO-3; the rest of the package knows only the functions below. With FSDP2 PyTorch's
`fully_shard` gathers the weights of one layer at a time, in compute precision, and sums the gradients in float32 into
each process's part; the parts are the float32 masters themselves. (accelerate, asked for FSDP2 on a CPU, silently
trains without sharding; PyTorch's own function works there too, so the tests run what GPUs run.)

With ZeRO-3 DeepSpeed cuts every weight into equal flat parts, one per process, gathers the weights of a layer when it
computes and releases them again. Everything else is the kit's: gradients are summed in float32 into each process's
part, and its optimizer updates the parts, so that batches, clipping and the saved state are those of one process.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from spin_utils.files import processes

Parameter = Any
"""A parameter of a model. Cut by DeepSpeed, its `ds_tensor` is this process's part, flat and padded with zeros;
`ds_numel` and `ds_shape` are those of the whole."""


def shard(model: PreTrainedModel, dtype: torch.dtype) -> torch.dtype:
    """Spread a model over the processes, layer by layer. Afterwards call it only as a whole, in all of them at once.

    Args:
        model: whole, the same in every process.
        dtype: of the computation.

    Returns:
        Precision that the parts must have in training: float32 where the weights are rounded as they are gathered.
    """
    if processes.sharding() == "zero3":
        _shard_by_deepspeed(model)
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
    return isinstance(model, FSDPModule) or any(map(_is_cut, model.parameters()))


def local(parameter: Parameter) -> Tensor:
    """This process's part of a parameter, sharing its memory; one that is not spread is its own part."""
    if _is_cut(parameter):
        return parameter.ds_tensor
    # `detach` first: the way from a whole tensor to its part would be differentiable.
    own = parameter.detach() if isinstance(parameter, DTensor) else parameter
    return own.to_local() if isinstance(own, DTensor) else own


def shape(parameter: Parameter) -> torch.Size:
    """Shape of the whole parameter."""
    return parameter.ds_shape if _is_cut(parameter) else parameter.shape


def gradient(parameter: Parameter) -> Tensor:
    """Gradient of a parameter after a backward pass: this process's part of the sum over all, or its own if whole."""
    assert parameter.grad is not None
    if not _is_cut(parameter):
        return local(parameter.grad)
    own = torch.empty_like(parameter.ds_tensor, dtype=torch.float32)
    distributed.reduce_scatter_tensor(own, _padded(parameter.grad.float(), parameter))
    return own


def whole(part: Tensor, like: Parameter) -> Tensor:
    """The parts of all processes put together: on the CPU of the first, empty elsewhere.

    Args:
        part: this process's part.
        like: a parameter that is spread in the same way; `part` itself is returned if it is not spread.
    """
    if _is_cut(like):
        flat = part.new_empty(part.numel() * processes.count())
        distributed.all_gather_into_tensor(flat, part)
        full = flat[: like.ds_numel].view(like.ds_shape)
    elif isinstance(like, DTensor):
        spread = DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        full = spread.full_tensor()
    else:
        return part
    return full.cpu() if processes.rank() == 0 else full.new_empty(0)


def part(full: Tensor, like: Parameter) -> Tensor:
    """This process's part of a tensor that all have whole; the inverse of `whole`."""
    if _is_cut(like):
        return _padded(full.to(like.device), like).chunk(processes.count())[processes.rank()]
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


def _shard_by_deepspeed(model: PreTrainedModel) -> None:
    import deepspeed  # an extra; `processes.check_available` has looked for it

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it compiles what the kit has no use for
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,  # required, but only DeepSpeed's own optimizers use it
        "bf16": {"enabled": model.dtype == torch.bfloat16},
        # No weight stays whole after its layer; by DeepSpeed's defaults those of a model below 1e9 weights all do.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config)
    # The head's weight is used outside the head, and the last micro-batch leaves some old weights gathered.
    deepspeed.zero.register_external_parameter(model, model.get_output_embeddings().weight)
    model.register_forward_pre_hook(lambda *_: engine.optimizer.empty_partition_cache(), prepend=True)
    parameter: Parameter
    for parameter in model.parameters():
        own = parameter.ds_tensor
        own[max(0, parameter.ds_numel - processes.rank() * own.numel()) :].zero_()  # DeepSpeed leaves the padding unset


def _is_cut(parameter: Parameter) -> bool:
    """Whether DeepSpeed spread the model of this parameter."""
    return hasattr(parameter, "ds_tensor")


def _padded(full: Tensor, parameter: Parameter) -> Tensor:
    """Flat and as long as all parts together."""
    return pad(full.flatten(), (0, parameter.ds_tensor.numel() * processes.count() - full.numel()))
