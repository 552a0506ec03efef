"""Inputs of the memory and cost models: the sizes of the model, the rows and the machine."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from spin_utils.data.preferences import load as load_preferences
from spin_utils.data.rows import RowError, count_by_family
from spin_utils.experiment.plan import control_demonstrations
from spin_utils.files import paths
from spin_utils.model import base
from spin_utils.settings.inputs import DemonstrationSettings, ModelSettings, SettingsError
from spin_utils.settings.run import Profile

CHARACTERS = 4
"""Assumed characters per token."""
HUB_ROWS = {"HuggingFaceH4/ultrachat_200k": 207_865}
"""Rows in a hub data set's training split, used if it has not been counted."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder; the defaults are those of Mistral-7B (Jiang et al. 2023, Table 1)."""

    layers: int = 32
    hidden: int = 4096
    query: int = 4096
    """Query heads times head dimension."""
    key_value: int = 1024
    """Key-value heads times head dimension (grouped-query attention)."""
    feed_forward: int = 14_336
    vocabulary: int = 32_000
    heads: int = 32
    tied: bool = False
    """Whether embeddings and LM head are one matrix."""
    biased: bool = False
    """Whether queries, keys and values have a bias (Qwen2)."""

    @property
    def body(self) -> int:
        """Parameters of all layers, without embeddings and norms."""
        attention = self.hidden * (self.query + 2 * self.key_value) + self.query * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All parameters, including embeddings, LM head, norms and biases."""
        embeddings = (1 if self.tied else 2) * self.hidden * self.vocabulary
        norms = (2 * self.layers + 1) * self.hidden
        biases = self.layers * (self.query + 2 * self.key_value) if self.biased else 0
        return self.body + embeddings + norms + biases


FAMILIES = ("llama", "mistral", "qwen2")


def architecture(settings: ModelSettings, *, reachable: bool = False) -> tuple[Architecture, str] | None:
    """Sizes of a model and where they come from, without loading it; None if its config.json cannot be read.

    Args:
        settings: the model's source.
        reachable: whether to ask the hub for a config.json that has not been downloaded yet.

    Raises:
        ModelError: a local model does not exist, or is of another family.
    """
    if settings.source == "tiny":
        heads = settings.hidden_size // 16
        return of_config(
            {
                "model_type": settings.name,
                "num_hidden_layers": settings.layers,
                "hidden_size": settings.hidden_size,
                "num_attention_heads": heads,
                "num_key_value_heads": max(1, heads // 2),
                "intermediate_size": 2 * settings.hidden_size,
                "vocab_size": settings.vocabulary_size,
                "tie_word_embeddings": settings.name == "qwen2",
            },
            "the profile",
        ), "the profile"
    if settings.source == "gguf_package":
        return of_config(_gguf_config(base.gguf_path(settings)), settings.name), "the GGUF file"
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
        ModelError: a family other than Llama, Mistral or Qwen2, or a size is missing.
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
        raise base.ModelError(f"{name}: config.json has no usable {error}; save the model again") from None


def _gguf_config(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    family = reader.fields["general.architecture"].contents()
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = {
        "num_hidden_layers": "block_count",
        "hidden_size": "embedding_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
    }
    return {
        "model_type": family,
        **{name: reader.fields[f"{family}.{theirs}"].contents() for name, theirs in names.items()},
        "vocab_size": tensors["token_embd.weight"].shape[1],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }


def _hub_config(settings: ModelSettings, reachable: bool) -> dict[str, Any] | None:
    if not settings.revision:
        return None
    from huggingface_hub import errors, hf_hub_download

    try:
        path = hf_hub_download(settings.name, "config.json", revision=settings.revision, local_files_only=not reachable)
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError):
        return None
    return json.loads(Path(path).read_text(encoding="utf-8"))


KNOWN = {
    "alignment-handbook/zephyr-7b-sft-full": Architecture(),
    "Qwen/Qwen2.5-0.5B": Architecture(24, 896, 896, 128, 4864, 151_936, heads=14, tied=True, biased=True),
}
"""Models of the shipped profiles, used if the hub cannot be reached. Source: the config.json of Mistral-7B-v0.1, the
base of zephyr-7b-sft-full, and that of Qwen2.5-0.5B, as published on the hub."""


@dataclass(frozen=True)
class Workload:
    """A run and its hardware. The defaults are the paper's; lengths and utilisation are assumptions."""

    prompts: int = 49_792
    """Rows in one iteration of the released data."""
    epochs: int = 2
    """App. B.1."""
    prompt_tokens: int = 128
    """Assumed mean: the paper does not give one."""
    real_tokens: int = 300
    """Assumed mean."""
    generated_tokens: int = 230
    """Assumed mean; the released code stops at 256."""
    gpus: int = 8
    peak_flops: float = 312e12
    """Dense bf16 FLOP/s of an A100 (data sheet)."""
    bandwidth: float = 2.04e12
    """Bytes per second of an A100-80GB (data sheet)."""
    utilisation: float = 0.45
    """Assumed fraction of either peak. Public 7B training runs report 0.43 to 0.64 (llm-foundry)."""
    decoded_together: int = 128
    """Sequences that a GPU decodes at once; each step reads the weights once for all of them."""


class Lengths(NamedTuple):
    """Numbers of rows and tokens that the steps process."""

    sft_rows: int
    spin_rows: int
    validation_rows: int
    test_rows: int
    """This and the next are after `evaluation.limit`."""
    transfer_rows: int
    prompt: int
    """Mean tokens."""
    real: int
    generated: int
    longest_prompt: int
    """An upper bound."""
    longest_real: int
    known: bool
    """Whether they were counted from the rows; otherwise they are the cost model's assumptions."""
    control: Lengths | None = None
    """Lengths of the SFT control, if it has its own rows."""
    preferences: Lengths | None = None
    """Lengths of DPO's pairs, if they come from a file: `real` is the chosen response, `generated` the rejected one."""


Rows = Mapping[str, Sequence[dict[str, Any]]]
"""Demonstrations by split."""


def lengths(profile: Profile, rows: Rows | None, control: Rows | None = None) -> Lengths:
    """Rows and tokens of a profile.

    Args:
        profile: its template limits them.
        rows: its demonstrations; None if they could not be read, in which case the cost model's assumptions are used.
        control: the same for the SFT control.
    """
    found, own = _lengths(profile, profile.demonstrations, rows), control_demonstrations(profile)
    found = found._replace(preferences=_of_pairs(profile, found))
    return found if own is None else found._replace(control=_lengths(profile, own, control))


def _of_pairs(profile: Profile, found: Lengths) -> Lengths | None:
    if profile.dpo is None or profile.dpo.preferences.source != "file":
        return None
    try:
        pairs = load_preferences(profile.dpo.preferences)
    except RowError:  # making the plan will report it
        return None
    prompts, chosen, rejected = ([pair[name] for pair in pairs] for name in ("prompt", "chosen", "rejected"))
    template = profile.template
    return found._replace(
        prompt=_mean_tokens(prompts),
        real=_mean_tokens(chosen),
        generated=_mean_tokens(rejected),
        longest_prompt=min(_most_tokens(prompts), template.max_prompt_tokens),
        longest_real=min(_most_tokens(chosen + rejected), template.max_response_tokens),
    )


def _lengths(profile: Profile, data: DemonstrationSettings, rows: Rows | None) -> Lengths:
    template, most, limit = profile.template, profile.generation.max_new_tokens, profile.evaluation.limit
    if rows is None:
        run, test = Workload(), data.test_rows or 0
        spin = data.spin_rows or data.expected_rows or HUB_ROWS.get(data.name, run.prompts)
        return Lengths(
            sft_rows=data.sft_rows or spin,
            spin_rows=spin,
            validation_rows=data.validation_rows or 0,
            test_rows=min(test, limit or test),
            transfer_rows=0,
            prompt=min(run.prompt_tokens, template.max_prompt_tokens),
            real=min(run.real_tokens, template.max_response_tokens),
            generated=min(run.generated_tokens, most),
            longest_prompt=template.max_prompt_tokens,
            longest_real=template.max_response_tokens,
            known=False,
        )
    prompts, responses = ([row[name] for row in rows["sft"]] for name in ("prompt", "response"))
    real = _mean_tokens(responses)
    return Lengths(
        sft_rows=len(rows["sft"]),
        spin_rows=len(rows["spin"]),
        validation_rows=len(rows["validation"]),
        test_rows=count_by_family(rows["test"], limit),
        transfer_rows=count_by_family(rows["transfer"], limit),
        prompt=_mean_tokens(prompts),
        real=real,
        generated=min(real, most),
        longest_prompt=min(_most_tokens(prompts), template.max_prompt_tokens),
        longest_real=min(_most_tokens(responses), template.max_response_tokens),
        known=True,
    )


def _mean_tokens(texts: Sequence[str]) -> int:
    return sum(map(len, texts)) // (CHARACTERS * len(texts)) + 1


def _most_tokens(texts: Sequence[str]) -> int:
    """Upper bound on the tokens of the longest text: its bytes plus some markers."""
    return max(len(text.encode()) for text in texts) + 32


@dataclass(frozen=True)
class Machine:
    """The machine a profile would run on."""

    kind: Literal["cpu", "cuda"]
    name: str
    """In words."""
    devices: int
    memory: float
    """Free bytes of one device (of the host for a CPU)."""
    disk: float
    """Free bytes where artifacts are written; infinite if unknown."""
    flops: float
    """FLOP/s of one device for matrix products in the compute precision."""
    bandwidth: float
    """Bytes per second that one device reads."""
    width: int
    """Bytes per number under `precision: auto`."""


def machine(gpus: int, gigabytes: float) -> Machine:
    """The machine described by the arguments, or this one if both are 0.

    Raises:
        SettingsError: only one of the two is given, or a value is impossible.
    """
    if bool(gpus) != bool(gigabytes) or gpus < 0 or not 0 <= gigabytes < math.inf:
        raise SettingsError("check: --gpus and --gpu-memory go together, for example 8 and 80")
    return other_machine(gpus, gigabytes) if gpus else this_machine()


def this_machine() -> Machine:
    """This machine, with measured speeds."""
    import torch

    from spin_utils.files.runtime import choose_precision

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = choose_precision("auto", device)
    precision = str(dtype).removeprefix("torch.")
    count = torch.cuda.device_count() if cuda else 1
    threads = torch.get_num_threads()
    flops, bandwidth = _speed(device, dtype)
    return Machine(
        kind="cuda" if cuda else "cpu",
        name=f"{count} x {torch.cuda.get_device_name()}" if cuda else f"CPU, {threads} threads, in {precision}",
        devices=count,
        memory=min(torch.cuda.mem_get_info(i)[0] for i in range(count)) if cuda else free_memory(),
        disk=free_disk(),
        flops=flops,
        bandwidth=bandwidth,
        width=torch.finfo(dtype).bits // 8,
    )


def other_machine(gpus: int, gigabytes: float) -> Machine:
    """Another machine: GPUs with that much memory, as fast as an A100's data sheet, and unlimited disk."""
    sheet = Workload()
    name = f"{gpus} x GPU with {gigabytes:g} GB, as fast as an A100"
    return Machine("cuda", name, gpus, gigabytes * 1e9, float("inf"), sheet.peak_flops, sheet.bandwidth, 2)


def free_memory() -> float:
    """Bytes that a new process can use: the system's free memory, within any limit of a container or batch job."""
    import psutil

    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such limit here
    return free


def free_disk() -> float:
    """Free bytes where artifacts are written."""
    folder = paths.home()
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


def _speed(device: Any, dtype: Any) -> tuple[float, float]:
    """FLOP/s of matrix products as large as in a training step, and bytes read from memory per second."""
    import torch
    from torch.utils.benchmark import Timer

    rows, inner, columns = (8192, 4096, 4096) if device.type == "cuda" else (1024, 576, 1536)
    a = torch.ones(rows, inner, dtype=dtype, device=device)
    b = torch.ones(inner, columns, dtype=dtype, device=device)
    values = torch.ones(2**26, device=device)  # much larger than any cache
    product, reading = (
        Timer(work, globals={"a": a, "b": b, "values": values}, num_threads=torch.get_num_threads())
        for work in ("(a @ b)[0, 0].item()", "values.sum().item()")
    )
    seconds = [timer.blocked_autorange(min_run_time=0.5).median for timer in (product, reading)]
    return 2.0 * rows * inner * columns / seconds[0], values.nbytes / seconds[1]
