"""The stages: each makes one artifact of the plan from the artifacts it names.

`run` makes a step and whatever it still needs, so any notebook runs on its own. A finished step is never
made again; an unfinished one goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spin_utils import artifacts, paths
from spin_utils.demonstrations import load as load_demonstrations
from spin_utils.demonstrations import read_rows, write_rows
from spin_utils.plan import Plan, Step, training_at
from spin_utils.plan import tables as make_tables_step
from spin_utils.progress import progress
from spin_utils.settings import Precision, Profile, TrainingSettings

log = logging.getLogger(__name__)

SPLITS = ("sft", "spin", "validation", "test")


def check_inputs(profile: Profile) -> None:
    """Everything that can be wrong with a run's inputs, found before any long work.

    Raises:
        ModelError, DemonstrationError: with the file, the row and the remedy.
    """
    from spin_utils import models

    models.identity(profile.model)
    load_demonstrations(profile.demonstrations)


def run(plan: Plan, name: str) -> Path:
    """Make one step of a plan, after the steps it is made from.

    Args:
        plan: from `plan.make`.
        name: step such as `spin-0`.

    Returns:
        The artifact's directory.
    """
    step = plan.steps[name]
    if artifacts.is_complete(step.directory):
        return step.directory
    for needed in step.inputs:
        run(plan, needed)
    with artifacts.lock(step.directory):
        if artifacts.is_complete(step.directory):  # made by another process while this one waited
            return step.directory
        inputs = {n: _reference(plan.directory(n)) for n in step.inputs}
        log.info("%s, seed %d: %s", name, plan.seed, paths.relative(step.directory))
        with artifacts.building(
            step.directory, stage=step.stage, settings=step.settings, inputs=inputs, seed=plan.seed
        ) as work:
            _STAGES[step.stage](plan, step, work)
    return step.directory


def rows(plan: Plan, split: str) -> list[dict[str, Any]]:
    """Demonstrations of a split (`sft`, `spin`, `validation`, `test`), made if need be."""
    return read_rows(run(plan, "data") / f"{split}.jsonl")


def opponent(plan: Plan, iteration: int) -> str:
    """Name of the checkpoint that generates at an iteration and is the opponent in it (Alg. 1)."""
    return plan.steps[f"pairs-{iteration}"].inputs[0]


def _make_data(plan: Plan, step: Step, work: Path) -> None:
    demonstrations = load_demonstrations(plan.profile.demonstrations)
    for split in SPLITS:
        write_rows(work / f"{split}.jsonl", getattr(demonstrations, split))


def _make_base(plan: Plan, step: Step, work: Path) -> None:
    from spin_utils import models

    texts: list[str] = []
    if plan.profile.model.source == "tiny":
        texts = [text for row in rows(plan, "sft") for text in (row["prompt"], row["response"])]
    models.materialise(plan.profile.model, work, texts, seed=0)


def _make_sft(plan: Plan, step: Step, work: Path) -> None:
    from spin_utils import models
    from spin_utils.packing import Group
    from spin_utils.templates import encode_rows
    from spin_utils.training import train

    start, more = plan.directory(step.inputs[0]), step.parameters["more"]
    tokenizer = models.load_tokenizer(start)
    encoded = encode_rows(tokenizer, plan.profile.template, rows(plan, "sft"))
    groups = [Group(row.prompt_ids, (row.response_ids,)) for row in encoded]
    assert plan.profile.sft is not None
    model = models.load(start)
    seed = _stream(plan.seed, more)
    result = train(model, groups, plan.profile.sft, seed=seed, work=artifacts.scratch(work), what=step.name)
    _keep_checkpoint(model, start, result, work)


def _make_pairs(plan: Plan, step: Step, work: Path) -> None:
    import torch

    from spin_utils import models, pairs
    from spin_utils.sampling import sample
    from spin_utils.templates import encode_rows, end_ids

    profile, iteration = plan.profile, step.parameters["iteration"]
    folder = plan.directory(step.inputs[0])
    tokenizer = models.load_tokenizer(folder)
    model = models.load(folder, torch.bfloat16)
    encoded = encode_rows(tokenizer, profile.template, rows(plan, "spin"))
    stop = end_ids(tokenizer, profile.template)
    size = profile.generation.shard_rows
    starts = range(0, len(encoded), size)
    done = sum(min(size, len(encoded) - start) for start in starts if _shard(work, start).is_file())
    with progress(len(encoded), f"answers of iteration {iteration}", "prompts", done=done) as bar:
        for start in starts:
            if not _shard(work, start).is_file():
                part = encoded[start : start + size]
                samples = sample(
                    model,
                    [row.prompt_ids for row in part],
                    eos_ids=stop,
                    settings=profile.generation,
                    seed=_stream(plan.seed, iteration),
                    streams=range(start, start + len(part)),
                    progress=bar.advance,
                )
                artifacts.write_json(_shard(work, start), [[s.token_ids, s.finish_reason, s.logp] for s in samples])
    finished = [answer for start in starts for answer in json.loads(_shard(work, start).read_text())]
    pairs.write(
        work / "pairs.arrow",
        [
            {
                "id": row.row["id"],
                "iteration": iteration,
                "prompt_ids": row.prompt_ids,
                "real_ids": row.response_ids,
                "generated_ids": ids,
                "finish_reason": reason,
                "generated_logp": logp,
            }
            for row, (ids, reason, logp) in zip(encoded, finished, strict=True)
        ],
    )


def _shard(work: Path, start: int) -> Path:
    return artifacts.scratch(work) / f"{start:08d}.json"


def _make_spin(plan: Plan, step: Step, work: Path) -> None:
    from spin_utils import models
    from spin_utils.training import train

    iteration = step.parameters["iteration"]
    folder = plan.directory(opponent(plan, iteration))
    settings = training_at(plan.profile.spin, iteration)
    groups = training_pairs(plan, iteration)
    settings = replace(settings, precision=_precision(settings, work))
    opponent_logps = _opponent_logps(folder, groups, settings, work)
    model = models.load(folder)
    result = train(
        model,
        groups,
        settings,
        opponent_logps=opponent_logps,
        seed=_stream(plan.seed, iteration),
        work=artifacts.scratch(work),
        what=f"SPIN iteration {iteration}",
    )
    _keep_checkpoint(model, folder, result, work)


def _precision(settings: TrainingSettings, work: Path) -> Precision:
    # Chosen once for an iteration, also when it is resumed: opponent and policy compute alike.
    from spin_utils import models
    from spin_utils.optimizer import choose_precision

    path = artifacts.scratch(work) / "precision.json"
    if not path.is_file():
        chosen = choose_precision(settings.precision, models.device())
        artifacts.write_json(path, str(chosen).removeprefix("torch."))
    return json.loads(path.read_text())


def _opponent_logps(folder: Path, groups: Any, settings: TrainingSettings, work: Path) -> list[list[float]]:
    """Both log-probabilities of every pair under the opponent, computed once and kept with the artifact.

    Pairs of t-1 are scored by theta_t too: the opponent of an iteration is one model, whoever generated the pairs.
    The opponent computes in the precision of the policy, so that the two start equal.
    """
    from spin_utils import models
    from spin_utils.logprobs import score
    from spin_utils.optimizer import choose_precision

    path = work / "opponent_logps.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False).tolist()
    model = models.load(folder, choose_precision(settings.precision))
    with progress(len(groups), "opponent log-probabilities", "pairs") as bar:
        values = score(model, groups, micro_batch_tokens=settings.micro_batch_tokens, progress=bar.advance)
    logps = np.asarray(values, dtype=np.float32)
    with open(path.with_suffix(".tmp"), "wb") as file:
        np.save(file, logps, allow_pickle=False)
    path.with_suffix(".tmp").replace(path)
    return logps.tolist()


def training_pairs(plan: Plan, iteration: int) -> Any:
    """Pairs that iteration t trains on: those of t and, if the profile mixes them, of t-1 (sec. 6.1)."""
    from spin_utils import models
    from spin_utils.pairs import Pairs
    from spin_utils.templates import encode_response

    step = plan.steps[f"spin-{iteration}"]
    files = [run(plan, name) / "pairs.arrow" for name in step.inputs[1:]]
    end = None
    if training_at(plan.profile.spin, iteration).end_truncated:
        tokenizer = models.load_tokenizer(run(plan, step.inputs[0]))
        end = encode_response(tokenizer, plan.profile.template, "")[-1]
    return Pairs(files, end_truncated=end)


def _make_evaluation(plan: Plan, step: Step, work: Path) -> None:
    import torch

    from spin_utils import models
    from spin_utils.evaluation import evaluate

    folder, settings = plan.directory(step.inputs[0]), plan.profile.evaluation
    local = settings.suite == "local"
    answers = min(len(rows(plan, "test")), settings.limit or sys.maxsize) if local else 0
    with progress(answers, step.name, "answers") as bar:
        result = evaluate(
            models.load(folder, torch.bfloat16),
            models.load_tokenizer(folder),
            plan.directory("data") / "test.jsonl",
            # The paper's harness shows its benchmarks as plain text, without a chat template.
            template=plan.profile.template if local else None,
            settings=settings,
            tasks=settings.tasks,
            work=artifacts.scratch(work),
            progress=bar.advance,
        )
    artifacts.write_json(work / "evaluation.json", result)


def _keep_checkpoint(model: Any, source: Path, result: Any, work: Path) -> None:
    from spin_utils import models

    model.save_pretrained(work, safe_serialization=True)
    models.copy_tokenizer(models.resolve(source), work)
    artifacts.write_json(work / "training.json", {"precision": result.precision, "rows": result.rows})


def _stream(seed: int, iteration: int) -> int:
    # Every iteration (or further epoch) draws its own random numbers, and no two seeds share them.
    return 1000 * seed + iteration


def _reference(directory: Path) -> dict[str, str]:
    return {"artifact": directory.name, "manifest": artifacts.file_hash(directory / artifacts.MANIFEST)}


def record_drawing(plans: list[Plan], written: list[Path]) -> Path:
    """Make the last step's artifact: which results, tables and figures were written, with their hashes."""
    step = make_tables_step(plans)
    with artifacts.building(step.directory, stage="tables", settings={}, inputs={}, seed=0) as work:
        files = {paths.relative(path): artifacts.file_hash(path) for path in written}
        artifacts.write_json(work / "written.json", files)
    return step.directory


_STAGES: dict[str, Callable[[Plan, Step, Path], None]] = {
    "data": _make_data,
    "base": _make_base,
    "sft": _make_sft,
    "pairs": _make_pairs,
    "spin": _make_spin,
    "evaluation": _make_evaluation,
}
