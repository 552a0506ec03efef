"""What a run costs: memory and disk of its stages and hours of its steps, from the sizes of model, rows and machine.

Memory counts everything that grows with the model, the micro-batch or the rows decoded together, for rows as long as
the template allows; `MARGIN` and `LIBRARIES` allow for the rest. Tests compare it with the peaks of real runs.

Hours are those of `cost`. Downloads, preference pairs, held-out prompts, MT-Bench, further tasks, loading, saving and
the time between steps are not counted.
"""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spin_utils.data.demonstrations import Demonstrations
from spin_utils.data.rows import count_by_family
from spin_utils.evaluation import judge, suites
from spin_utils.experiment import clock
from spin_utils.experiment.cost import (
    A100S,
    Architecture,
    Machine,
    Workload,
    computing,
    forward_flops,
    generation_hours,
)
from spin_utils.experiment.plan import (
    Plan,
    Step,
    all_trainings,
    control_demonstrations,
    control_training,
    played,
    training_of,
    trainings,
)
from spin_utils.files import paths, runtime
from spin_utils.model import attention, base, general, logprobs, lora, packing, sampling
from spin_utils.paper import published
from spin_utils.settings.inputs import ModelSettings, SettingsError
from spin_utils.settings.run import EvaluationSettings, LoraSettings, Profile, TrainingSettings

MARGIN = 1.1
"""Factor on the sum, for fragmentation and allocator caches."""
LIBRARIES = 600 * 2**20
"""Memory of a process before it loads a model: 0.4 GB with PyTorch and transformers, more with lm-eval or CUDA."""
CHARACTERS = 4
"""Assumed characters per token."""
BENCHMARK_TOKENS, BENCHMARK_ANSWER = 1400, 1024
"""Assumed longest prompt of the paper's generation tasks (Big-Bench-Hard), and the longest answer lm-eval allows."""
BENCHMARK_MEAN, CHOICES, CHOICE_TOKENS = 800, 4, 15
"""Assumed mean prompt of the paper's suite, choices per item and tokens per choice; most tasks are multiple-choice."""
MT_BENCH_TOKENS, JUDGE_TOKENS = 500, 1250
"""Longest pair of MT-Bench questions with the template's markers, and longest request to a judge without answers."""
HUB_ROWS = {"HuggingFaceH4/ultrachat_200k": 207_865, "HuggingFaceH4/ultrafeedback_binarized": 62_000}
"""Rows in a hub data set's training split, used if they have not been counted."""


KNOWN: dict[str, dict[str, Any]] = {
    "alignment-handbook/zephyr-7b-sft-full": {"model_type": "mistral"},  # whose sizes are transformers' defaults
    "Qwen/Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
}
"""Models of the shipped profiles, used if the hub cannot be reached: sizes in their config.json on the hub."""


def architecture(
    settings: ModelSettings, *, reachable: bool = False, adapters: Collection[LoraSettings] = ()
) -> tuple[Architecture, str] | None:
    """Sizes of a model and where they come from, without loading it; None if its config.json cannot be read.

    If the hub is `reachable`, it is asked for a config.json that has not been downloaded yet.

    Raises:
        ModelError: a local model does not exist, or the kit cannot train it, or not with these adapters.
    """
    from transformers import AutoConfig

    if settings.source == "tiny":
        return of_config(base.tiny_config(settings, settings.vocabulary_size), adapters), "the profile"
    if settings.source == "gguf_package":
        file = base.gguf_path(settings)
        return _read(file.parent, adapters, gguf_file=file.name), "the GGUF file"
    if settings.source == "directory":
        return _read(base.check_directory(Path(settings.path)), adapters), "its config.json"
    if settings.revision:
        with contextlib.suppress(OSError):
            found = _read(settings.name, adapters, revision=settings.revision, local_files_only=not reachable)
            return found, "its config.json on the hub"
    if settings.name not in KNOWN:
        return None
    known = of_config(AutoConfig.for_model(**KNOWN[settings.name]), adapters)
    return known, "the kit's table, because its config.json could not be reached"


def _read(
    place: Path | str,
    adapters: Collection[LoraSettings],
    *,
    revision: str | None = None,
    local_files_only: bool = True,
    gguf_file: str | None = None,
) -> Architecture:
    """Sizes from the config.json in a folder, or at a revision on the hub."""
    from transformers import AutoConfig

    with base.described(place):
        config = AutoConfig.from_pretrained(
            place,
            trust_remote_code=False,
            revision=revision,
            local_files_only=local_files_only,
            gguf_file=gguf_file,
        )
        return of_config(config, adapters)


def of_config(config: Any, adapters: Collection[LoraSettings] = ()) -> Architecture:
    """Sizes from a transformers configuration; errors as in `architecture`."""
    model = base.skeleton(config)
    adapted = {each: lora.attach(copy.deepcopy(model), each, seed=0) for each in adapters}
    heads = config.num_attention_heads
    size = _largest(config, "head_dim") or config.hidden_size // heads
    inner = _largest(config, "intermediate_size") or _largest(config, "ffn_dim") or 4 * config.hidden_size
    used = getattr(config, "num_experts_per_tok", None)  # experts that compute one token
    if used:
        inner = used * (getattr(config, "moe_intermediate_size", None) or inner)
    return Architecture(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=heads * size,
        key_value=(_largest(config, "num_key_value_heads") or heads) * size,
        feed_forward=inner,
        vocabulary=config.vocab_size,
        heads=heads,
        parameters=model.num_parameters(),
        path=general.path_of(model),
        adapted={each: sum(p.numel() for p in made.parameters() if p.requires_grad) for each, made in adapted.items()},
    )


def _largest(config: Any, name: str) -> int:
    """The largest value of a size that layers may have each their own of (Gemma 3n and 4); 0 if there is none."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    found = [getattr(layer, name, None) or 0 for layer in layers]
    return max(max(each) if isinstance(each, list | tuple) else each for each in found)


def machine(gpus: int, gigabytes: float) -> Machine:
    """The machine described by the arguments, as fast as an A100's data sheet, or this one if both are 0.

    Raises:
        SettingsError: only one of the two is given, or a value is impossible.
    """
    if not gpus and not gigabytes:
        return this_machine()
    if gpus < 1 or not 0 < gigabytes < math.inf:
        raise SettingsError("check: --gpus and --gpu-memory go together, for example 8 and 80")
    name = f"{gpus} x GPU with {gigabytes:g} GB, as fast as an A100"
    return replace(A100S, name=name, devices=gpus, memory=gigabytes * 1e9)


def this_machine() -> Machine:
    """This machine, with measured speeds."""
    import torch
    from torch.utils.benchmark import Timer

    device = base.device()
    cuda, dtype = device.type == "cuda", runtime.choose_precision("auto", device)
    count = torch.cuda.device_count() if cuda else 1
    words = f"CPU, {torch.get_num_threads()} threads, in {str(dtype).removeprefix('torch.')}"
    values = torch.ones(2**26, device=device)  # much larger than any cache
    reading = Timer("values.sum().item()", globals={"values": values}, num_threads=torch.get_num_threads())
    home = next(folder for folder in (paths.home(), *paths.home().parents) if folder.exists())
    return Machine(
        kind="cuda" if cuda else "cpu",
        name=f"{count} x {torch.cuda.get_device_name()}" if cuda else words,
        devices=count,
        memory=min(torch.cuda.mem_get_info(i)[0] for i in range(count)) if cuda else runtime.free_memory(),
        disk=float(shutil.disk_usage(home).free),
        flops=runtime.matrix_rate(device, dtype),
        bandwidth=values.nbytes / reading.blocked_autorange(min_run_time=0.5).median,
        width=dtype.itemsize,
        host=runtime.free_memory() if cuda else math.inf,
    )


def rows_of(profile: Profile, read: Demonstrations | None, control: Demonstrations | None = None) -> dict[str, int]:
    """Rows by split, with `control` for the SFT control; those of `test` and `transfer` after `evaluation.limit`.

    Without the demonstrations, and without those of the SFT control if it has its own, they are assumptions.
    """
    data, own, limit = profile.demonstrations, control_demonstrations(profile), profile.evaluation.limit
    if read is None:
        spin = data.spin_rows or data.expected_rows or HUB_ROWS.get(data.name, Workload.prompts)
        test = data.test_rows or 0
        rows = {"sft": data.sft_rows or spin, "spin": spin, "test": min(test, limit or test), "transfer": 0}
    else:
        rows = {"sft": len(read.sft), "spin": len(read.spin)}
        rows |= {"test": count_by_family(read.test, limit), "transfer": count_by_family(read.transfer, limit)}
    rows["control"] = rows["sft"] if own is None else own.sft_rows or HUB_ROWS.get(own.name, rows["sft"])
    if control is not None:
        rows["control"] = len(control.sft)
    return rows


def workload(profile: Profile, machine: Machine, read: Demonstrations | None) -> Workload:
    """A profile's run on a machine, with the mean lengths of the rows, or assumed ones if they cannot be read."""
    prompt, real, generated = Workload.prompt_tokens, Workload.real_tokens, Workload.generated_tokens
    if read is not None:
        texts = [[row[name] for row in read.sft] for name in ("prompt", "response")]
        prompt, real = (sum(map(len, found)) // (CHARACTERS * len(found)) + 1 for found in texts)
        generated = real
    return Workload(
        prompt_tokens=min(prompt, profile.template.max_prompt_tokens),
        real_tokens=min(real, profile.template.max_response_tokens),
        generated_tokens=min(generated, max(each.generation.max_new_tokens for each in played(profile))),
        machine=machine,
    )


@dataclass(frozen=True)
class Need:
    """Peak memory of one stage, in bytes."""

    sharded: Mapping[str, float]
    """Parts that can be sharded over processes (FSDP2, ZeRO-3): weights, masters, gradients, moments."""
    own: Mapping[str, float]
    """Parts that every process has in full."""
    loaded: float = 0.0
    """The whole model as every process loads it, before it is sharded and before there is anything else."""

    def total(self, devices: int = 1) -> float:
        """Bytes that have to be free on each device, margin included."""
        return MARGIN * max(self.loaded, sum(self.sharded.values()) / devices + sum(self.own.values())) + LIBRARIES


def memory(
    profile: Profile, architecture: Architecture, machine: Machine, judging: Architecture | None = None
) -> Iterator[tuple[str, Need, str]]:
    """Peak memory of each kind of stage: its name, what it needs, and the settings that would lower it.

    `judging` is MT-Bench's judge, if it is a model on the machine.
    """
    gpu, template, answer = machine.kind == "cuda", profile.template, profile.generation.max_new_tokens
    prompt, response = template.max_prompt_tokens, template.max_response_tokens

    def needed(settings: TrainingSettings, against: int, answer: int) -> Need:  # responses besides the real one
        return training_memory(
            architecture,
            settings,
            width={"bfloat16": 2, "float32": 4, "auto": machine.width}[settings.precision],
            longest=prompt + response + against * max(answer, response),
            fused=profile.processes.sharding == "ddp" and architecture.path == "fast" and settings.lora is None,
            gpu=gpu,
        )

    variants = [(variant.spin, variant.generation.max_new_tokens) for variant in played(profile)]
    self_play = [(s.training, s.answers_per_prompt + bool(s.training.historical), most) for s, most in variants]
    for section, settings in trainings(profile).items():
        run = [(settings, int(section == "dpo.training"), answer)]
        need = max((needed(*each) for each in (self_play if section == "spin.training" else run)), key=Need.total)
        lower = f"lower {section}.micro_batch_tokens, set {section}.gradient_checkpointing=true"
        if settings.lora is None:
            lower += ", or shard it over more devices (processes.sharding=fsdp2, resources.training.gpus)"
        if MARGIN * need.loaded + LIBRARIES > machine.memory:
            lower = f"every process loads the whole model first; train adapters ({section}.lora), without sharding"
        yield section.partition(".")[0], need, lower

    def decoding(model: Architecture, rows: int, asked: int, answer: int) -> Need:
        return sampling_memory(model, rows, prompt=asked, answer=answer, width=machine.width, gpu=gpu)

    # Held-out prompts are always answered by the kit itself; vLLM looks at its memory when it starts.
    if not profile.released and (profile.demonstrations.validation_rows != 0 or profile.generation.backend == "kit"):
        ways = [variant.generation for variant in played(profile)]
        needs = [decoding(architecture, way.batch_size, prompt, way.max_new_tokens) for way in ways]
        yield "generation", max(needs, key=Need.total), "lower generation.batch_size"
    evaluation, mt_bench = profile.evaluation, profile.mt_bench
    local = evaluation.suite == "local"
    lengths = (prompt, evaluation.max_new_tokens) if local else (BENCHMARK_TOKENS, BENCHMARK_ANSWER)
    needs = [decoding(architecture, evaluation.batch_size, *lengths)]
    if evaluation.samples and profile.sft is not None:  # the base model scores them
        needs.append(Need({}, {"weights": 2 * machine.width * architecture.parameters}))
    yield "evaluation", max(needs, key=Need.total), "lower evaluation.batch_size"
    if mt_bench is not None and judge.can_grade(mt_bench):  # the second turn's prompt includes the first answer
        most = mt_bench.max_new_tokens
        need = decoding(architecture, mt_bench.batch_size, MT_BENCH_TOKENS + most, most)
        yield "mt_bench", need, "lower mt_bench.batch_size"
    if mt_bench is not None and judging is not None:
        asked = JUDGE_TOKENS + 2 * mt_bench.max_new_tokens
        need = decoding(judging, mt_bench.batch_size, asked, mt_bench.judge_max_tokens)
        yield "judge", need, "lower mt_bench.batch_size, or take a smaller mt_bench.judge_model"


def processes(profile: Profile, machine: Machine) -> int:
    """Number of processes that share a training run, each on its own device."""
    return profile.processes.count or max(1, min(profile.resources.training.gpus, machine.devices))


def main_memory(
    profile: Profile, architecture: Architecture, machine: Machine, judging: Architecture | None = None
) -> float:
    """Bytes of main memory beside GPUs: there every process loads the whole model before it moves to its GPU, adapters
    are merged, and the first process saves a state. `judging` as in `memory`."""
    states = [optimizer_state(architecture, settings) for settings in all_trainings(profile)]
    loaded = LIBRARIES + machine.width * max(a.parameters for a in (architecture, judging) if a is not None)
    if not states:
        return loaded
    count = processes(profile, machine)
    return max(loaded, max(count * checkpoint(architecture), *states) + count * LIBRARIES)


def training_memory(
    a: Architecture, settings: TrainingSettings, *, width: int, longest: int, fused: bool, gpu: bool
) -> Need:
    """Memory for forward, backward and optimizer step of one micro-batch.

    Args:
        width: bytes per number in the compute precision.
        longest: tokens of the longest row with all its responses; it forms a micro-batch even above the budget.
        fused: whether layers use the path in `layers`, as they do unless their weights are sharded.
    """
    tokens = max(settings.micro_batch_tokens, longest)
    if a.path == "padded":  # each response has its own copy of the prompt
        tokens += tokens // 4
    trained, lora = trainable(a, settings), settings.lora is not None
    sharded = {
        # In float32 the weights that train are their own masters.
        "weights": width * a.parameters if width == 2 or lora else 0,
        "masters": 4 * trained,
        "gradients": 4 * trained,
        "moments": 4 * (1 if settings.optimizer == "rmsprop" else 2) * trained,
    }
    # Numbers per token that a layer stores for the backward pass: ten tensors in `layers`; transformers' own also store
    # the inputs of the products after norms and gates, and in half precision the norms' inputs in float32.
    stored = 2 * a.query + 2 * a.key_value + (2 if fused else 4) * a.feed_forward
    stored += (2 if fused else 8 if width == 2 else 6) * a.hidden
    if settings.lora is not None:
        stored += 7 * settings.lora.rank
    layer = tokens * width * stored
    kept = tokens * width * a.hidden * a.layers + layer if settings.gradient_checkpointing else layer * a.layers
    logits = tokens * a.vocabulary  # an upper bound: prompts have none
    chunked = width * (logits if logits <= logprobs.KEPT_LOGITS else 2 * logprobs.CHUNK_LOGITS)
    own = {
        "activations": kept,
        "backward of a layer": tokens * (width * (6 * a.feed_forward + 6 * a.hidden) + 4 * 4 * a.hidden),
        "attention": tokens * _attention_per_token(a, width, longest, gpu),
        # Elsewhere than on the fast path: the model's own and their derivative.
        "logits": (chunked if a.path == "fast" else 2 * width * logits)
        + (4 * min(logits, packing.GPU_ELEMENTS) if gpu else 0)
        + (4 * a.vocabulary * a.hidden if a.path == "fast" and not lora else 0),
        "one gradient": 0 if lora else width * max(a.vocabulary, a.feed_forward) * a.hidden,
        "adapters in passing": 4 * tokens * width * a.feed_forward if lora else 0,  # unscaled, scaled, and sums
    }
    return Need(sharded, own, loaded=sharded["weights"] if lora else checkpoint(a))


def sampling_memory(a: Architecture, rows: int, *, prompt: int, answer: int, width: int, gpu: bool) -> Need:
    """Memory for decoding so many rows at once; `prompt` and `answer` are the tokens of the longest ones."""
    logits = rows * a.vocabulary
    prefill = sampling.GPU_PREFILL_TOKENS if gpu else sampling.PREFILL_TOKENS
    own = {
        "weights": width * (1 if gpu else 2) * a.parameters,  # twice on a CPU: decoding has its own copy
        # Keys and values; one layer is held twice while it grows.
        "key-value cache": rows * (prompt + answer) * 2 * width * a.key_value * (a.layers + 1),
        "prompts": (rows * prompt if a.path != "fast" else prefill) * width * (2 * a.feed_forward + 8 * a.hidden),
        "logits": width * logits + 3 * 4 * (min(logits, packing.GPU_ELEMENTS) if gpu else 2**20),
    }
    return Need({}, own)


def _attention_per_token(a: Architecture, width: int, longest: int, gpu: bool) -> int:
    """Bytes per token for attention weights, their gradient and one copy, and for the mask."""
    if gpu:  # weights are not stored: queries, keys, values, output, gradients; twice, for the prompt's copies
        keys = a.key_value if width == 2 else a.query
        return 2 * width * (4 * a.query + 4 * keys)
    return 3 * width * a.heads * min(2 * attention.BLOCK, longest) + (width + 2) * longest


def disk(plan: Plan, architecture: Architecture) -> float:
    """Bytes on disk for one seed's unfinished artifacts, including the states that training saves for resuming."""
    profile, spin, checkpoints, states = plan.profile, plan.profile.spin, 0.0, 0
    unfinished = clock.missing([plan])
    for step in unfinished:
        if step.stage == "base":
            source = profile.released.get(step.name, profile.model).source
            # A folder is used in place, and the hub's weights are bfloat16.
            checkpoints += {"directory": 0.0, "hub": 0.5}.get(source, 1.0)
        checkpoints += step.stage in ("sft", "spin", "subset", "dpo")  # adapters are small compared with merged weights
        if shown := step.settings.get("epochs_shown", 0):
            checkpoints += spin.training.epochs - 1  # the epochs before the model's own
            if shown > spin.training.epochs:  # Figure 4 continues from a state
                states += optimizer_state(architecture, spin.training)
        if step.stage == "epochs":
            checkpoints += spin.epochs_shown - spin.training.epochs
    if any("training" in step.settings for step in unfinished):  # a new state is complete before the old one is deleted
        states += 2 * max(optimizer_state(architecture, settings) for settings in all_trainings(profile))
    return checkpoints * checkpoint(architecture) + states


def checkpoint(architecture: Architecture) -> int:
    """Bytes of a trained model's weights, in float32."""
    return 4 * architecture.parameters


def optimizer_state(architecture: Architecture, settings: TrainingSettings) -> int:
    """Bytes of a run's saved state: master weights and moments."""
    return 4 * (2 if settings.optimizer == "rmsprop" else 3) * trainable(architecture, settings)


def trainable(a: Architecture, settings: TrainingSettings) -> int:
    """Number of parameters that a run trains: all, or those of its adapters."""
    return a.parameters if settings.lora is None else a.adapted[settings.lora]


def hours(plan: Plan, run: Workload, architecture: Architecture, rows: Mapping[str, int]) -> dict[str, float]:
    """Hours of each unfinished step by name, for `rows` from `rows_of`; devices are assumed to share work evenly."""
    return {step.name: _step_hours(plan, step, run, architecture, rows) for step in clock.missing([plan])}


def _step_hours(plan: Plan, step: Step, run: Workload, a: Architecture, rows: Mapping[str, int]) -> float:
    profile = plan.variant(step)
    way = profile.generation
    run = replace(run, generated_tokens=min(run.generated_tokens, way.max_new_tokens), decoded_together=way.batch_size)
    if step.stage == "pairs":
        return generation_hours(replace(run, prompts=rows["spin"] * profile.spin.answers_per_prompt), a)
    if step.stage in ("evaluation", "transfer"):
        return _suite_hours(profile.evaluation, run, a, rows, transfer=step.stage == "transfer")
    if step.stage == "sft":
        more = step.parameters["more"]
        training = control_training(profile) if more else profile.sft
        assert training is not None
        once = rows["control" if more else "sft"] * forward_flops(a, run.prompt_tokens, run.real_tokens)
        return computing(once * _each(training) * training.epochs, run)
    if step.stage not in ("spin", "epochs", "subset", "dpo"):
        return 0.0
    training, answers = training_of(plan.profile, step.name), profile.spin.answers_per_prompt
    if step.stage == "dpo":
        assert profile.dpo is not None
        preferences, answers = profile.dpo.preferences, 1
        pairs = float(preferences.rows or HUB_ROWS.get(preferences.name, rows["sft"]))
    else:
        triplets = training.historical > 0  # whose last response is in a file of its own
        files, answers = sum(name.startswith("pairs-") for name in step.inputs) - triplets, answers + triplets
        pairs = rows["spin"] * files * step.settings.get("fiftieths", 50) / 50
    pair = forward_flops(a, run.prompt_tokens, run.real_tokens, *[run.generated_tokens] * answers)
    epochs = training.epochs - (profile.spin.training.epochs if step.stage == "epochs" else 0)
    return computing(pairs * pair * (_each(training) * epochs + 1), run)  # one pass by the opponent


def _each(settings: TrainingSettings) -> int:
    """Cost of an epoch in forward passes: a backward pass is two, or one for adapters; checkpointing adds one."""
    return 1 + (2 if settings.lora is None else 1) + settings.gradient_checkpointing


def _suite_hours(
    settings: EvaluationSettings, run: Workload, a: Architecture, rows: Mapping[str, int], *, transfer: bool
) -> float:
    if settings.suite == "local" or (transfer and settings.suite != "paper"):
        items, answer = rows["transfer" if transfer else "test"], min(run.real_tokens, settings.max_new_tokens)
        items *= 1 + settings.samples
        asked = replace(run, prompts=items, generated_tokens=answer, decoded_together=settings.batch_size)
        return generation_hours(asked, a)
    asked_of = suites.SUITES["paper_others" if transfer else settings.suite]
    sizes = published.benchmark_settings().loc[list(asked_of), "items"]
    items = sum(min(size, settings.limit or size) for size in sizes)
    return computing(items * forward_flops(a, BENCHMARK_MEAN, *[CHOICE_TOKENS] * CHOICES), run)
