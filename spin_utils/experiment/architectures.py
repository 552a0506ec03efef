"""Sizes of a profile's base model, found without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_utils.model import base
from spin_utils.paper.cost_model import Architecture
from spin_utils.settings.inputs import ModelSettings

FAMILIES = ("llama", "mistral", "qwen2")
KNOWN = {
    "alignment-handbook/zephyr-7b-sft-full": Architecture(),
    "Qwen/Qwen2.5-0.5B": Architecture(
        layers=24,
        hidden=896,
        query=896,
        key_value=128,
        feed_forward=4864,
        vocabulary=151_936,
        heads=14,
        tied=True,
        biased=True,
    ),
}
"""Models of the shipped profiles, for when the hub is out of reach. Source: the config.json of Mistral-7B-v0.1, which
zephyr-7b-sft-full was trained from, and that of Qwen2.5-0.5B, as published on the hub."""


def find(settings: ModelSettings, *, reachable: bool = False) -> tuple[Architecture, str] | None:
    """Sizes and where they were read, or None where nothing on this machine or on the hub says them.

    Args:
        settings: the model's source.
        reachable: whether the hub may be asked for a config.json that was not downloaded before.

    Raises:
        ModelError: a local model is not where the settings say, or is of another family.
    """
    if settings.source == "tiny":
        heads = settings.hidden_size // 16
        qwen = settings.name == "qwen2"
        return Architecture(
            layers=settings.layers,
            hidden=settings.hidden_size,
            query=settings.hidden_size,
            key_value=16 * max(1, heads // 2),
            feed_forward=2 * settings.hidden_size,
            vocabulary=settings.vocabulary_size,
            heads=heads,
            tied=qwen,
            biased=qwen,
        ), "the profile"
    if settings.source == "gguf_package":
        return _of_gguf(base.gguf_path(settings)), "the GGUF file"
    if settings.source == "directory":
        path = base.check_directory(Path(settings.path)) / "config.json"
        return of_config(json.loads(path.read_text(encoding="utf-8")), settings.path), "its config.json"
    config = _hub_config(settings, reachable)
    if config is not None:
        return of_config(config, settings.name), "its config.json on the hub"
    known = KNOWN.get(settings.name)
    return None if known is None else (known, "the kit's table, because its config.json could not be reached")


def of_config(config: Mapping[str, Any], name: str) -> Architecture:
    """Sizes from a config.json.

    Raises:
        ModelError: another family than Llama, Mistral or Qwen2, or a size is missing.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise base.ModelError(f"{name}: model type {family!r}; the kit trains {', '.join(FAMILIES)}")
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        size = int(config.get("head_dim") or hidden // heads)
        return Architecture(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            query=heads * size,
            key_value=int(config.get("num_key_value_heads") or heads) * size,
            feed_forward=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            heads=heads,
            tied=bool(config.get("tie_word_embeddings", False)),
            biased=family == "qwen2" or bool(config.get("attention_bias", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise base.ModelError(f"{name}: config.json has no usable {error}; write the model again") from None


def _of_gguf(path: Path) -> Architecture:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer")}
    family = fields["general.architecture"]
    heads, hidden = (int(fields[f"{family}.{name}"]) for name in ("attention.head_count", "embedding_length"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    size = hidden // heads
    return Architecture(
        layers=int(fields[f"{family}.block_count"]),
        hidden=hidden,
        query=heads * size,
        key_value=int(fields[f"{family}.attention.head_count_kv"]) * size,
        feed_forward=int(fields[f"{family}.feed_forward_length"]),
        vocabulary=int(tensors["token_embd.weight"].shape[1]),
        heads=heads,
        tied="output.weight" not in tensors,
        biased="blk.0.attn_q.bias" in tensors,
    )


def _hub_config(settings: ModelSettings, reachable: bool) -> dict[str, Any] | None:
    """The model's config.json from the hub's cache or, if it can be reached, from the hub."""
    if not settings.revision:
        return None
    from huggingface_hub import errors, hf_hub_download

    try:
        path = hf_hub_download(settings.name, "config.json", revision=settings.revision, local_files_only=not reachable)
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError):
        return None
    return json.loads(Path(path).read_text(encoding="utf-8"))
