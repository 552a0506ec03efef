"""The map: for which beta, and after how much training, does an iteration of SPIN help?

    python -m benchmarks.map --seeds 0 1     run the cells that are missing; rows go to results/map/cells.jsonl

From one SFT model per seed, iteration 0 is trained once for every beta at a constant learning rate, and the model is
measured after 8, 16, 32 and 64 steps. The control is more SFT on the same demonstrations, at two learning rates,
measured after as many tokens. Everything is measured on validation rows of a data seed that no profile uses, so the map
may choose settings. One row per cell, with the answers' scores item by item. A stopped run resumes with the missing
cells. A seed takes about half an hour on two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from spin_utils.data.templates import EncodedRow, encode_rows, end_ids
from spin_utils.evaluation.harness import evaluate
from spin_utils.experiment import plan, run
from spin_utils.experiment.play import training_pairs
from spin_utils.files import artifacts, paths, runtime
from spin_utils.model import base
from spin_utils.model.logprobs import score
from spin_utils.model.packing import Group
from spin_utils.model.sampling import sample
from spin_utils.settings import profiles
from spin_utils.settings.run import TrainingSettings
from spin_utils.training.loop import train

CHANGES: dict[str, Any] = {
    "name": "map",
    "demonstrations.seed": 3,
    "demonstrations.wordings": "fixed",
    "demonstrations.spin_rows": 1024,
    "demonstrations.validation_rows": 240,
    "evaluation.samples": 2,
}
"""What differs from the cpu profile: rows of their own, and pairs that differ only where the answer is wrong."""
BETAS = (0.1, 0.3, 1.0, 3.0)
STEPS = (8, 16, 32, 64)
SPIN = TrainingSettings(learning_rate=5e-6, epochs=1, batch_size=16, schedule="constant", micro_batch_tokens=4096)
SFT_RATES = (3e-5, 1e-4)
SFT = TrainingSettings(
    learning_rate=1e-4, epochs=2, batch_size=32, schedule="constant", optimizer="adamw", max_grad_norm=1.0
)

log = logging.getLogger("spin_utils.map")


@dataclass(frozen=True)
class _Start:
    """A seed's SFT model with what all its cells share."""

    steps: plan.Plan
    folder: Path
    heldout: list[Group]
    """Held-out prompts with the real response and one of the SFT model."""
    before: list[list[float]]
    """Their log-probabilities under the SFT model."""
    scratch: Any
    """A model for inference, which takes the weights of each cell."""


def main() -> None:
    """Measure every cell that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--betas", type=float, nargs="*", default=list(BETAS))
    chosen = parser.parse_args()
    runtime.configure()
    record = paths.results("map") / "cells.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    for seed in chosen.seeds:
        _seed(seed, chosen.betas, record)


def _seed(seed: int, betas: Sequence[float], record: Path) -> None:
    known = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    done = {(row["kind"], row["rate"], row["beta"], row["steps"]) for row in known if row["seed"] == seed}
    steps = plan.make(profiles.load("cpu", CHANGES), seed)
    start = _start(steps)
    commit = artifacts.environment()["commit"]

    def measure(model: Any, key: Mapping[str, Any]) -> None:
        start.scratch.load_state_dict(model.state_dict())
        row = {"seed": seed, **key, "commit": commit, **_measure(start)}
        log.info("%s", {name: value for name, value in row.items() if name != "items"})
        with record.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def stops(key: dict[str, Any], at: Sequence[int]) -> dict[int, Callable[[Any], None]]:
        cells = {number: {**key, "steps": number} for number in at}
        return {
            number: partial(measure, key=cell) for number, cell in cells.items() if tuple(cell.values()) not in done
        }

    if ("sft", 0.0, 0.0, 0) not in done:
        measure(base.load(start.folder), {"kind": "sft", "rate": 0.0, "beta": 0.0, "steps": 0})
    pairs = training_pairs(steps, "spin-0")
    opponent: list[list[float]] = []
    for beta in betas:
        settings = replace(SPIN, beta=beta)
        missing = stops({"kind": "spin", "rate": settings.learning_rate, "beta": beta}, STEPS)
        if missing:
            opponent = opponent or _opponent(start, pairs)
            _train(start, pairs, settings, seed, missing, opponent)
    rows = encode_rows(base.load_tokenizer(start.folder), steps.profile.template, run.rows(steps, "sft"))
    demonstrations = [Group(row.prompt_ids, (row.response_ids,)) for row in rows]
    each = sum(group.tokens for group in pairs) / len(pairs) * SPIN.batch_size
    own = sum(group.tokens for group in demonstrations) / len(demonstrations) * SFT.batch_size
    for rate in SFT_RATES:  # after as many tokens as SPIN's cells
        missing = stops({"kind": "sft", "rate": rate, "beta": 0.0}, [max(1, round(n * each / own)) for n in STEPS])
        if missing:
            _train(start, demonstrations, replace(SFT, learning_rate=rate), seed, missing, None)


def _train(
    start: _Start,
    groups: Sequence[Group],
    settings: TrainingSettings,
    seed: int,
    missing: Mapping[int, Callable[[Any], None]],
    opponent: list[list[float]] | None,
) -> None:
    """Train from the SFT model up to the last missing cell."""
    last = max(missing)

    def end(model: Any) -> None:
        missing[last](model)
        raise _Done

    with tempfile.TemporaryDirectory(prefix="spin-map-") as work, contextlib.suppress(_Done):
        train(
            base.load(start.folder),
            groups,
            settings,
            opponent_logps=opponent,
            seed=seed,
            work=Path(work),
            stops={**missing, last: end},
            what=f"beta {settings.beta:g}" if opponent else f"more SFT at {settings.learning_rate:g}",
        )


def _opponent(start: _Start, pairs: Sequence[Group]) -> list[list[float]]:
    start.scratch.load_state_dict(base.load(start.folder).state_dict())
    return score(start.scratch, pairs, micro_batch_tokens=SPIN.micro_batch_tokens)


class _Done(Exception):  # noqa: N818 - no error: the last cell of a run is measured
    pass


def _start(steps: plan.Plan) -> _Start:
    run.make(steps, "pairs-0")
    folder = steps.checkpoint("sft")
    tokenizer, model = base.load_tokenizer(folder), base.load_for_inference(folder)
    rows: list[EncodedRow] = encode_rows(tokenizer, steps.profile.template, run.rows(steps, "validation"))
    samples = sample(
        model,
        [row.prompt_ids for row in rows],
        eos_ids=end_ids(tokenizer, steps.profile.template),
        settings=steps.profile.generation,
        seed=steps.seed,
        streams=range(1 << 40, (1 << 40) + len(rows)),
    )
    heldout = [Group(r.prompt_ids, (r.response_ids, s.token_ids)) for r, s in zip(rows, samples, strict=True)]
    return _Start(steps, folder, heldout, score(model, heldout, micro_batch_tokens=4096), model)


def _measure(start: _Start) -> dict[str, Any]:
    """Scores and drifts of the weights in `scratch`, item by item."""
    steps, model = start.steps, start.scratch
    drifts = [
        [round(a - b, 3) for a, b in zip(after, before, strict=True)]
        for after, before in zip(score(model, start.heldout, micro_batch_tokens=4096), start.before, strict=True)
    ]
    result = evaluate(
        model,
        base.load_tokenizer(start.folder),
        run.rows(steps, "validation"),
        template=steps.profile.template,
        settings=steps.profile.evaluation,
    )
    items = [[item["task"], item["id"], item["score"], item["sampled"]] for item in result["items"]]
    return {
        "greedy": round(100 * sum(item[2] for item in items) / len(items), 2),
        "sampled": round(100 * sum(item[3] for item in items) / len(items), 2),
        "items": items,
        "drifts": drifts,
    }


if __name__ == "__main__":
    main()
