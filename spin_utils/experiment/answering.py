"""The stages in which a model answers prompts: SPIN's generated answers, and preference pairs for DPO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin_utils.data import families, preferences
from spin_utils.data.rows import Row, RowError, read_rows
from spin_utils.data.templates import EncodedRow, decode_response, encode_rows, end_ids
from spin_utils.experiment import input_checks
from spin_utils.experiment.plan import Plan, Step, stream
from spin_utils.files import artifacts, processes
from spin_utils.files.runtime import progress
from spin_utils.model import base, packing, vllm
from spin_utils.model.sampling import sample
from spin_utils.model.vllm import Answer
from spin_utils.settings.run import Profile

PREFERENCES = 500
"""Number of the random streams of preference pairs, after those of any iteration."""


def make_pairs(plan: Plan, step: Step, work: Path) -> None:
    """The opponent answers every prompt of SPIN (Algorithm 1): pairs.arrow."""
    iteration, folder = step.parameters["iteration"], plan.directory(step.inputs[0])
    if not iteration and plan.profile.sft is None:
        input_checks.check_start(plan, folder)
    tokenizer = base.load_tokenizer(folder)
    encoded = encode_rows(tokenizer, plan.profile.template, read_rows(plan.directory("data") / "spin.jsonl"))
    answers = _answers(
        folder,
        tokenizer,
        encoded,
        plan.profile,
        stream(plan.seed, iteration),
        work,
        f"answers of iteration {iteration}",
    )
    packing.write_pairs(
        work / "pairs.arrow",
        [_pair(row, iteration, row.response_ids, answer) for row, answer in zip(encoded, answers, strict=True)],
    )


def make_preferences(plan: Plan, step: Step, work: Path) -> None:
    """Preference pairs for DPO, from where the profile says: pairs.arrow."""
    assert plan.profile.dpo is not None
    folder, settings = plan.directory(step.inputs[0]), plan.profile.dpo.preferences
    tokenizer = base.load_tokenizer(folder)
    if settings.source == "samples":
        rows = _graded_samples(plan, folder, tokenizer, work)
    else:
        rows = preferences.encode_preferences(tokenizer, plan.profile.template, preferences.load(settings))
    packing.write_pairs(work / "pairs.arrow", rows)


def _graded_samples(plan: Plan, folder: Path, tokenizer: Any, work: Path) -> list[dict[str, Any]]:
    """A right and a wrong answer of the start model for each prompt that has both.

    The grader that comes with a demonstration says which is which, more supervision than SPIN gets, as the paper's
    DPO has it. The prompts are those that SPIN does not use, as long as there are some.
    """
    assert plan.profile.dpo is not None
    dpo = plan.profile.dpo
    encoded = encode_rows(tokenizer, plan.profile.template, _graded_rows(plan))
    encoded = encoded[: dpo.preferences.rows or None]
    tries = dpo.answers_per_prompt
    repeated = [row for row in encoded for _ in range(tries)]
    seed = stream(plan.seed, PREFERENCES)
    answers = _answers(folder, tokenizer, repeated, plan.profile, seed, work, "answers for preferences")
    found = []
    for place, row in enumerate(encoded):
        own = answers[place * tries : (place + 1) * tries]
        texts = [decode_response(tokenizer, plan.profile.template, ids) for ids, _, _ in own]
        right = [families.grade(row.row, text) == 1.0 and a[1] == "stop" for text, a in zip(texts, own, strict=True)]
        if any(right) and not all(right):
            found.append(_pair(row, 0, own[right.index(True)][0], own[right.index(False)]))
    if not found:
        raise RowError(
            f"dpo.preferences: none of {len(encoded)} prompts got both a right and a wrong answer in {tries}; "
            "raise dpo.answers_per_prompt or dpo.preferences.rows"
        )
    return found


def _graded_rows(plan: Plan) -> list[Row]:
    folder = plan.directory("data")
    used = {row["id"] for row in read_rows(folder / "spin.jsonl")}
    rows = read_rows(folder / "sft.jsonl")
    return [row for row in rows if row["id"] not in used] or rows


def _pair(row: EncodedRow, iteration: int, real_ids: Sequence[int], generated: Answer) -> dict[str, Any]:
    """A row of `packing.PAIRS_SCHEMA`."""
    ids, reason, logp = generated
    return {
        "id": row.row["id"],
        "iteration": iteration,
        "prompt_ids": row.prompt_ids,
        "real_ids": real_ids,
        "generated_ids": ids,
        "finish_reason": reason,
        "generated_logp": logp,
    }


def _answers(
    folder: Path, tokenizer: Any, encoded: Sequence[EncodedRow], profile: Profile, seed: int, work: Path, what: str
) -> list[Answer]:
    """Token ids, finish reason and log-probability of one answer for each row, kept shard by shard.

    Several processes take shards in turns. A shard is decoded by one of them, with the same neighbours in the batch as
    in one process, so the answers are the same.
    """
    if profile.generation.backend == "vllm":
        return _vllm_answers(folder, tokenizer, encoded, profile, seed, work, what)
    model = base.load_for_inference(folder)
    stop = end_ids(tokenizer, profile.template)
    size = profile.generation.shard_rows
    shards = {start: artifacts.scratch(work) / f"{start:08d}.json" for start in range(0, len(encoded), size)}
    left = processes.from_first(lambda: [start for start, path in shards.items() if not artifacts.is_kept(work, path)])
    done = len(encoded) - sum(min(size, len(encoded) - start) for start in left)
    with progress(len(encoded), what, "prompts", done=done) as bar:

        def answer(start: int) -> list[Answer]:
            part = encoded[start : start + size]
            samples = sample(
                model,
                [row.prompt_ids for row in part],
                eos_ids=stop,
                settings=profile.generation,
                seed=seed,
                streams=range(start, start + len(part)),
                progress=processes.shown(bar.advance),
            )
            return [(s.token_ids, s.finish_reason, s.logp) for s in samples]

        for answered in processes.take_turns(left, answer):
            for start, answers in answered:
                artifacts.write_json(shards[start], answers)
                artifacts.keep(work, shards[start])
    processes.barrier()
    return [answer for path in shards.values() for answer in json.loads(path.read_text())]


def _vllm_answers(
    folder: Path, tokenizer: Any, encoded: Sequence[EncodedRow], profile: Profile, seed: int, work: Path, what: str
) -> list[Answer]:
    """The same by vLLM, with a health figure beside the pairs: vllm.json."""
    prompts, settings = [row.prompt_ids for row in encoded], profile.generation
    answers, versions = vllm.answer(
        base.resolve(folder),
        prompts,
        eos_ids=end_ids(tokenizer, profile.template),
        settings=settings,
        seed=seed,
        work=artifacts.scratch(work) / "vllm",
        what=what,
    )
    health = vllm.health(folder, prompts, answers, settings.vllm)
    artifacts.write_json(work / "vllm.json", {"versions": versions, **health})
    return answers
