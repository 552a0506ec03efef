"""The stages: each makes one artifact of the plan from the artifacts it names.

`run` makes a step and whatever it still needs, so any notebook runs on its own. A finished step is never
made again; an unfinished one goes on where it stopped.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_utils.data.demonstrations import load as load_demonstrations
from spin_utils.data.rows import count_by_family, read_rows, write_rows
from spin_utils.experiment import launch, step_resources
from spin_utils.experiment.plan import (
    Plan,
    Step,
    control_demonstrations,
    control_training,
    needs_data,
    stream,
    trainings,
)
from spin_utils.files import artifacts, disk, paths, processes
from spin_utils.files.runtime import progress
from spin_utils.settings import profiles
from spin_utils.settings.run import ProcessSettings, Profile

log = logging.getLogger(__name__)

SPLITS = ("sft", "spin", "validation", "test", "transfer")
ALONE = ("data", "base", "mt_answers", "mt_bench")
"""Stages that one process makes."""


def check_inputs(profile: Profile) -> None:
    """Everything that can be wrong with a run's inputs, found before any long work.

    Raises:
        ModelError, RowError, TemplateError, EvaluationError, KitError, MtBenchError, JudgeError,
            with the file, the row and the remedy.
    """
    from spin_utils.experiment import input_checks, mt_bench
    from spin_utils.model import base, vllm
    from spin_utils.training import trackers

    trackers.check({name for training in trainings(profile).values() for name in training.trackers})
    launch.check(profile.processes)
    for settings in (profile.model, *profile.released.values()):
        base.identity(settings)
    if needs_data(profile):
        demonstrations = load_demonstrations(profile.demonstrations)
        input_checks.check(profile, demonstrations)
        input_checks.check_control(profile, demonstrations)
        if not profile.released:
            input_checks.check_preferences(profile, demonstrations)
    if profile.released:
        return
    if profile.generation.backend == "vllm":
        vllm.check_environment(profile.generation.vllm)
    if profile.mt_bench is not None:
        mt_bench.check(profile.mt_bench)


def run(plan: Plan, name: str) -> Path:
    """Make one step of a plan, after the steps it is made from.

    Args:
        plan: from `plan.make`.
        name: step such as `spin-0`.

    Returns:
        The artifact's directory.

    Raises:
        LaunchError: a process of several failed.
        Interrupted: SIGINT or SIGTERM arrived during training; the state is saved.
    """
    step = plan.steps[name]
    if processes.from_first(lambda: artifacts.adopt(step.directory)):
        return step.directory
    for needed in step.inputs:
        run(plan, needed)
    shared = step_resources.processes(plan.profile, step) if _is_shared(plan, step) else ProcessSettings(1)
    if launch.wanted(shared):
        _launch(plan, step, shared)
        return step.directory
    with artifacts.lock(step.directory):
        if processes.from_first(lambda: artifacts.is_made(step.directory)):  # by another run while this one waited
            return step.directory
        inputs = processes.from_first(lambda: {n: _reference(plan.directory(n)) for n in step.inputs})
        log.info("%s, seed %d: %s", name, plan.seed, paths.relative(step.directory))
        with artifacts.building(
            step.directory, stage=step.stage, settings=step.settings, inputs=inputs, seed=plan.seed
        ) as work:
            if _is_shared(plan, step):
                _make(plan, step, work)
            elif processes.rank() == 0:
                with processes.alone():
                    _make(plan, step, work)
    return step.directory


def _is_shared(plan: Plan, step: Step) -> bool:
    """Whether several processes share the work; otherwise the first does it alone."""
    vllm = plan.profile.generation.backend == "vllm"  # which starts processes of its own
    return step.stage not in ALONE and not (vllm and step.stage in ("pairs", "preferences"))


def _launch(plan: Plan, step: Step, shared: ProcessSettings) -> None:
    """Make a step in several processes, by the command that does so in one."""
    with tempfile.TemporaryDirectory(prefix="spin-") as folder:
        profile = profiles.dump(plan.profile, Path(folder) / "profile.yaml")
        arguments = ["step", step.name, "--profile", str(profile), "--seed", str(plan.seed)]
        launch.launch(arguments, shared)


def rows(plan: Plan, split: str, data: str = "data") -> list[dict[str, Any]]:
    """Demonstrations of a split, one of `SPLITS`, made if need be, by the step that makes them."""
    return read_rows(artifacts.checked(run(plan, data), f"{split}.jsonl"))


def opponent(plan: Plan, iteration: int) -> str:
    """Name of the checkpoint that generates at an iteration and is the opponent in it (Alg. 1)."""
    return plan.steps[f"pairs-{iteration}"].inputs[0]


def _make(plan: Plan, step: Step, work: Path) -> None:
    # These need torch, and errors in the inputs should not wait for it.
    from spin_utils.experiment import answering, mt_bench, self_play

    makers: dict[str, Callable[[Plan, Step, Path], None]] = {
        "data": _make_data,
        "base": _make_base,
        "sft": _make_sft,
        "pairs": answering.make_pairs,
        "spin": self_play.make_spin,
        "epochs": self_play.make_further_epochs,
        "subset": self_play.make_on_pairs,
        "preferences": answering.make_preferences,
        "dpo": self_play.make_on_pairs,
        "evaluation": _make_evaluation,
        "heldout": self_play.make_heldout,
        "transfer": _make_evaluation,
        "mt_answers": mt_bench.make_answers,
        "mt_bench": mt_bench.make_grades,
    }
    makers[step.stage](plan, step, work)


def _make_data(plan: Plan, step: Step, work: Path) -> None:
    own = control_demonstrations(plan.profile) if step.name == "control-data" else None
    demonstrations = load_demonstrations(own or plan.profile.demonstrations)
    for split in SPLITS:
        write_rows(work / f"{split}.jsonl", getattr(demonstrations, split))


def _make_base(plan: Plan, step: Step, work: Path) -> None:
    from spin_utils.model import base

    settings = plan.profile.released.get(step.name, plan.profile.model)
    texts: list[str] = []
    if settings.source == "tiny":
        found = read_rows(artifacts.checked(plan.directory("data"), "sft.jsonl"))
        texts = [text for row in found for text in (row["prompt"], row["response"])]
    base.materialise(settings, work, texts, seed=0)


def _make_sft(plan: Plan, step: Step, work: Path) -> None:
    from spin_utils.data.templates import encode_rows
    from spin_utils.experiment import input_checks
    from spin_utils.experiment.pair_training import keep_checkpoint, keep_metrics
    from spin_utils.model import base
    from spin_utils.model.packing import Group
    from spin_utils.training.loop import train

    start, more = plan.directory(step.inputs[0]), step.parameters["more"]
    tokenizer = base.load_tokenizer(start)
    if not more:
        input_checks.check_start(plan, start)
    encoded = encode_rows(tokenizer, plan.profile.template, rows(plan, "sft", data=step.inputs[1]))
    groups = [Group(row.prompt_ids, (row.response_ids,)) for row in encoded]
    settings = control_training(plan.profile) if more else plan.profile.sft
    assert settings is not None
    model = base.load(start)
    seed = stream(plan.seed, more)
    result = train(
        model,
        groups,
        settings,
        seed=seed,
        work=artifacts.scratch(work),
        what=step.name,
        describe=lambda index: f"row {encoded[index].row['id']}",
    )
    keep_checkpoint(model, start, work)
    keep_metrics(result, work)


def _make_evaluation(plan: Plan, step: Step, work: Path) -> None:
    from spin_utils.evaluation.harness import evaluate
    from spin_utils.model import base

    profile, settings = plan.profile, plan.profile.evaluation
    folder = plan.checkpoint(step.parameters["model"])
    model, tokenizer = base.load_for_inference(folder), base.load_tokenizer(folder)
    split = "test"
    if step.stage == "transfer":  # other tasks, graded in the same way
        split, suite = "transfer", settings.suite
        settings = replace(settings, suite="paper_others" if suite == "paper" else "local", tasks=())
    local = settings.suite == "local"
    answers = count_by_family(rows(plan, split), settings.limit) if local else 0
    with progress(answers, step.name, "answers") as bar:
        result = evaluate(
            model,
            tokenizer,
            plan.directory("data") / f"{split}.jsonl" if local else None,
            # The paper's harness shows its benchmarks as plain text, without a chat template.
            template=profile.template if local else None,
            settings=settings,
            work=artifacts.scratch(work),
            progress=bar.advance,
        )
    artifacts.write_json(work / "evaluation.json", result)


def _reference(directory: Path) -> dict[str, str]:
    """What a manifest says of an input, which is read in full before anything is made from it."""
    artifacts.verify(directory)
    return {"artifact": directory.name, "manifest": disk.file_hash(directory / artifacts.MANIFEST)}


def record_drawing(step: Step, plans: list[Plan], written: list[Path]) -> None:
    """Make the artifact of a drawing step: which results, tables and figures were written, with their hashes.

    Only if all its evaluations are made: the scheduler takes the artifact as a sign that nothing is left to do.

    Args:
        step: from `plan.tables` or `plan.first_tables`.
        plans: whose evaluations it draws.
        written: the files.
    """
    if not all(artifacts.is_complete(plan.directory(name)) for plan in plans for name in step.inputs):
        return
    with (
        artifacts.lock(step.directory),
        artifacts.building(step.directory, stage="tables", settings={}, inputs={}, seed=0) as work,
    ):
        files = {paths.relative(path): disk.file_hash(path) for path in written}
        artifacts.write_json(work / "written.json", files)
