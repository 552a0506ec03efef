"""The two steps of Algorithm 1, whose loop is `plan.algorithm_1`: `make_pairs` (line 3) and `make_model` (line 5).

SFT and DPO use the same trainer: SFT on demonstrations alone, DPO on preference pairs instead of SPIN's (sec. 4.2).
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spin_utils.data import families, preferences
from spin_utils.data.preferences import pair_row
from spin_utils.data.rows import RowError, read_rows
from spin_utils.data.templates import (
    EncodedRow,
    decode_response,
    encode_prompts,
    encode_response,
    encode_rows,
    end_ids,
    frame,
)
from spin_utils.experiment import preflight
from spin_utils.experiment.plan import Plan, Step, control_training, stream, training_of
from spin_utils.files import artifacts, processes, runtime
from spin_utils.files.disk import replacing, sync
from spin_utils.files.runtime import choose_precision, progress
from spin_utils.model import base, lora, sharding, vllm
from spin_utils.model.logprobs import check_supported, score
from spin_utils.model.packing import Group, Pairs, PairsError, write_pairs
from spin_utils.model.sampling import Sample, sample
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.names import ModelName, label
from spin_utils.settings.run import DpoSettings, Precision, Profile, TrainingSettings
from spin_utils.training.loop import WORTH_MEASURING, Schedule, first_micro_batches, train
from spin_utils.training.step import matrix_weights
from spin_utils.training.trackers import TENSORBOARD

log = logging.getLogger(__name__)

PREFERENCES = 500
"""Number of the preference pairs' random stream, after those of any iteration."""
LOGPS = "opponent_logps.npy"
SHARD_BATCHES = 64
"""Micro-batches that a process scores between two times that the opponent's log-probabilities are saved."""
_STATE = "state"
_PRECISION = "precision.json"
_STATE_FILES = ("state-*/*", _PRECISION)


def make_pairs(plan: Plan, step: Step, work: Path) -> None:
    """The opponent answers every prompt (Algorithm 1, lines 2-4): pairs.arrow."""
    iteration, folder = step.parameters["iteration"], plan.directory(step.inputs[0])
    if not iteration and plan.profile.sft is None:
        preflight.check_start(plan, folder)
    tokenizer, profile = base.load_tokenizer(folder), plan.variant(step)
    tries, template = profile.spin.answers_per_prompt, profile.template
    encoded = encode_rows(tokenizer, template, read_rows(plan.directory("data") / "spin.jsonl"))
    seed, what = stream(plan.seed, iteration), f"answers of iteration {iteration}"
    asked = encoded
    if profile.generation.prompt:
        rows = [row.row for row in encoded]
        own = replace(template, kind="text", prompt=profile.generation.prompt)
        prompts = encode_prompts(tokenizer, own, [row["prompt"] for row in rows], rows)
        asked = [row._replace(prompt_ids=ids) for row, ids in zip(encoded, prompts, strict=True)]
    answers = generate(folder, tokenizer, asked, profile, seed=seed, work=work, what=what, tries=tries)
    if profile.generation.prompt:
        answers = [_as_text(tokenizer, template, answer) for answer in answers]
    repeated = [row for row in encoded for _ in range(tries)]
    text = partial(decode_response, tokenizer, template)
    pairs = zip(repeated, answers, strict=True)
    write_pairs(work / "pairs.arrow", [pair_row(text, row, iteration, answer) for row, answer in pairs])


def _as_text(tokenizer: Any, template: TemplateSettings, answer: Sample) -> Sample:
    """An answer as text and encoded again, without blanks before it (released code, spin/generate.py)."""
    text = decode_response(tokenizer, template, answer.token_ids).lstrip()
    again = encode_response(tokenizer, replace(template, too_long="truncate"), text)
    return answer._replace(token_ids=(again[:-1] or again) if answer.finish_reason == "length" else again)


def make_model(plan: Plan, step: Step, work: Path) -> None:
    """Train on pairs: an iteration of SPIN (Algorithm 1, line 5) or of an arm, iteration 0's further epochs, which
    continue from its saved state (Figure 4), a subset (Figure 5), or DPO (Table 3)."""
    name, settings = ModelName.parse(step.name), training_of(plan.profile, step.name)
    pairs = training_pairs(plan, step.name)
    shown = step.settings.get("epochs_shown", 0)
    kept = range(plan.profile.spin.training.epochs + 1 if name.further else 1, settings.epochs)
    train_from(
        plan.directory(step.inputs[0]),
        _accepted(plan, pairs) if settings.rejection else pairs,
        settings,
        seed=stream(plan.seed, 0 if name.dpo else name.iteration or 0),
        work=work,
        what=label(step.name),
        describe="response {}".format if settings.rejection else pairs.name,
        keep_epochs=kept if name.further or shown else (),
        keep_state=shown > settings.epochs,
        earlier=plan.directory("spin-0") if name.further else None,
    )


def make_sft(plan: Plan, step: Step, work: Path) -> None:
    """Fine-tune on demonstrations: the SFT model, or one further epoch of it (Table 5, Figure 5)."""
    start, more = plan.directory(step.inputs[0]), step.parameters["more"]
    tokenizer = base.load_tokenizer(start)
    if not more:
        preflight.check_start(plan, start)
    rows = read_rows(plan.directory(step.inputs[1]) / "sft.jsonl")
    encoded = encode_rows(tokenizer, plan.profile.template, rows)
    settings = control_training(plan.profile) if more else plan.profile.sft
    assert settings is not None
    train_from(
        start,
        [Group(row.prompt_ids, (row.response_ids,)) for row in encoded],
        settings,
        seed=stream(plan.seed, more),
        work=work,
        what=step.name,
        describe=lambda index: f"row {encoded[index].row['id']}",
    )


def make_preferences(plan: Plan, step: Step, work: Path) -> None:
    """Make the preference pairs for DPO, from the source in the profile: pairs.arrow."""
    folder, dpo = plan.directory(step.inputs[0]), plan.profile.dpo
    assert dpo is not None
    tokenizer = base.load_tokenizer(folder)
    if dpo.preferences.source == "samples":
        rows = _graded_samples(plan, dpo, folder, tokenizer, work)
    else:
        rows = preferences.encode_preferences(tokenizer, plan.profile.template, preferences.load(dpo.preferences))
    write_pairs(work / "pairs.arrow", rows)


def generate(
    folder: Path,
    tokenizer: Any,
    encoded: Sequence[EncodedRow],
    profile: Profile,
    *,
    seed: int,
    work: Path,
    what: str,
    tries: int = 1,
) -> list[Sample]:
    """Sample a model's responses to every prompt: y' ~ p_theta_t(.|x), Algorithm 1, line 3.

    Several processes take turns at shards, and the responses are those of a single one.

    Args:
        seed: of the responses, each of which has its own random stream.
        work: folder of the artifact being made, where finished shards are kept.
        tries: responses per prompt, which are next to each other in what is returned.
    """
    if profile.generation.backend == "vllm":
        repeated = [row.prompt_ids for row in encoded for _ in range(tries)]
        return _vllm_answers(folder, tokenizer, repeated, profile, seed, work, what)
    model = base.load_for_inference(folder)
    stop = end_ids(tokenizer, profile.template)
    size = max(1, profile.generation.shard_rows // tries)
    shards = {start: artifacts.scratch(work) / f"{start:08d}.json" for start in range(0, len(encoded), size)}
    left = processes.from_first(lambda: [start for start, path in shards.items() if not path.is_file()])
    began = time.perf_counter()
    done = len(encoded) - sum(min(size, len(encoded) - start) for start in left)
    with progress(len(encoded) * tries, what, "answers", done=done * tries) as bar:

        def answer(start: int) -> list[Sample]:
            part = encoded[start : start + size]
            return sample(
                model,
                [row.prompt_ids for row in part],
                eos_ids=stop,
                settings=profile.generation,
                seed=seed,
                streams=range(start * tries, (start + len(part)) * tries),
                samples_per_prompt=tries,
                progress=processes.shown(bar.advance),
            )

        for answered in processes.take_turns(left, answer):
            for start, answers in answered:
                artifacts.write_json(shards[start], answers)
    processes.barrier()
    read = {start: json.loads(path.read_text()) for start, path in shards.items()}
    if (seconds := time.perf_counter() - began) >= WORTH_MEASURING:
        body, head = matrix_weights(model)
        prompts = sum(len(row.prompt_ids) for start in left for row in encoded[start : start + size])
        tokens = sum(len(ids) for start in left for ids, *_ in read[start])
        rate = runtime.matrix_rate(model.device, model.dtype) * processes.count()
        share = 2 * (body * (prompts + tokens) + head * tokens) / seconds / rate
        runtime.tell(share=share)
        log.info("%s: %.0f tokens/s, %.0f %% of this machine's matrix rate", what, tokens / seconds, 100 * share)
    return [Sample(*answer) for answers in read.values() for answer in answers]


def _vllm_answers(
    folder: Path, tokenizer: Any, prompts: list[list[int]], profile: Profile, seed: int, work: Path, what: str
) -> list[Sample]:
    """The same with vLLM, and a health check stored with the pairs: vllm.json."""
    answers, versions = vllm.answer(
        base.resolve(folder),
        prompts,
        eos_ids=end_ids(tokenizer, profile.template),
        settings=profile.generation,
        seed=seed,
        work=artifacts.scratch(work) / "vllm",
        what=what,
    )
    health = vllm.health(folder, prompts, answers, profile.generation.vllm)
    artifacts.write_json(work / "vllm.json", {"versions": versions, **health})
    return answers


def training_pairs(plan: Plan, name: str) -> Pairs:
    """The pairs that a model is trained on.

    With T-SPIN's historical advantage they are triplets, with an answer of the SFT model. A subset of Figure 5 uses the
    first n fiftieths of iteration 0.
    """
    step, settings = plan.steps[name], training_of(plan.profile, name)
    files = [plan.directory(i) / "pairs.arrow" for i in step.inputs if plan.steps[i].stage in ("pairs", "preferences")]
    end = None
    if settings.end_truncated:
        tokenizer = base.load_tokenizer(plan.directory(step.inputs[0]))
        end = frame(tokenizer, plan.profile.template).end_id
    answers = 1 if step.stage == "dpo" else plan.variant(step).spin.answers_per_prompt
    first = files.pop() if settings.historical else None
    pairs = Pairs(files, end_truncated=end, answers=answers, first=first)
    if step.stage == "subset":
        count = len(pairs) * step.settings["fiftieths"] // 50
        pairs = Pairs(files, end_truncated=end, answers=answers, rows=count * answers)
    return pairs


def _accepted(plan: Plan, pairs: Pairs) -> list[Group]:
    """Prompts with a generated response that the grader accepts, for rejection sampling."""
    rows = {row["id"]: row for row in read_rows(plan.directory("data") / "spin.jsonl")}
    answers = pairs.table.select(["id", "generated", "finish_reason", "prompt_ids", "generated_ids"]).to_pylist()
    right = [
        Group(answer["prompt_ids"], (answer["generated_ids"],))
        for answer in answers
        if answer["finish_reason"] == "stop" and families.grade(rows[answer["id"]], answer["generated"]) == 1.0
    ]
    if not right:
        raise PairsError(
            f"rejection: none of {len(answers)} generated responses is right, so there is nothing to learn"
        )
    return right


def train_from(
    start: Path,
    groups: Sequence[Group],
    settings: TrainingSettings,
    *,
    seed: int,
    work: Path,
    what: str,
    describe: Callable[[int], str] = "group {}".format,
    keep_epochs: Collection[int] = (),
    keep_state: bool = False,
    earlier: Path | None = None,
) -> None:
    """Train from a checkpoint, which is also the opponent of pairs, or DPO's reference.

    Writes the model and its tokenizer to `work`, the metrics to `training.json` and the opponent's log-probabilities of
    pairs to `opponent_logps.npy`. A stopped run resumes.

    Args:
        groups: pairs (real, generated) or (chosen, rejected), or single responses.
        seed: of the order of the groups.
        describe: a group's name in messages.
        keep_epochs: epochs whose checkpoints are kept in `epoch-N`; the last epoch is the model itself.
        keep_state: save in `state` what a later call needs to continue with more epochs.
        earlier: artifact of a run with fewer epochs, which this one continues.
    """
    if earlier is not None:
        processes.from_first(lambda: _go_on_from(earlier, work))
    paired = len(groups) > 0 and len(groups[0].response_ids) > 1
    if paired or settings.lora is not None:  # an opponent computes as the policy does, and adapters as their base
        settings = replace(settings, precision=_precision(settings, work))
    logps = _opponent_logps(start, groups, settings, seed, work) if paired else None
    if settings.lora is None:
        model, adapted = base.load(start), None
    else:
        model = base.load(start, choose_precision(settings.precision, base.device()))
        adapted = lora.attach(model, settings.lora, seed)

    keep = partial(_keep_checkpoint, start=start, adapted=adapted)
    epoch_steps = Schedule(len(groups), settings, seed).steps_per_epoch
    result = train(
        model,
        groups,
        settings,
        opponent_logps=logps,
        seed=seed,
        work=artifacts.scratch(work),
        stops={epoch * epoch_steps: partial(keep, folder=work / f"epoch-{epoch}") for epoch in keep_epochs},
        keep_state=keep_state,
        what=what,
        describe=describe,
    )
    keep(model, folder=work)
    artifacts.write_json(work / "training.json", {"precision": result.precision, "rows": result.rows})
    shown = artifacts.scratch(work) / TENSORBOARD
    if shown.is_dir() and processes.rank() == 0:
        shutil.copytree(shown, work / TENSORBOARD, dirs_exist_ok=True)
    if keep_state:
        processes.from_first(lambda: _link_state(artifacts.scratch(work), work / _STATE))


def _keep_checkpoint(model: Any, *, start: Path, folder: Path, adapted: Any) -> None:
    """Write a model, whole or as adapters, with its start's tokenizer and generation config; the first process does."""
    weights = sharding.whole_weights(model)
    if processes.rank():
        return
    if adapted is None:
        model.save_pretrained(folder, state_dict=weights)
    else:
        lora.save(adapted, start, folder)
    base.copy_companions(base.resolve(start), folder)
    for file in folder.rglob("*"):
        sync(file)  # after an epoch the rest of the run may take hours and several restarts


def _graded_samples(plan: Plan, dpo: DpoSettings, folder: Path, tokenizer: Any, work: Path) -> list[dict[str, Any]]:
    """The start model's best and worst response to each prompt whose responses the grader does not find equally right.

    That is more supervision than SPIN gets, as for DPO in the paper. The prompts are those SPIN does not use, if any.
    """
    data = plan.directory("data")
    used, rows = ({row["id"]: row for row in read_rows(data / f"{split}.jsonl")} for split in ("spin", "sft"))
    unused = [row for name, row in rows.items() if name not in used] or list(rows.values())
    encoded = encode_rows(tokenizer, plan.profile.template, unused)[: dpo.preferences.rows or None]
    tries = dpo.answers_per_prompt
    seed, what = stream(plan.seed, PREFERENCES), "answers for preferences"
    answers = generate(folder, tokenizer, encoded, plan.profile, seed=seed, work=work, what=what, tries=tries)
    text = partial(decode_response, tokenizer, plan.profile.template)
    found = []
    for place, row in enumerate(encoded):
        own = answers[place * tries : (place + 1) * tries]
        grades = [families.grade(row.row, text(s.token_ids)) if s.finish_reason == "stop" else 0.0 for s in own]
        best, worst = max(grades), min(grades)
        if best > worst:
            real = row._replace(response_ids=own[grades.index(best)].token_ids)
            found.append(pair_row(text, real, 0, own[grades.index(worst)]))
    if not found:
        raise RowError(
            f"dpo.preferences: none of {len(encoded)} prompts got answers of which one is better, in {tries} tries; "
            "raise dpo.answers_per_prompt or dpo.preferences.rows"
        )
    return found


def _opponent_logps(
    start: Path, groups: Sequence[Group], settings: TrainingSettings, seed: int, work: Path
) -> list[list[float]]:
    """Both log-probabilities of every pair under the opponent, computed once, saved as it goes.

    theta_t also scores the pairs of t-1, which another model generated, in the policy's precision and micro-batches:
    the two start equal. Other numbers of processes have other micro-batches, hence the names of the shards.
    """
    path = work / LOGPS
    if processes.from_first(path.is_file):
        return np.load(path, allow_pickle=False).tolist()
    model = _opponent(start, settings)
    batches, size = first_micro_batches(groups, settings, seed), SHARD_BATCHES * processes.count()
    shards = {
        artifacts.scratch(work) / f"opponent-{processes.count()}-{start:06d}.json": batches[start : start + size]
        for start in range(0, len(batches), size)
    }
    kept = processes.from_first(lambda: {shard.name for shard in shards if shard.is_file()})
    done = sum(len(batch) for shard, scored in shards.items() if shard.name in kept for batch in scored)
    logps = np.empty((len(groups), len(groups[0].response_ids)), dtype=np.float32)
    with progress(len(groups), "opponent log-probabilities", "pairs", done=done) as bar:
        for shard, scored in shards.items():
            chosen = [i for batch in scored for i in batch]
            if shard.name in kept:
                logps[chosen] = json.loads(shard.read_text())
                continue
            places = iter(range(len(chosen)))
            own = [[next(places) for _ in batch] for batch in scored]
            values = score(model, [groups[i] for i in chosen], batches=own, progress=processes.shown(bar.advance))
            logps[chosen] = values
            artifacts.write_json(shard, values)
    if processes.rank() == 0:
        whole = io.BytesIO()  # when writing directly to a file, NumPy hides the reason for a failure
        np.save(whole, logps, allow_pickle=False)
        with replacing(path) as partial:
            partial.write_bytes(whole.getvalue())
            sync(partial)
    return logps.tolist()


def _opponent(start: Path, settings: TrainingSettings) -> Any:
    dtype = choose_precision(settings.precision)
    if settings.lora is not None:
        model = base.load(start, dtype)
        lora.attach(model, settings.lora, seed=0)  # which adds 0, along the policy's own way
    else:  # as the optimizer rounds the policy: buffers and fixed weights stay in float32
        model = base.load(start)
        check_supported(model, 1)  # as the policy, before it is rounded: both take one path
        for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
            weight.data = weight.data.to(dtype)
    if processes.sharded():
        sharding.shard(model, dtype)
    return model


def _precision(settings: TrainingSettings, work: Path) -> Precision:
    # Chosen once per run, even if it is resumed, so that opponent and policy compute alike.
    path = artifacts.scratch(work) / _PRECISION
    if processes.rank() == 0 and not path.is_file():
        artifacts.write_json(path, str(choose_precision(settings.precision, base.device())).removeprefix("torch."))
    return processes.from_first(lambda: json.loads(path.read_text()))


def _go_on_from(earlier: Path, work: Path) -> None:
    """Take over the state, precision and opponent's log-probabilities of a run with fewer epochs, once."""
    path = work / LOGPS
    if not path.is_file():
        _link_state(earlier / _STATE, artifacts.scratch(work))
        with replacing(path) as partial:
            shutil.copyfile(earlier / LOGPS, partial)


def _link_state(source: Path, target: Path) -> None:
    """Link a run's state to another place: its files are as large as two models, and are replaced but never changed."""
    for path in (p for pattern in _STATE_FILES for p in source.glob(pattern)):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        artifacts.link(path, copy)
