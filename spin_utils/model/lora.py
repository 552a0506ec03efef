"""Low-rank adapters through peft: attach them to a model, and save them with the checkpoint that they merge into.

A run trains adapters on top of its start checkpoint, which is also its opponent. Every saved checkpoint holds the
adapters as peft saves them, in `adapters`, and the merged weights, so that sampling, scoring and the next run read it
like any other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spin_utils.model import base
from spin_utils.model.base import ModelError
from spin_utils.settings.run import LoraSettings

ADAPTERS = "adapters"
"""Folder of the adapters inside a checkpoint."""


def attach(model: PreTrainedModel, settings: LoraSettings, seed: int) -> Any:
    """Give a model adapters, in place; its own weights no longer train. The model still computes the same.

    Args:
        model: in the precision of the computation.
        seed: of the adapters' random halves; the other halves are 0.

    Returns:
        peft's wrapper around the model, for `save`.

    Raises:
        ModelError: a target is not a linear layer of the model, or is its head.
    """
    from peft import LoraConfig, get_peft_model

    odd = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not _is_linear(module)]
    for target in settings.targets:  # peft passes over those that are not there as long as one is
        found = [m for name, m in model.named_modules() if f".{name}".endswith(f".{target}") and name not in odd]
        if not target or not found or isinstance(found[0], nn.Embedding):  # whose weights may also be the head's
            raise ModelError(
                f"{type(model).__name__}: lora.targets: it has no linear layer {target!r}; correct the name"
            )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=sorted(settings.targets) or "all-linear",
        exclude_modules=odd or None,
    )
    with torch.random.fork_rng(devices=[]):  # by default it starts every GPU
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(f"{type(model).__name__}: lora.targets: {' '.join(str(error).split())[:200]}") from None
    if any(parameter.requires_grad for parameter in model.get_output_embeddings().parameters()):
        raise ModelError(f"{type(model).__name__}: lora.targets has the head; leave it out")
    return adapted


def _is_linear(layer: nn.Linear) -> bool:
    """Whether a layer gives what its class says: routers choose experts, and grouped ones take groups."""
    if type(layer).forward is nn.Linear.forward:
        return True
    with torch.no_grad():
        try:
            output = layer(layer.weight.new_zeros(1, layer.in_features))
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
    return isinstance(output, torch.Tensor) and output.shape == (1, layer.out_features)


def save(adapted: Any, start: Path, folder: Path) -> None:
    """Write the adapters from `attach`, and the checkpoint they were trained on with them merged in, in float32."""
    from peft import PeftModel

    place = folder / ADAPTERS
    adapted.save_pretrained(place, save_embedding_layers=False)
    (place / "README.md").unlink(missing_ok=True)  # peft's form for a model card
    path = place / "adapter_config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    # The same bytes on every machine: peft writes a set in any order, and the folder as it is here.
    written |= {name: sorted(written[name]) for name in ("target_modules", "exclude_modules") if written[name]}
    written["base_model_name_or_path"] = start.name
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    whole = base.load(start, place=torch.device("cpu"))
    merged = PeftModel.from_pretrained(whole, place, local_files_only=True).merge_and_unload()
    merged.save_pretrained(folder)
