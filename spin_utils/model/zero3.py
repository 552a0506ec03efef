"""Weights spread over processes by DeepSpeed ZeRO-3; `sharding` calls this room for models that are spread so.

DeepSpeed cuts every weight into equal flat parts, one a process, gathers the weights of a layer when it computes and
lets them go again. Everything else is the kit's: gradients are summed in float32 into each process's part, and its
optimizer updates the parts, so that batches, clipping and the saved state are those of one process.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad
from transformers import PreTrainedModel

from spin_utils.files import processes

Cut = Any
"""A parameter that DeepSpeed cut: `ds_tensor` is this process's part, `ds_numel` and `ds_shape` are of the whole."""


def shard(model: PreTrainedModel) -> None:
    """Spread a model over the processes. Afterwards call it only as a whole, in all of them at once.

    Args:
        model: whole, the same in every process, in the precision that its parts shall have.
    """
    import deepspeed  # an extra; `processes.check_available` has looked for it

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it compiles what the kit has no use for
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,  # asked for, and used by DeepSpeed's own optimizers only
        "bf16": {"enabled": model.dtype == torch.bfloat16},
        # No weight stays whole after its layer; by DeepSpeed's defaults those of a model below 1e9 weights all do.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config)
    # The head's weight is used outside the head, and the last micro-batch has left some weights gathered, as they were.
    deepspeed.zero.register_external_parameter(model, model.get_output_embeddings().weight)
    model.register_forward_pre_hook(lambda *_: engine.optimizer.empty_partition_cache(), prepend=True)
    parameter: Cut
    for parameter in model.parameters():
        own = parameter.ds_tensor
        own[max(0, parameter.ds_numel - processes.rank() * own.numel()) :].zero_()  # DeepSpeed leaves the padding unset


def is_sharded(parameter: Tensor | Cut) -> bool:
    """Whether `shard` spread the model of this parameter."""
    return hasattr(parameter, "ds_tensor")


def local(parameter: Cut) -> Tensor:
    """This process's part of a parameter, sharing its memory: flat, padded with zeros."""
    return parameter.ds_tensor


def shape(parameter: Cut) -> torch.Size:
    """Shape of the whole parameter."""
    return parameter.ds_shape


def gradient(parameter: Cut) -> Tensor:
    """This process's part of the sum of all processes' gradients: float32, flat, padded with zeros."""
    own = torch.empty_like(parameter.ds_tensor, dtype=torch.float32)
    distributed.reduce_scatter_tensor(own, _padded(parameter.grad.float(), parameter))
    return own


def whole(part: Tensor, parameter: Cut) -> Tensor:
    """The parts of all processes put together, in all of them."""
    full = part.new_empty(part.numel() * processes.count())
    distributed.all_gather_into_tensor(full, part)
    return full[: parameter.ds_numel].view(parameter.ds_shape)


def part(full: Tensor, parameter: Cut) -> Tensor:
    """This process's part of a tensor that all have whole; the inverse of `whole`."""
    return _padded(full.to(parameter.device), parameter).chunk(processes.count())[processes.rank()]


def _padded(full: Tensor, parameter: Cut) -> Tensor:
    """Flat and as long as all parts together."""
    return pad(full.flatten(), (0, parameter.ds_tensor.numel() * processes.count() - full.numel()))
