"""The stages that train on pairs: SPIN's iterations, their further epochs, nested subsets, and DPO."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from spin_utils.data.rows import read_rows
from spin_utils.data.templates import encode_response
from spin_utils.evaluation import heldout
from spin_utils.experiment.pair_training import train_on_pairs
from spin_utils.experiment.plan import Plan, Step, stream, training_of
from spin_utils.files import artifacts
from spin_utils.model import base
from spin_utils.model.packing import Pairs, PairsError


def make_spin(plan: Plan, step: Step, work: Path) -> None:
    """One iteration: the policy starts as its own opponent (Algorithm 1)."""
    iteration, settings = _iteration(step.name), training_of(plan.profile, step.name)
    shown = step.settings.get("epochs_shown", 0)
    train_on_pairs(
        plan.directory(step.inputs[0]),
        training_pairs(plan, step.name),
        settings,
        seed=stream(plan.seed, iteration),
        work=work,
        what=f"SPIN iteration {iteration}",
        keep_epochs=range(1, settings.epochs) if shown else (),
        keep_state=shown > settings.epochs,
    )


def make_heldout(plan: Plan, step: Step, work: Path) -> None:
    """What an iteration did to pairs that no training saw; no items where nothing is held out."""
    profile, model = plan.profile, step.parameters["model"]
    opponent, policy = (plan.directory(name) for name in step.inputs[:2])
    rows = read_rows(plan.directory("data") / "validation.jsonl")
    seed = stream(plan.seed, _iteration(model))
    play = partial(heldout.drifts, template=profile.template, generation=profile.generation, seed=seed)
    items = play(opponent, policy, rows) if rows else []
    artifacts.write_json(work / "heldout.json", {"beta": training_of(profile, model).beta, "items": items})


def make_further_epochs(plan: Plan, step: Step, work: Path) -> None:
    """Iteration 0 goes on where it ended, through the epochs that only Figure 4 shows."""
    settings = training_of(plan.profile, step.name)
    train_on_pairs(
        plan.directory(step.inputs[0]),
        training_pairs(plan, step.name),
        settings,
        seed=stream(plan.seed, 0),
        work=work,
        what=f"SPIN iteration 0, up to epoch {settings.epochs}",
        keep_epochs=range(plan.profile.spin.training.epochs + 1, settings.epochs),
        earlier=plan.directory("spin-0"),
    )


def make_on_pairs(plan: Plan, step: Step, work: Path) -> None:
    """Iteration 0 on a subset of its prompts (Figure 5), or DPO (Table 3)."""
    train_on_pairs(
        plan.directory(step.inputs[0]),
        training_pairs(plan, step.name),
        training_of(plan.profile, step.name),
        seed=stream(plan.seed, 0),
        work=work,
        what=step.name,
    )


def training_pairs(plan: Plan, name: str) -> Pairs:
    """Pairs that a model is trained on.

    SPIN's iteration t takes those of t and, if the profile mixes them, of t-1 (sec. 6.1); a subset of Figure 5 the
    first n fiftieths of iteration 0; DPO the preference pairs.

    Args:
        plan: whose steps before this one are made.
        name: step such as `spin-0`, `spin-0-rows-14` or `dpo`.

    Raises:
        PairsError: a subset of no pairs.
    """
    step = plan.steps[name]
    files = [plan.directory(i) / "pairs.arrow" for i in step.inputs if plan.steps[i].stage in ("pairs", "preferences")]
    end = None
    if training_of(plan.profile, name).end_truncated:
        tokenizer = base.load_tokenizer(plan.directory(step.inputs[0]))
        end = encode_response(tokenizer, plan.profile.template, "")[-1]
    pairs = Pairs(files, end_truncated=end)
    if step.stage != "subset":
        return pairs
    count = len(pairs) * step.settings["fiftieths"] // 50
    if not count:
        raise PairsError(f"{name}: {len(pairs)} pairs have no such part; raise demonstrations.spin_rows or drop it")
    return Pairs(files, end_truncated=end, rows=count)


def _iteration(model: str) -> int:
    return int(model.removeprefix("spin-"))
