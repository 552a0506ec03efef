"""Sharding: each process holds its part of weights, gradients and optimizer state, with FSDP2 or DeepSpeed ZeRO-3.

With FSDP2, PyTorch's `fully_shard` gathers the weights of one layer at a time in compute precision and sums gradients
in float32; the shards are the float32 master weights. (On a CPU, accelerate's FSDP2 silently trains without sharding;
PyTorch's own function does shard there, so the tests run the same code as GPUs.) With ZeRO-3, DeepSpeed only splits
every weight into equal flat shards and gathers a layer's for its computation. The kit sums the gradients and updates
the shards with its own optimizer, so batches, clipping and the saved state are those of one process.
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
from spin_utils.model.layers import decoder_layers

Parameter = Any
"""A parameter of a model. If DeepSpeed shards it, `ds_tensor` is this process's shard, flat and padded with zeros, and
`ds_numel` and `ds_shape` are those of the whole."""


def shard(model: PreTrainedModel, dtype: torch.dtype) -> torch.dtype:
    """Shard a model, the same in every process, layer by layer. From then on it is called as a whole, in all at once.

    Returns:
        Precision that the shards must have in training: float32 if weights are rounded when they are gathered.
    """
    if processes.sharding() == "zero3":
        _shard_by_deepspeed(model)
        return dtype
    mesh = init_device_mesh(model.device.type, (processes.count(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in [*decoder_layers(model), model]:
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)  # the loss has the global batch as its denominator: sum, not mean
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    return torch.float32


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was applied to this model."""
    return isinstance(model, FSDPModule) or any(map(_is_cut, model.parameters()))


def local(parameter: Parameter) -> Tensor:
    """This process's shard of a parameter, sharing its memory; the parameter itself if it is not sharded."""
    if _is_cut(parameter):
        return parameter.ds_tensor
    # `detach` first: getting the shard would otherwise be part of the graph.
    own = parameter.detach() if isinstance(parameter, DTensor) else parameter
    return own.to_local() if isinstance(own, DTensor) else own


def gradient(parameter: Parameter) -> Tensor:
    """Gradient after a backward pass: this process's shard of the sum over processes, or its own if not sharded."""
    assert parameter.grad is not None
    if not _is_cut(parameter):
        return local(parameter.grad)
    own = torch.empty_like(parameter.ds_tensor, dtype=torch.float32)
    distributed.reduce_scatter_tensor(own, _padded(parameter.grad.float(), parameter))
    return own


def whole(part: Tensor, like: Parameter) -> Tensor:
    """The full tensor from the shards of all processes, cut like a parameter: on the first one's CPU, empty elsewhere.

    If the parameter is not sharded, `part` is returned.
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
    """This process's shard of a tensor that all processes have in full; the inverse of `whole`."""
    if _is_cut(like):
        return _padded(full.to(like.device), like).chunk(processes.count())[processes.rank()]
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Full weights to save, in the first process; None if the model is not sharded. Tied weights appear once."""
    if not is_sharded(model):
        return None
    state = model.state_dict(keep_vars=True)
    buffers = {name: value for name, value in state.items() if not isinstance(value, nn.Parameter)}
    return {name: whole(local(value), value) for name, value in model.named_parameters()} | buffers


def _shard_by_deepspeed(model: PreTrainedModel) -> None:
    import deepspeed  # an extra; `experiment.launch` has looked for it

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # an extension to compile, which nothing here needs
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,  # required, but only DeepSpeed's own optimizers use it
        "bf16": {"enabled": model.dtype == torch.bfloat16},
        # Release every weight after its layer; by default DeepSpeed keeps all weights of a model below 1e9.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config)
    # The head's weight is used outside the head's module, and the last micro-batch leaves old weights gathered.
    deepspeed.zero.register_external_parameter(model, model.get_output_embeddings().weight)
    model.register_forward_pre_hook(lambda *_: engine.optimizer.empty_partition_cache(), prepend=True)
    parameter: Parameter
    for parameter in model.parameters():
        own = parameter.ds_tensor
        own[max(0, parameter.ds_numel - processes.rank() * own.numel()) :].zero_()  # DeepSpeed leaves the padding unset


def _is_cut(parameter: Parameter) -> bool:
    """Whether DeepSpeed shards this parameter."""
    return hasattr(parameter, "ds_tensor")


def _padded(full: Tensor, parameter: Parameter) -> Tensor:
    """The tensor flattened and padded to the length of all shards together."""
    return pad(full.flatten(), (0, parameter.ds_tensor.numel() * processes.count() - full.numel()))
