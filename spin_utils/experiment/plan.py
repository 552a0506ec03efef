"""Algorithm 1, and the plan of a run as data: every step with its inputs, settings and artifact directory.

The Snakefile turns the steps into rules, and `run` makes a single step. Both read the same plan, so the scheduler waits
for exactly what a stage writes.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spin_utils.data import big_bench
from spin_utils.data.rows import check_file
from spin_utils.evaluation import instructions, judge
from spin_utils.evaluation.mt_bench import FILES
from spin_utils.files import artifacts, disk, paths
from spin_utils.model import base
from spin_utils.settings.inputs import (
    LARGEST_SEED,
    DemonstrationSettings,
    PreferenceSettings,
    SettingsError,
    identity,
    require,
)
from spin_utils.settings.machine import answers_identity, judge_identity
from spin_utils.settings.names import ModelName, iterates, label, main_chain
from spin_utils.settings.profiles import nearest, of_arm
from spin_utils.settings.run import EvaluationSettings, Profile, TrainingSettings

Model = TypeVar("Model")
Pairs = TypeVar("Pairs")


def algorithm_1(
    theta: Model,
    iterations: int,
    generate: Callable[[int, Model], Pairs],
    update: Callable[[int, Model, list[Pairs]], Model],
    *,
    mix_previous: bool = False,
) -> Iterator[Model]:
    """Self-play fine-tuning: Algorithm 1 of the paper, with its line numbers in the comments.

    It is generic in what a model is. With functions that sample and train it runs the algorithm itself, on checkpoints.
    `make` calls it with names of steps, so that each iteration becomes two artifacts: `pairs-t`, made by
    `play.make_pairs`, and `spin-t`, made by `play.make_model`. A test checks that both give the same weights.

    Args:
        theta: p_theta_0, the SFT model.
        iterations: T.
        generate: given t and p_theta_t, returns pairs of the real y and a generated y' for every prompt x.
        update: given t, p_theta_t (both the start and the opponent) and the training pairs, returns p_theta_t+1.
        mix_previous: also train on the pairs of iteration t-1 (sec. 6.1).

    Yields:
        p_theta_1 to p_theta_T.
    """
    pairs: list[Pairs] = []
    for t in range(iterations):  # line 1: for t = 0, ..., T-1 do
        generated = generate(t, theta)  # lines 2-4: for i = 1, ..., N: generate y'_i ~ p_theta_t(.|x_i)
        pairs = [generated, *pairs[:mix_previous]]
        theta = update(t, theta, pairs)  # line 5: theta_t+1 = argmin_theta sum_i loss(lambda * (log-ratio_i))
        yield theta  # line 7: the last one is the output


@dataclass(frozen=True)
class Step:
    """One artifact to make."""

    name: str
    """For example `pairs-0`."""
    stage: str
    """The kind of work; `run` has a function for each."""
    notebook: str
    """Notebook that makes it; empty if none does."""
    parameters: dict[str, Any]
    """The notebook's parameters, besides profile and seed."""
    directory: Path
    """The artifact's folder, whose name ends in its key."""
    inputs: tuple[str, ...]
    """Names of the steps it is made from."""
    settings: dict[str, Any]
    """Settings that the artifact depends on."""


@dataclass(frozen=True)
class Plan:
    """All steps of one profile and one seed, each after its inputs."""

    profile: Profile
    seed: int
    steps: dict[str, Step]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps.values())

    def step(self, name: str) -> Step:
        """A step by its name. Raises if there is none."""
        require(name in self.steps, f"step {name!r}: unknown{nearest(name, self.steps)}")
        return self.steps[name]

    def directory(self, name: str) -> Path:
        """Artifact directory of a step."""
        return self.steps[name].directory

    def checkpoint(self, model: str) -> Path:
        """Folder of an evaluated model's weights; earlier epochs of iteration 0 are in its artifact."""
        epoch, spin = ModelName.parse(model).epoch, self.profile.spin
        checkpoint = self.directory(self.steps[f"eval-{model}"].inputs[0])
        last = epoch is None or epoch == spin.epochs_shown > spin.training.epochs
        return checkpoint if last else checkpoint / f"epoch-{epoch}"

    def variant(self, step: Step) -> Profile:
        """The profile that a step follows: its arm's, if it belongs to one."""
        arm = step.parameters.get("arm")
        return of_arm(self.profile, arm) if arm else self.profile

    def models(self) -> list[str]:
        """Names of the evaluated models, in the order of the tables."""
        return [step.parameters["model"] for step in self if step.stage == "evaluation"]


MEASURED = ("evaluation", "heldout", "transfer", "mt_bench", "instructions")
"""Stages whose results go into tables and figures."""


def make(profile: Profile, seed: int) -> Plan:
    """Lay out the paper's experiments for a profile, the main chain first, so that the main table is ready early.

    Data and base model do not depend on the seed.

    Raises:
        KitError: the seed is not a whole number, or a model or file is not where the profile says.
    """
    require(
        type(seed) is int and 0 <= seed < LARGEST_SEED,
        f"seed: {seed!r} is not a whole number from 0; with plain papermill write -p seed 0 (-r passes text)",
    )
    steps: dict[str, Step] = {}

    def add(
        name: str, stage: str, inputs: tuple[str, ...], settings: Any, *, notebook: str = "", **parameters: Any
    ) -> str:
        keys = {i: steps[i].directory.name.rpartition("-")[2] for i in inputs}
        shared = stage in ("data", "base")
        key = artifacts.key(stage, settings, inputs=keys, seed=0 if shared else seed, name=name)
        folder = paths.artifacts(profile.name) / ("shared" if shared else f"seed-{seed}")
        steps[name] = Step(name, stage, notebook, parameters, folder / f"{name}-{key}", inputs, settings)
        return name

    def evaluate(model: str, checkpoint: str = "") -> None:
        settings = {**evaluation, "task_files": task_files} if task_files else evaluation
        inputs = (checkpoint or model, *(["data"] if "data" in steps else []))
        if profile.evaluation.samples and profile.sft is not None and model != "base":
            inputs = (*inputs, "base")  # a third party, which says how surprising sampled text is
        notebook = "04_benchmark_evaluation" if model in chain else ""
        add(f"eval-{model}", "evaluation", inputs, settings, notebook=notebook, model=model)

    def evaluate_transfer(model: str) -> None:
        others = any(task.benchmark for task in profile.evaluation.big_bench.values())
        if profile.demonstrations.transfer or others or profile.evaluation.suite == "paper":
            add(f"transfer-{model}", "transfer", steps[f"eval-{model}"].inputs[:2], evaluation, model=model)

    def trained(settings: TrainingSettings, **more: Any) -> dict[str, Any]:
        return {"training": identity(settings), "template": template, **more}

    def train(model: str, stage: str, inputs: tuple[str, ...], **more: Any) -> str:
        return add(model, stage, inputs, trained(training_of(profile, model), **more), model=model)

    def grade(model: str) -> None:
        if profile.mt_bench is None:
            return
        checkpoint = steps[f"eval-{model}"].inputs[:1]
        answering: dict[str, Any] = {"mt_bench": answers_identity(profile.mt_bench), "template": template}
        if profile.mt_bench.is_programmatic:
            answering["instructions"] = instructions.VERSION
            add(f"instructions-{model}", "instructions", checkpoint, answering, model=model)
            return
        answering["files"] = FILES
        answers = add(f"mt-answers-{model}", "mt_answers", checkpoint, answering, model=model)
        asked = {"judge": judge_identity(profile.mt_bench), "files": FILES}
        if profile.mt_bench.judge_model is not None:
            asked["model"] = base.identity(profile.mt_bench.judge_model)
        grades = add(f"mt-bench-{model}", "mt_bench", (answers,), asked, model=model)
        if not judge.can_grade(profile.mt_bench) and not artifacts.is_complete(steps[grades].directory):
            del steps[grades], steps[answers]  # `left_out` gives the reason

    task_files = _task_identity(profile.evaluation)
    spin, template = profile.spin, identity(profile.template)
    chain = main_chain(spin.iterations)  # what the notebooks tell; the other steps are made without them
    answered = {"generation": identity(profile.generation), "template": template}
    evaluation = {"evaluation": identity(profile.evaluation), "template": template}
    if needs_data(profile):
        add("data", "data", (), _rows_identity(profile.demonstrations))
    texts = ("data",) if profile.model.source == "tiny" else ()
    start = add("base", "base", texts, base.identity(profile.model))
    if profile.sft is not None:
        start = add("sft", "sft", (start, "data"), trained(profile.sft), notebook="01_sft_baseline", more=0)
    evaluate("sft", start)
    for model, source in profile.released.items():
        add(model, "base", (), base.identity(source))
        evaluate(model)
    if profile.released:
        for model in ("sft", *profile.released):
            evaluate_transfer(model)
            grade(model)
        return Plan(profile, seed, steps)

    def play(arm: str = "") -> None:
        """Algorithm 1, in an arm with its settings; steps that it shares with SPIN are not made again."""
        variant, first = of_arm(profile, arm) if arm else profile, ""
        answering = {**answered, "generation": identity(variant.generation)}
        if variant.spin.answers_per_prompt > 1:
            answering["answers_per_prompt"] = variant.spin.answers_per_prompt

        def share(stage: str, t: int, notebook: str, inputs: tuple[str, ...], settings: dict[str, Any]) -> str:
            name, shown = f"{stage}-{t}", {"epochs_shown": 0}  # which only add checkpoints
            made = steps.get(name)
            if made and made.inputs == inputs and made.settings | shown == settings | shown:
                return name
            parameters: dict[str, Any] = {}
            if arm:
                name, notebook, parameters = f"{name}-arm-{arm}", "", {"arm": arm}
            parameters |= {"iteration": t} if stage == "pairs" else {"model": name}
            return add(name, stage, inputs, settings, notebook=notebook, **parameters)

        def generate(t: int, opponent: str) -> str:
            nonlocal first
            name = share("pairs", t, "02_synthetic_generation", (opponent, "data"), answering)
            first = first or name
            return name

        def update(t: int, opponent: str, pairs: list[str]) -> str:
            settings = trained(training_of(variant, f"spin-{t}"))
            if not t and not arm:
                settings["epochs_shown"] = spin.epochs_shown
            opening = [first] if t and variant.spin.training.historical else []
            return share("spin", t, "03_spin_training", (opponent, *pairs, *opening), settings)

        spins = variant.spin
        for iterate in algorithm_1(start, spins.iterations, generate, update, mix_previous=spins.mix_previous):
            if f"eval-{iterate}" not in steps:
                evaluate(iterate)

    play()
    for model in chain:
        evaluate_transfer(model)
    if profile.sft is not None and profile.evaluation.big_bench:  # which columns are at chance before any training
        evaluate("base")
        evaluate_transfer("base")
    for model in chain[1:] if profile.demonstrations.validation_rows != 0 else ():
        # Where there is SFT the base model is a third party here too.
        inputs = (steps[model].inputs[0], model, "data", *(["base"] if profile.sft is not None else []))
        add(f"heldout-{model}", "heldout", inputs, answered, model=model)
    control, own = start, control_demonstrations(profile)
    rows = add("control-data", "data", (), _rows_identity(own)) if own else "data"
    for epoch in range(1, profile.sft_more + 1):
        once = trained(control_training(profile))
        control = add(f"sft-more-{epoch}", "sft", (control, rows), once, more=epoch)
        evaluate(control)
    if spin.epochs_shown > spin.training.epochs:
        train("spin-0-more", "epochs", (start, "pairs-0", "spin-0"))
    for epoch in range(1, spin.epochs_shown + 1):
        if epoch != spin.training.epochs:
            evaluate(f"spin-0-epoch-{epoch}", "spin-0" if epoch < spin.training.epochs else "spin-0-more")
    for part in spin.subsets:
        evaluate(train(f"spin-0-rows-{part}", "subset", (start, "pairs-0"), fiftieths=part))
    if profile.dpo is not None and not _dpo_left_out(profile):
        pairs = _rows_identity(profile.dpo.preferences) | {"answers_per_prompt": profile.dpo.answers_per_prompt}
        add("preferences", "preferences", (start, "data"), {"preferences": pairs, **answered})
        evaluate(train("dpo", "dpo", (start, "preferences")))
        evaluate(train(f"{chain[-1]}-dpo", "dpo", (chain[-1], "preferences")))
    for arm in profile.arms:
        play(arm)
    for model in chain:
        grade(model)
    return Plan(profile, seed, steps)


def make_all(profile: Profile, seeds: Iterable[int]) -> list[Plan]:
    """One plan per seed; all share the same data and base model artifacts."""
    return [make(profile, seed) for seed in seeds]


def tables(plans: Sequence[Plan]) -> Step:
    """The last step: tables and figures over all seeds."""
    measured = [[step.name for step in plan if step.stage in MEASURED] for plan in plans]
    return _drawing("tables", plans, measured)


def first_tables(plans: Sequence[Plan]) -> Step:
    """Tables and figures of the first seed's main chain, so that Table 4 and Figure 2 do not wait for the rest."""
    chain = ["sft", *iterates(plans[0].models())]
    return _drawing("first-tables", plans[:1], [[f"eval-{model}" for model in chain]])


def _drawing(name: str, plans: Sequence[Plan], steps: list[list[str]]) -> Step:
    chosen = {f"seed-{p.seed}": {n: p.directory(n).name for n in names} for p, names in zip(plans, steps, strict=True)}
    folder = paths.artifacts(plans[0].profile.name) / f"{name}-{artifacts.key('tables', {}, **chosen)}"
    return Step(name, "tables", "", {}, folder, tuple(steps[0]), {})


def in_words(step: Step) -> str:
    """What a step does, in plain words.

    >>> in_words(Step("pairs-1", "pairs", "", {"iteration": 1}, Path(), (), {}))
    'iteration 1: the model answers its prompts'
    """
    model = step.parameters.get("model", step.name)
    arm = f", arm {step.parameters['arm']}" if "arm" in step.parameters else ""
    of_a_model = step.stage in (*MEASURED, "sft", "spin", "subset", "dpo", "mt_answers")
    name = label(model).removeprefix("SPIN ") if of_a_model else ""
    words = {
        "control-data": "demonstrations for further SFT",
        "first-tables": "Table 4 and Figure 2, of the first seed's main chain",
        "data": "demonstrations are read and split",
        "base": "the base model is loaded" if step.name == "base" else f"{step.name} is loaded",
        "sft": f"{name}, as a control" if step.name != "sft" else "SFT: the model learns from the demonstrations",
        "pairs": f"iteration {step.parameters.get('iteration')}{arm}: the model answers its prompts",
        "spin": f"{name}: it learns to tell real from generated answers",
        "epochs": "iteration 0 continues for more epochs (Figure 4)",
        "subset": f"{name} (Figure 5)",
        "preferences": "preference pairs for DPO",
        "dpo": f"{name}: the model trains on preference pairs",
        "evaluation": f"{name} is tested",
        "transfer": f"{name} is tested on other tasks",
        "heldout": f"{name} is tried on held-out prompts",
        "mt_answers": f"{name} answers MT-Bench",
        "mt_bench": f"{name}: a judge grades its answers",
        "instructions": f"{name} answers verifiable instructions",
        "tables": "tables, figures and verdicts",
    }
    return words[step.name if step.name in ("control-data", "first-tables") else step.stage]


def needs_data(profile: Profile) -> bool:
    """Whether anything needs the demonstrations; released models on the hub's benchmarks do not."""
    return not profile.released or profile.evaluation.suite == "local" or profile.model.source == "tiny"


def left_out(profile: Profile) -> str:
    """Reasons why experiments in the profile cannot be run, one per line; empty if all can."""
    reasons = [_dpo_left_out(profile)]
    if profile.mt_bench is not None and not judge.can_grade(profile.mt_bench):
        reasons.append(
            f"MT-Bench is left out for models not graded yet: its judge needs a key, and {judge.KEY} is not set; once "
            "it is, the same command adds the grades"
        )
    return "\n".join(filter(None, reasons))


def _dpo_left_out(profile: Profile) -> str:
    if profile.dpo and profile.dpo.preferences.source == "samples" and profile.demonstrations.source != "reasoning_gym":
        return (
            "DPO is left out: its preference pairs are responses labelled by the grader of generated families, and "
            "these demonstrations are not generated; to run it, name a file of pairs in dpo.preferences"
        )
    return ""


def training_of(profile: Profile, model: str) -> TrainingSettings:
    """Settings of the run that trains a model on pairs, for example `spin-2`, `spin-0-more` or `dpo`.

    Each iteration has its own learning rate and beta (App. B.1). A subset of Figure 5 is iteration 0 stopped after one
    epoch, and Figure 4 trains iteration 0 for more epochs.
    """
    name = ModelName.parse(model)
    spin = of_arm(profile, name.arm).spin if name.arm else profile.spin
    if name.dpo:
        if profile.dpo is None:
            raise SettingsError(f"{model}: profile {profile.name} has no dpo")
        return profile.dpo.training
    if name.iteration is None:
        raise SettingsError(f"{model}: is not trained on pairs; name an iteration such as spin-0")
    change: dict[str, Any] = {}
    if not name.iteration and spin.training.historical:
        change["historical"] = 0.0  # T-SPIN's iteration 0 has one opponent, the SFT model (arXiv 2601.08198, sec. 4.3)
    for setting, values in {"learning_rate": spin.learning_rates, "beta": spin.betas}.items():
        if values:
            change[setting] = values[min(name.iteration, len(values) - 1)]
    if name.further or name.fiftieths:
        epochs = spin.epochs_shown if name.further else 1
        change |= {"epochs": epochs, "schedule_epochs": spin.training.schedule_epochs or spin.training.epochs}
    return dataclasses.replace(spin.training, **change)


def trainings(profile: Profile) -> dict[str, TrainingSettings]:
    """Settings of each kind of training run in a profile, by their dotted name."""
    control = profile.sft_control if profile.sft_more else None
    found: dict[str, TrainingSettings | None] = {
        "sft": profile.sft,
        "sft_control.training": control.training if control else None,
        "spin.training": profile.spin.training,
        "dpo.training": profile.dpo.training if profile.dpo else None,
    }
    return {name: settings for name, settings in found.items() if settings is not None and not profile.released}


def all_trainings(profile: Profile) -> list[TrainingSettings]:
    """Settings of all training runs, those of arms included."""
    return [settings for made in played(profile) for settings in trainings(made).values()]


def played(profile: Profile) -> list[Profile]:
    """The profile as it is, and as each arm changes it."""
    return [profile, *(of_arm(profile, arm) for arm in profile.arms)]


def control_training(profile: Profile) -> TrainingSettings:
    """Settings of one further SFT epoch, for Table 5 and Figure 5."""
    settings = profile.sft_control.training if profile.sft_control is not None else profile.sft
    assert settings is not None, "a profile with sft_more has one of the two"
    return dataclasses.replace(settings, epochs=1)


def control_demonstrations(profile: Profile) -> DemonstrationSettings | None:
    """Demonstrations for the further SFT epochs, if they are needed and differ from the profile's own."""
    needed = profile.sft_more and not profile.released
    return profile.sft_control.demonstrations if profile.sft_control and needed else None


def stream(seed: int, number: int) -> int:
    """Seed of an iteration or a further epoch: each has its own random numbers, and no two seeds share any."""
    return 1000 * seed + number


def _task_identity(settings: EvaluationSettings) -> dict[str, str]:
    # An edited task, grader or file of rows is a different measurement. Which rows of the hub it reads is unknown here.
    found = {big_bench.ARCHIVE: big_bench.SHA256} if settings.big_bench else {}
    for task in filter(paths.is_yaml, settings.tasks):
        file = Path(task)
        require(file.is_file(), f"evaluation.tasks: {file}: no such file; correct the path")
        found[file.name] = disk.file_hash(file)
        for used in _used_by(file, file.parent, {file.resolve()}):
            found[f"{file.stem}: {os.path.relpath(used, file.parent)}"] = disk.file_hash(used)
    return found


def _used_by(task: Path, folder: Path, seen: set[Path]) -> Iterator[Path]:
    """The tasks, Python files and rows that a task file names, directly or in tasks that it includes or groups.

    Args:
        folder: of the first task file, where lm-eval looks for rows.
        seen: files that were found before.
    """
    text = task.read_text(encoding="utf-8", errors="replace")
    try:
        said = [token.value for token in yaml.scan(text) if isinstance(token, yaml.ScalarToken)]
    except yaml.YAMLError:  # the check refuses it with the reason
        return
    places = {task.parent, folder}
    names = {place / name for place in places for word in said for name in glob.glob(word, root_dir=place)}
    modules = [word.rpartition(".")[0].replace(".", "/") for word in said if _FUNCTION.fullmatch(word)]
    names |= {task.parent / f"{module}.py" for module in modules}
    names |= set(task.parent.glob("**/*.yaml")) if "group" in said else set()  # tasks next to a group are its own
    for file in sorted(names):
        if file.is_file() and file.resolve() not in seen:
            seen.add(file.resolve())
            yield file
            if paths.is_yaml(file.name):
                yield from _used_by(file, folder, seen)


_FUNCTION = re.compile(r"[\w.]{1,200}\.\w+")
"""How an lm-eval task names a function in a Python file next to it."""


def _rows_identity(settings: DemonstrationSettings | PreferenceSettings) -> dict[str, Any]:
    # Files are identified by content: a moved file is the same data, an edited one is not.
    found = identity(settings)
    if settings.source == "big_bench":
        found[big_bench.ARCHIVE] = big_bench.SHA256
    for name in ("train", "validation", "test") if settings.source == "file" else ():
        if found.get(name):
            check_file(Path(found[name]))
            found[name] = disk.file_hash(Path(found[name]))
    return found
