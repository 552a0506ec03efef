"""The base model: find it, check it and turn it into a plain folder of safetensors.

There are four sources: a hub id at a pinned revision, a local folder, a GGUF file inside an installed package, and a
tiny random model with a tokenizer trained on the spot. Only safetensors are read or written, and remote code is never
run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from spin_utils.files import hub, runtime
from spin_utils.files.disk import file_hash
from spin_utils.files.paths import KitError, reason
from spin_utils.settings.inputs import ModelSettings, TemplateSettings

log = logging.getLogger(__name__)
# A model that lacks tensors is refused below in one line; this is its table of all of them.
logging.getLogger("transformers.modeling_utils").addFilter(lambda record: "| MISSING" not in record.getMessage())

END = "<|im_end|>"
START = "<|im_start|>"
UNKNOWN = "<|unknown|>"
_TINY_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_MIXED = " Hello world,\n\n  it's 12345 and 6.7:\tdéjà vu, 漢字 🙂 def f(x): return x  \n"
"""What tokenizers split in different ways."""


class ModelError(KitError):
    """The model cannot be found, trained or sampled from. The message names the place and the remedy."""


def identity(settings: ModelSettings) -> dict[str, Any]:
    """The model's identity by content, part of the key of everything made from it.

    It is also the first check: a missing folder, package or file is an error here.

    Raises:
        ModelError: the model is not where the settings say.
    """
    if settings.source == "hub":
        if not settings.revision:
            raise ModelError(f"{settings.name}: no revision; pin its commit, 40 hexadecimal digits (a branch moves)")
        return {"source": "hub", "name": settings.name, "revision": settings.revision}
    if settings.source == "directory":
        folder = check_directory(Path(settings.path))
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")])
        return {"source": "directory", "files": {p.name: _content(p) for p in files if p.is_file()}}
    if settings.source == "gguf_package":
        path = gguf_path(settings)
        digest = _content(path)
        if settings.sha256 and digest != settings.sha256:
            raise ModelError(
                f"{path.name}: sha256 is {digest}, the profile says {settings.sha256}; reinstall {settings.name}"
            )
        return {"source": "gguf_package", "name": settings.name, "sha256": digest}
    return {
        "source": "tiny",
        "name": settings.name,
        "size": [settings.hidden_size, settings.layers, settings.vocabulary_size],
    }


def _content(path: Path) -> str:
    """Hash of a file of perhaps gigabytes; a command makes several plans, and reads it once unless it changes."""
    found = path.stat()
    return _hash(path, found.st_size, found.st_mtime_ns)


@cache
def _hash(path: Path, size: int, changed_ns: int) -> str:
    return file_hash(path)


def materialise(settings: ModelSettings, work: Path, texts: Iterable[str], seed: int) -> Path:
    """Write the base model as a plain folder, and return the one to load from.

    Args:
        work: folder to fill. Models from the hub or a folder are not copied; `model.json` points to them.
        texts: the demonstrations, used to train a tiny model's tokenizer.
        seed: seed of a tiny model's weights.
    """
    if settings.source == "gguf_package":
        _dequantize(gguf_path(settings), work)
    elif settings.source == "tiny":
        _build_tiny(settings, work, texts, seed)
    else:
        where = settings.path
        if settings.source == "hub":
            where = str(hub.fetch("model", settings.name, settings.revision))
        (work / "model.json").write_text(json.dumps({"path": str(Path(where).resolve())}) + "\n")
        if settings.source == "hub":  # a folder was refused
            try:
                _check_ids(Path(where), load_tokenizer(work))
            except ModelError as error:
                log.warning("%s", error)
    return resolve(work)


def resolve(folder: Path) -> Path:
    """Follow `model.json` to the folder that holds the weights."""
    pointer = Path(folder) / "model.json"
    return check_directory(Path(json.loads(pointer.read_text())["path"]) if pointer.is_file() else Path(folder))


def load(folder: Path, dtype: Any = None, *, place: Any = None) -> Any:
    """Load a causal language model for training or sampling.

    Args:
        folder: a folder of safetensors, or an artifact that points to one.
        dtype: torch dtype of the weights; float32 if None.
        place: device to load it to; None: the accelerator if there is one.

    Raises:
        ModelError: a weight is missing, NaN or infinite.
    """
    import torch

    source = resolve(folder)
    model = _read(source, dtype=dtype or torch.float32)[0].to(place or device())
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"{source}: {name} contains NaN or infinity; copy the model again or use another one")
    return model


def _read(source: Path, **how: Any) -> tuple[Any, dict[str, Any]]:
    """A folder's model, and what transformers tells about its tensors; a `ModelError` if one is missing."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        generation_config=_ends(source),
        **how,
    )
    model, found = loaded
    for name in model.state_dict():
        if name in found["missing_keys"]:  # which transformers fills with random numbers
            raise ModelError(f"{source}: no tensor {name} in its safetensors; copy all files of the model again")
    return model, found


def _ends(source: Path) -> Any:
    """The end tokens of generation_config.json, if it is there; transformers refuses other values of it, all unused."""
    from transformers import GenerationConfig

    path = source / "generation_config.json"
    if not path.is_file():
        return None  # transformers asks config.json
    return GenerationConfig(eos_token_id=json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))


def load_for_inference(folder: Path) -> Any:
    """Load a model for sampling or scoring, in this machine's faster precision. See `load`."""
    return load(folder, runtime.choose_precision("auto", device()))


def load_to_compare(folders: Collection[Path], dtype: Any = None) -> list[Any]:
    """Load models together, on the accelerator if all of them fit there beside what it holds, else in main memory.

    `dtype` as in `load`: float32 if None, as training scores them.

    Raises:
        ModelError: several fit nowhere together.
    """
    import torch

    numbers = sum(weight.numel() for folder in folders for weight in _skeleton(resolve(folder)).parameters())
    needed, place = (dtype or torch.float32).itemsize * numbers, device()
    torch.cuda.empty_cache()  # which PyTorch would use, but the device counts as taken
    if place.type == "cuda" and needed > 0.8 * torch.cuda.mem_get_info()[0]:
        place = torch.device("cpu")
    free = runtime.free_memory()
    if place.type == "cpu" and len(folders) > 1 and needed > free:
        raise ModelError(
            f"these {len(folders)} models take {needed / 1e9:.3g} GB together, and {free / 1e9:.3g} GB of main memory "
            "are free; compare them on a machine with more"
        )
    return [load(folder, dtype, place=place) for folder in folders]


def device() -> Any:
    """The accelerator if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model's folder."""
    return tokenizer_of(resolve(folder))


def tokenizer_of(folder: Path) -> Any:
    """Load the tokenizer in a folder that may have no weights."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises a dozen kinds for a broken file, all meaning the same here
        raise ModelError(
            f"{folder}: the tokenizer cannot be loaded ({reason(error)}); save it again with save_pretrained"
        ) from None


def positions(folder: Path) -> int:
    """Longest row that a model accepts, in tokens."""
    from spin_utils.model import general

    return general.positions(_skeleton(resolve(folder)).config)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights as safetensors, and the tokenizer into the same folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_directory(folder: Path) -> Path:
    """Return a model's folder, or raise a `ModelError`: no config, tokenizer or safetensors, or an adapter alone."""
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such model folder; check the path (from the current folder), or for a model of the hub set "
            "model={source: hub, name: owner/name, revision: COMMIT}"
        )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: adapter_config.json says it is an adapter for another model; merge the two (merge_and_unload) "
            "and save the whole model"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; give a folder written by save_pretrained")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        _check_plain(folder / name)
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        if parts := sorted(p.name for p in folder.glob("*.safetensors")):
            raise ModelError(
                f"{folder}: has {parts[0]}, but neither model.safetensors nor model.safetensors.index.json, one of "
                "which transformers reads; copy all files of the model again"
            )
        pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        found = f" ({pickled[0]} is a pickle, which can run code)" if pickled else ""
        raise ModelError(f"{folder}: no *.safetensors{found}; save the model again with save_pretrained")
    if not (folder / "tokenizer.json").is_file():  # the only vocabulary file that is copied to checkpoints
        raise ModelError(f"{folder}: no tokenizer.json; load the tokenizer and save it there with save_pretrained")
    return folder


def check_folder(folder: Path, template: TemplateSettings) -> None:
    """Raise unless a folder can be trained and sampled from: complete, a decoder, with a matching tokenizer.

    Only headers, the config and the tokenizer are loaded, so a folder of 15 GB takes seconds.

    Raises:
        ModelError: with the file and the remedy.
    """
    from spin_utils.data.templates import TemplateError, declared_ends, end_ids, frame

    check_directory(folder)
    model = _skeleton(folder)
    _check_weights(folder)
    tokenizer = load_tokenizer(folder)
    _check_ids(folder, tokenizer)
    largest, places = max(tokenizer.get_vocab().values(), default=-1), model.config.vocab_size
    if largest >= places:
        raise ModelError(
            f"{folder}: the tokenizer's vocabulary goes up to id {largest}, but the model's ends at {places - 1}; "
            "use the tokenizer that the model was trained with, or resize its embeddings"
        )
    try:
        end_ids(tokenizer, template)
        made, declared = frame(tokenizer, template), declared_ends(str(folder))
    except TemplateError as error:
        raise ModelError(f"{folder}: {error}") from None
    if declared and made.end_id not in declared:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(declared))))
        log.warning(
            "%s: responses end in %r, but generation_config.json ends them in %s; sampling stops at any of them",
            folder,
            made.end,
            names,
        )


def _check_ids(folder: Path, tokenizer: Any) -> None:
    """Raise if the class that tokenizer_config.json names makes other ids of a text than tokenizer.json does; name the
    tokens that only the former has."""
    from tokenizers import Tokenizer

    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stored.no_truncation()
    stored.no_padding()
    try:
        ids = list(tokenizer.encode(_MIXED, add_special_tokens=False))
    except Exception:  # tokenizers' own kind: the class has tokens that the file lacks
        ids = []
    if ids != stored.encode(_MIXED, add_special_tokens=False).ids:
        raise ModelError(
            f"{folder}: as {type(tokenizer).__name__}, which tokenizer_config.json names, the tokenizer makes other "
            "ids of a text than tokenizer.json says; write tokenizer_class: PreTrainedTokenizerFast there"
        )
    others = sorted(token for token, number in tokenizer.get_vocab().items() if stored.token_to_id(token) != number)
    if others:
        told = "%s: %s in tokenizer_config.json, but not in tokenizer.json: the model may never have seen it"
        log.warning(told, folder, ", ".join(map(repr, others[:5])))


def _skeleton(folder: Path) -> Any:
    from transformers import AutoConfig

    with described(folder):
        return skeleton(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))


def skeleton(config: Any) -> Any:
    """The model without weights; errors as in `general.check_model`."""
    import torch
    from transformers import AutoModelForCausalLM

    from spin_utils.model.general import check_model

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    check_model(model, longest_row=1)
    return model


@contextmanager
def described(place: Path | str) -> Iterator[None]:
    """Inside the block, errors of what a config.json says name it; those of reading it stay as they are."""
    try:
        yield
    except OSError:
        raise
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from None
    except Exception as error:  # as above: bad values can fail anywhere in the library
        raise ModelError(
            f"{place}: config.json does not describe a causal language model ({reason(error)}); correct it or use "
            "another model"
        ) from None


def _check_weights(folder: Path) -> None:
    """Raise unless every tensor of the model is there, with the right shape; transformers tells of superfluous ones."""
    from safetensors import SafetensorError, safe_open

    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: damaged ({error}); copy or download it again") from None
    try:
        found = _read(folder, device_map="meta", ignore_mismatched_sizes=True)[1]
    except ModelError:
        raise
    except Exception as error:  # a file of the index is not there, or it is no index; not all experts are there
        raise ModelError(
            f"{folder}: not all tensors can be read ({reason(error)}); copy all files of the model again"
        ) from None
    for name, shape, wanted in sorted(found["mismatched_keys"]):
        raise ModelError(
            f"{folder}: {name} has shape {list(shape)}, but config.json says {list(wanted)}; copy both again"
        )


def _check_plain(path: Path) -> None:
    """Raise if the file exists and is not a JSON object, or asks for remote code or quantised weights."""
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: not a JSON object ({error}); save the model again") from None
    if config.get("auto_map") and not _transformers_has(config):
        raise ModelError(
            f"{path}: auto_map asks to run code from the model's folder, which the kit never does; use a model that "
            "transformers has itself, saved without auto_map"
        )
    if config.get("quantization_config"):
        raise ModelError(f"{path}: quantised weights cannot be trained on; save the model unquantised")


def _transformers_has(config: Mapping[str, Any]) -> bool:
    """Whether the code that a config asks for is meanwhile transformers' own, as with Phi-3, which is used instead."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.get("model_type", ""))
    return bool(own) and str(config["auto_map"].get("AutoModelForCausalLM")).endswith(f".{own}")


def gguf_path(settings: ModelSettings) -> Path:
    spec = importlib.util.find_spec(settings.name)  # does not import the package, whose engine is not needed
    if spec is None or spec.origin is None:
        raise ModelError(f"package {settings.name}: not installed; run `make setup` (it is in requirements-data.lock)")
    path = Path(spec.origin).parent / settings.path
    if not path.is_file():
        names = ", ".join(p.name for p in path.parent.glob("*.gguf"))
        raise ModelError(f"package {settings.name}: no file {settings.path}; it has {names}")
    return path


def _dequantize(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("dequantizing %s (once, about half a minute)", gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    quantized = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    config = quantized.config
    del config.quantization_config  # save_pretrained refuses a model that still calls itself quantized
    clean = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    clean.load_state_dict(quantized.state_dict())
    clean.tie_weights()
    save(clean, tokenizer, folder)


def _build_tiny(settings: ModelSettings, folder: Path, texts: Iterable[str], seed: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = train_tokenizer(texts, settings.vocabulary_size)
    end = tokenizer.eos_token_id
    config = tiny_config(settings, len(tokenizer), bos_token_id=None, eos_token_id=end, pad_token_id=end)
    with torch.random.fork_rng(devices=[]):  # by default it starts every GPU
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    save(model, tokenizer, folder)


def tiny_config(settings: ModelSettings, vocabulary_size: int, **tokens: int | None) -> Any:
    """Configuration of a model of the `tiny` source, with the ids of its special tokens."""
    from transformers import AutoConfig

    heads = settings.hidden_size // 16
    return AutoConfig.for_model(
        settings.name,
        vocab_size=vocabulary_size,
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=2048,
        tie_word_embeddings=settings.name == "qwen2",
        **tokens,
    )


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Any:
    """Train a byte-level BPE tokenizer with chat markers, for models of the `tiny` source."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[UNKNOWN, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=UNKNOWN, eos_token=END, pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": [START]})
    tokenizer.chat_template = _TINY_TEMPLATE
    return tokenizer


def copy_companions(source: Path, folder: Path) -> None:
    """Give a new checkpoint its start's tokenizer and generation_config.json, byte for byte, or none."""
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "generation_config.json",
    )
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # transformers always writes a generation_config.json
