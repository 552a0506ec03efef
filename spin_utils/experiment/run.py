"""A run: `make` makes one step of its plan and everything that step still needs, so any notebook works on its own.

A finished step is never made again; an unfinished one continues where it stopped. `open_run` gives notebooks a run as
one object.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.data.demonstrations import load as load_demonstrations
from spin_utils.data.rows import read_rows, write_rows
from spin_utils.experiment import launch
from spin_utils.experiment.plan import Plan, Step, control_demonstrations
from spin_utils.experiment.plan import make as make_plan
from spin_utils.files import artifacts, disk, paths, processes, runtime
from spin_utils.settings import profiles
from spin_utils.settings.machine import StepResources
from spin_utils.settings.names import main_chain
from spin_utils.settings.run import ProcessSettings, Profile

log = logging.getLogger(__name__)

ALONE = ("data", "base", "mt_answers", "mt_bench", "instructions")
"""Stages that run in a single process."""


@dataclass(frozen=True)
class Run:
    """One profile and one seed: what a notebook opens once and then asks for steps, rows and pairs."""

    plan: Plan

    @property
    def profile(self) -> Profile:
        """The validated profile."""
        return self.plan.profile

    def make(self, step: str) -> Path:
        """Make a step, for example `spin-0`, with everything it still needs, and return its folder."""
        return make(self.plan, step)

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Demonstrations of a split: sft, spin, validation, test or transfer."""
        return rows(self.plan, split)

    def pairs(self, iteration: int) -> pd.DataFrame:
        """Every pair of an iteration as text, with the lengths of its responses; see `publish.pair_table`."""
        from spin_utils.experiment import publish

        return publish.pair_table(self.make(f"pairs-{iteration}"))

    def training(self, model: str) -> pd.DataFrame:
        """Metrics of a training run, one row per logged optimizer step."""
        return pd.DataFrame(artifacts.read_json(self.make(model), "training.json")["rows"])

    def evaluation(self, model: str) -> pd.DataFrame:
        """Scores of a checkpoint, one row per item: `task`, `id`, `score`, `response`, `tokens`."""
        return pd.DataFrame(artifacts.read_json(self.make(f"eval-{model}"), "evaluation.json")["items"])

    def heldout(self, model: str) -> pd.DataFrame:
        """How an iteration changed log-probabilities on held-out pairs, one row per prompt; see `results.Drift`."""
        found = artifacts.read_json(self.make(f"heldout-{model}"), "heldout.json")
        return pd.DataFrame(found["items"]).assign(seed=self.plan.seed, model=model, beta=found["beta"])

    def scores(self) -> pd.DataFrame:
        """Scores of the main chain as far as it has been evaluated: a row per `task` and `id`, a column per model."""
        chain = [model for model in main_chain(self.profile.spin.iterations) if self.is_made(f"eval-{model}")]
        return pd.DataFrame({model: self.evaluation(model).set_index(["task", "id"])["score"] for model in chain})

    def opponent(self, iteration: int) -> str:
        """Name of the model that generates in an iteration and is its opponent (Alg. 1)."""
        return self.plan.step(f"pairs-{iteration}").inputs[0]

    def is_made(self, step: str) -> bool:
        """Whether a step is finished, and part of the plan at all."""
        return step in self.plan.steps and artifacts.is_complete(self.plan.directory(step))


def open_run(profile: str = "cpu", seed: int = 0, changes: Mapping[str, Any] | None = None) -> Run:
    """Open a run in a notebook and set up logging; nothing is made yet.

    Args:
        profile: name of a profile in `profiles/`, or a YAML file.
        changes: settings that differ, for example {"generation.temperature": 0.0}; steps that do not depend on them are
            shared with the unchanged run.

    Raises:
        SettingsError: no such profile, or it is invalid.
    """
    runtime.configure()
    return Run(make_plan(profiles.load(profile, changes or {}), seed))


def make(plan: Plan, name: str) -> Path:
    """Make one step of a plan, after the steps it depends on, and return its folder.

    Raises:
        SettingsError: the plan has no such step.
        WorkError: one of several processes failed.
        Interrupted: SIGINT or SIGTERM arrived during training; the state is saved.
    """
    step = plan.step(name)
    if processes.from_first(lambda: _is_found(plan, step)):
        return step.directory
    for needed in step.inputs:
        make(plan, needed)
    shared = processes_of(plan.profile, step) if _is_shared(plan, step) else ProcessSettings(1)
    launch.check(shared, resources(plan.profile, step).gpus)
    if launch.wanted(shared):
        with tempfile.TemporaryDirectory(prefix="spin-") as folder:  # with the command that makes it in one process
            file = profiles.dump(plan.profile, Path(folder) / "profile.yaml")
            launch.launch(["step", step.name, "--profile", str(file), "--seed", str(plan.seed)], shared)
        return step.directory
    with artifacts.lock(step.directory):
        if processes.from_first(lambda: artifacts.is_complete(step.directory)):  # by another run while this one waited
            return step.directory
        inputs = processes.from_first(lambda: {n: _reference(plan.directory(n)) for n in step.inputs})
        log.info("%s, seed %d: %s", name, plan.seed, paths.relative(step.directory))
        with (
            runtime.telling_of(step.directory.name),
            artifacts.building(
                step.directory, stage=step.stage, settings=step.settings, inputs=inputs, seed=plan.seed
            ) as work,
        ):
            if _is_shared(plan, step):
                _make(plan, step, work)
            elif processes.rank() == 0:
                with processes.alone():
                    _make(plan, step, work)
    return step.directory


def _is_found(plan: Plan, step: Step) -> bool:
    """Whether a step is finished, or was by another run, from which it is taken with all that it was made from."""
    if artifacts.is_complete(step.directory):
        return True
    found = artifacts.adopt(step.directory)
    for needed in step.inputs if found else ():
        _is_found(plan, plan.steps[needed])
    return found


def _is_shared(plan: Plan, step: Step) -> bool:
    """Whether several processes share the work; otherwise the first one does it alone."""
    vllm = plan.profile.generation.backend == "vllm"  # which starts its own processes
    return step.stage not in ALONE and not (vllm and step.stage in ("pairs", "preferences"))


def rows(plan: Plan, split: str) -> list[dict[str, Any]]:
    """Demonstrations of a split (sft, spin, validation, test or transfer); makes the step `data` if needed."""
    return read_rows(artifacts.checked(make(plan, "data"), f"{split}.jsonl"))


def _make(plan: Plan, step: Step, work: Path) -> None:
    # These import torch, and errors in the inputs should not wait for that.
    from spin_utils.experiment import measure, mt_bench, play

    makers: dict[str, Callable[[Plan, Step, Path], None]] = {
        "data": _make_data,
        "base": _make_base,
        "sft": play.make_sft,
        "pairs": play.make_pairs,
        "spin": play.make_model,
        "epochs": play.make_model,
        "subset": play.make_model,
        "preferences": play.make_preferences,
        "dpo": play.make_model,
        "evaluation": measure.make_evaluation,
        "heldout": measure.make_heldout,
        "transfer": measure.make_evaluation,
        "mt_answers": mt_bench.make_answers,
        "mt_bench": mt_bench.make_grades,
        "instructions": mt_bench.make_instructions,
    }
    makers[step.stage](plan, step, work)


def _make_data(plan: Plan, step: Step, work: Path) -> None:
    own = control_demonstrations(plan.profile) if step.name == "control-data" else None
    demonstrations = load_demonstrations(own or plan.profile.demonstrations)
    for split, found in vars(demonstrations).items():
        write_rows(work / f"{split}.jsonl", found)


def _make_base(plan: Plan, step: Step, work: Path) -> None:
    from spin_utils.model import base

    settings = plan.profile.released.get(step.name, plan.profile.model)
    texts: list[str] = []
    if settings.source == "tiny":
        found = read_rows(plan.directory("data") / "sft.jsonl")
        texts = [text for row in found for text in (row["prompt"], row["response"])]
    base.materialise(settings, work, texts, seed=0)


def _reference(directory: Path) -> dict[str, str]:
    """Name and manifest hash of an input, after checking all its files."""
    artifacts.verify(directory)
    return {"artifact": directory.name, "manifest": disk.file_hash(directory / artifacts.MANIFEST)}


def record_drawing(step: Step, plans: list[Plan], written: list[Path]) -> None:
    """Make the artifact of a drawing step: the results, tables and figures written, with their hashes.

    Does nothing until all its evaluations exist, because the scheduler reads the artifact as a sign of completion.
    """
    if not all(artifacts.is_complete(plan.directory(name)) for plan in plans for name in step.inputs):
        return
    with (
        artifacts.lock(step.directory),
        artifacts.building(step.directory, stage="tables", settings={}, inputs={}, seed=0) as work,
    ):
        files = {paths.relative(path): disk.file_hash(path) for path in written}
        artifacts.write_json(work / "written.json", files)


def resources(profile: Profile, step: Step) -> StepResources:
    """The resources that a step requests from the scheduler."""
    if step.stage in ("sft", "spin", "epochs", "subset", "dpo"):
        return profile.resources.training
    if step.stage == "pairs" or (step.stage == "preferences" and _asks_a_model(profile, step)):
        return profile.resources.generation
    measured = step.stage in ("evaluation", "heldout", "transfer", "mt_answers", "instructions")
    return profile.resources.evaluation if measured or _asks_a_model(profile, step) else profile.resources.other


def processes_of(profile: Profile, step: Step) -> ProcessSettings:
    """Processes that share a step's work: `processes.count`, or one per GPU that is requested and visible."""
    settings, asked = profile.processes, resources(profile, step).gpus
    if settings.count or not asked:
        return replace(settings, count=settings.count or 1)
    return replace(settings, count=max(1, min(asked, len(runtime.visible_gpus()))))


def stays_here(profile: Profile, step: Step) -> bool:
    """Whether a step runs on Snakemake's own machine because it needs the network, which cluster nodes often lack."""
    return step.stage in ("data", "base", "preferences", "mt_bench") and not _asks_a_model(profile, step)


def _asks_a_model(profile: Profile, step: Step) -> bool:
    """Whether preference pairs or MT-Bench's grades come from a model that the step itself loads."""
    if step.stage == "mt_bench":
        return profile.mt_bench is not None and profile.mt_bench.judge_model is not None
    return step.stage == "preferences" and profile.dpo is not None and profile.dpo.preferences.source == "samples"
