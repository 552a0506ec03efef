"""The experiment plan as data: every step with its inputs, settings and artifact directory.

The Snakefile turns the steps into rules; `stages` makes one step. Both read the same plan, so what the
scheduler waits for is what the stage writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_utils import artifacts, models, paths
from spin_utils.profiles import as_dict
from spin_utils.settings import DemonstrationSettings, Profile, SpinSettings, TrainingSettings


@dataclass(frozen=True)
class Step:
    """One artifact to make."""

    name: str
    """Such as `pairs-0`."""
    stage: str
    """Which function of `stages` makes it: base, data, sft, pairs, spin, evaluation, tables."""
    notebook: str
    """Notebook that makes it; empty for what the first notebook's stage makes on the way."""
    parameters: dict[str, Any]
    """The notebook's parameters beside profile and seed."""
    directory: Path
    """Where the artifact lies; the name ends in its key."""
    inputs: tuple[str, ...]
    """Names of the steps it is made from."""
    settings: dict[str, Any]
    """Settings that the artifact depends on."""


@dataclass(frozen=True)
class Plan:
    """All steps of one profile and one seed, in an order that respects their inputs."""

    profile: Profile
    seed: int
    steps: dict[str, Step]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps.values())

    def directory(self, name: str) -> Path:
        """Artifact directory of a step."""
        return self.steps[name].directory

    def models(self) -> list[str]:
        """Names of the evaluated models, in the order of the tables."""
        return [step.parameters["model"] for step in self if step.stage == "evaluation"]


def make(profile: Profile, seed: int) -> Plan:
    """Lay out the paper's experiments for a profile.

    The main chain comes first, so that the main table stands early.

    Args:
        profile: the validated profile.
        seed: training and sampling seed. Data and base model do not depend on it.

    Raises:
        models.ModelError: the base model is not where the profile says.
        FileNotFoundError: a file of demonstrations is missing.
    """
    steps: dict[str, Step] = {}

    def add(name: str, stage: str, notebook: str, inputs: tuple[str, ...], settings: Any, **parameters: Any) -> str:
        keys = {i: steps[i].directory.name.rpartition("-")[2] for i in inputs}
        shared = stage in ("data", "base")
        key = artifacts.key(stage, settings, inputs=keys, seed=0 if shared else seed, name=name)
        folder = paths.artifacts(profile.name) / ("shared" if shared else f"seed-{seed}")
        steps[name] = Step(name, stage, notebook, parameters, folder / f"{name}-{key}", inputs, settings)
        return name

    def evaluate(model: str, checkpoint: str) -> None:
        settings = {"evaluation": as_dict(profile.evaluation), "template": template}
        add(f"eval-{model}", "evaluation", "04_benchmark_evaluation", (checkpoint, "data"), settings, model=model)

    template = as_dict(profile.template)
    add("data", "data", "", (), _data_identity(profile.demonstrations))
    base = add("base", "base", "", ("data",) if profile.model.source == "tiny" else (), models.identity(profile.model))
    current = base
    if profile.sft is not None:
        sft = {"training": as_dict(profile.sft), "template": template}
        current = add("sft", "sft", "01_sft_baseline", (base, "data"), sft, more=0)
    evaluate("sft", current)
    for t in range(profile.spin.iterations):
        settings = {"generation": as_dict(profile.generation), "template": template}
        add(f"pairs-{t}", "pairs", "02_synthetic_generation", (current, "data"), settings, iteration=t)
        previous = (f"pairs-{t - 1}",) if t and profile.spin.mix_previous else ()
        settings = {"training": as_dict(training_at(profile.spin, t)), "template": template}
        inputs = (current, f"pairs-{t}", *previous)
        current = add(f"spin-{t}", "spin", "03_spin_training", inputs, settings, iteration=t)
        evaluate(current, current)
    control = "sft"
    for epoch in range(1, profile.sft_more + 1):
        inputs = (control, "data")
        control = add(f"sft-more-{epoch}", "sft", "01_sft_baseline", inputs, sft, more=epoch)
        evaluate(control, control)
    return Plan(profile, seed, steps)


def make_all(profile: Profile, seeds: Iterable[int]) -> list[Plan]:
    """One plan for each seed; data and base model are the same artifacts in all of them."""
    return [make(profile, seed) for seed in seeds]


def tables(plans: list[Plan]) -> Step:
    """The last step: tables and figures over all seeds."""
    first = plans[0]
    inputs = {f"seed-{p.seed}": {n: p.directory(f"eval-{n}").name for n in p.models()} for p in plans}
    key = artifacts.key("tables", {}, **inputs)
    folder = paths.artifacts(first.profile.name) / f"tables-{key}"
    return Step("tables", "tables", "05_tables_and_figures", {}, folder, (), {})


def training_at(spin: SpinSettings, iteration: int) -> TrainingSettings:
    """Training settings of one iteration: its own learning rate and beta (sec. B.1)."""
    change: dict[str, Any] = {}
    if spin.learning_rates:
        change["learning_rate"] = spin.learning_rates[min(iteration, len(spin.learning_rates) - 1)]
    if spin.betas:
        change["beta"] = spin.betas[min(iteration, len(spin.betas) - 1)]
    return dataclasses.replace(spin.training, **change)


def _data_identity(settings: DemonstrationSettings) -> dict[str, Any]:
    # Files count by content: a moved file is the same data, an edited one is not.
    data = as_dict(settings)
    if settings.source == "file":
        for name in ("train", "validation", "test"):
            if data[name]:
                data[name] = artifacts.file_hash(Path(data[name]))
    return data
