"""A user's model folder, looked through before anything long: whole, of a known family, with a tokenizer that fits.

Nothing is loaded but headers, the config and the tokenizer, so a folder of 15 GB takes seconds. What transformers
would pass over with a warning is an error here: it fills tensors that are missing with random numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_utils.files import strict_json
from spin_utils.model.models import ModelError, check_directory, load_tokenizer
from spin_utils.settings.inputs import TemplateSettings

INDEX = "model.safetensors.index.json"

Tensors = dict[str, tuple[Path, list[int], str]]
"""What is stored, by name: its file, shape and type."""


def check(folder: Path, template: TemplateSettings) -> None:
    """Refuse a folder that cannot be trained and sampled from.

    Args:
        folder: of safetensors with config and tokenizer.
        template: the run's; the tokenizer must be able to fill it.

    Raises:
        ModelError: with the file and the remedy.
    """
    from spin_utils.data.templates import TemplateError, end_ids

    check_directory(folder)
    stored = _stored(folder)
    config = _config(folder)
    _check_layers(folder, config, stored)
    model = _skeleton(folder, config)
    _check_weights(folder, model, stored)
    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # the library raises a dozen kinds for a broken file; each means the same to the reader
        raise ModelError(
            f"{folder}: the tokenizer cannot be loaded ({_reason(error)}); save it again with save_pretrained"
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: the tokenizer has no tokenizer.json; save a fast one with save_pretrained")
    largest, places = max(tokenizer.get_vocab().values(), default=-1), model.config.vocab_size
    if largest >= places:
        raise ModelError(
            f"{folder}: the tokenizer's vocabulary goes up to id {largest}, the model's ends at {places - 1}; "
            "use the tokenizer that the model was trained with, or resize its embeddings"
        )
    try:
        end_ids(tokenizer, template)
    except TemplateError as error:
        raise ModelError(f"{folder}: {error}") from None


def _config(folder: Path) -> Any:
    """What transformers makes of config.json."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 1.0)
    except Exception as error:  # as above: the file's values reach any line of the library
        raise _no_model(folder, error) from None
    if isinstance(theta, (int, float)) and theta <= 0:  # transformers goes on, with positions that are no numbers
        raise ModelError(f"{folder / 'config.json'}: rope_theta is {theta}, it must be above 0; copy the model again")
    return config


def _check_layers(folder: Path, config: Any, stored: Tensors) -> None:
    """As many layers as config.json says; looked at first, because a skeleton of many takes long to build."""
    layers = getattr(config, "num_hidden_layers", None)
    if layers is None:
        return
    says = f"{folder / 'config.json'} says {layers} layers"
    if not isinstance(layers, int) or layers < 1:
        raise ModelError(f"{says}; copy the model again")
    numbers = [int(found[1]) for name in stored if (found := re.match(r"model\.layers\.(\d{1,6})\.", name))]
    if not numbers:
        return
    there = max(numbers) + 1
    if layers > there:
        raise ModelError(
            f"{folder}: no tensor model.layers.{there}.* in its safetensors, and {says}; copy the model again, all "
            "files of it"
        )
    if layers < there:
        raise ModelError(f"{folder}: its safetensors hold model.layers.{there - 1}.*, but {says}; copy both again")


def _skeleton(folder: Path, config: Any) -> Any:
    """The model without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from spin_utils.model.attention import UnsupportedModelError, check_model
    from spin_utils.model.decoding import check_supported

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _no_model(folder, error) from None
    try:
        check_supported(model, longest=1)
        check_model(model, longest_row=1)
    except UnsupportedModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    except (TypeError, AttributeError) as error:  # a length that is text, a list where names are needed
        raise _no_model(folder, error) from None
    _check_generation(folder)
    return model


def _check_generation(folder: Path) -> None:
    """transformers reads it with the weights, and writes it again after training."""
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    if not path.exists():
        return
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(f"{path}: cannot be used ({_reason(error)}); correct it, or remove it") from None


def _stored(folder: Path) -> Tensors:
    from safetensors import safe_open

    found: Tensors = {}
    for path in _files(folder):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(name)
                found[name] = (path, part.get_shape(), part.get_dtype())
    return found


def _check_weights(folder: Path, model: Any, stored: Tensors) -> None:
    """Every tensor of the model must be there, with its shape and as plain numbers."""
    tied = "lm_head.weight" if model.config.tie_word_embeddings else ""
    for name, tensor in model.state_dict().items():
        if name not in stored:
            if name == tied:
                continue
            raise ModelError(f"{folder}: no tensor {name} in its safetensors; copy the model again, all files of it")
        path, shape, kind = stored[name]
        if shape != list(tensor.shape):
            raise ModelError(
                f"{path}: {name} has shape {shape}, config.json says {list(tensor.shape)}; copy both again"
            )
        if kind not in ("F32", "F16", "BF16", "F64"):
            raise ModelError(
                f"{path}: {name} is stored as {kind}; weights must not be quantised: save them as bfloat16"
            )


def _files(folder: Path) -> list[Path]:
    """The files that transformers reads: model.safetensors, or the ones that the index names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    try:
        index = strict_json.parse((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}: neither model.safetensors nor a readable {INDEX} ({error}); write both again"
        ) from None
    places = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(places, Mapping) or not places:
        raise ModelError(f"{folder / INDEX}: no weight_map; write the model again with save_pretrained")
    files = sorted({str(name) for name in places.values()})
    for name in files:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{folder / INDEX}: names {name!r}, which is no file in this folder; copy all shards")
    return [folder / name for name in files]


def _no_model(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{folder / 'config.json'}: no causal language model can be made of it ({_reason(error)}); "
        "correct it or write the model again"
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
