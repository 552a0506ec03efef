"""The map: for which beta, and after how much training, does an iteration of SPIN help?

    python -m benchmarks.map --seeds 0 1                   run the cells that are missing: results/map/cpu.jsonl
    python -m benchmarks.map --seeds 0 --profile dialogue  the same on human conversations: results/map/dialogue.jsonl
    python -m benchmarks.map --seeds                       only draw: docs/map.md and figures/map

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

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spin_utils.data.templates import EncodedRow, encode_rows, end_ids
from spin_utils.drawing.style import save
from spin_utils.drawing.training_figures import map_figure
from spin_utils.evaluation.harness import evaluate
from spin_utils.experiment import plan, run
from spin_utils.experiment.play import training_pairs
from spin_utils.files import artifacts, paths, runtime
from spin_utils.files.disk import write_text
from spin_utils.model import base
from spin_utils.model.logprobs import score
from spin_utils.model.packing import Group
from spin_utils.model.sampling import sample
from spin_utils.paper.map import averages, load_map, summary
from spin_utils.settings import profiles
from spin_utils.settings.run import TrainingSettings
from spin_utils.training.loop import train


def _single() -> dict[str, Any]:
    """One question in a row, where `cpu` has three."""
    known = profiles.load("cpu").demonstrations
    families = {"families": known.families, "transfer": known.transfer}
    return {
        f"demonstrations.{part}": {name: {"dataset": f.dataset, "options": f.options} for name, f in found.items()}
        for part, found in families.items()
    }


_OWN = {"demonstrations.seed": 3, "demonstrations.validation_rows": 240, "evaluation.big_bench": {}}
_SHEETS = _OWN | {"evaluation.samples": 1, "demonstrations.test_rows": 12, "demonstrations.transfer_rows": 12}
CHANGES: dict[str, dict[str, Any]] = {
    "worksheets": _SHEETS | {"name": "map-worksheets"},
    "longer-sft": _SHEETS | {"name": "map-longer-sft", "sft.epochs": 4},
    "cpu": _OWN
    | _single()
    | {"name": "map", "evaluation.samples": 2}
    | {"demonstrations.sft_rows": 1344, "demonstrations.spin_rows": 1024}
    | {"demonstrations.test_rows": 900, "demonstrations.transfer_rows": 400}
    | {"evaluation.max_new_tokens": 80, "generation.max_new_tokens": 80, "sft.batch_size": 32}
    | {"evaluation.batch_size": 128, "generation.batch_size": 128},
    "dialogue": _OWN | {"name": "map-dialogue", "evaluation.samples": 2},
}
"""What differs from a profile: rows of their own, and no tasks but those of the demonstrations."""
BETAS = (0.1, 0.3, 1.0, 3.0)
STEPS = (8, 16, 32, 64)
SPIN = TrainingSettings(learning_rate=5e-6, epochs=1, batch_size=16, schedule="constant", micro_batch_tokens=4096)
SFT_RATES = (3e-5, 1e-4)
SFT = TrainingSettings(
    learning_rate=1e-4, epochs=2, batch_size=32, schedule="constant", optimizer="adamw", max_grad_norm=1.0
)
BATCHES = {"map-worksheets": (6, 12), "map-longer-sft": (6, 12)}
"""Rows in a batch of SPIN and of SFT, where they are longer."""

TITLES = {
    "worksheets": "Worksheets: three generated questions in a row",
    "longer-sft": "Worksheets, from SFT of four epochs instead of two",
    "cpu": "Single questions: an answer is right or wrong",
    "dialogue": "Human conversations: how close an answer comes to theirs",
}
MEASURES = {
    "greedy": ("greedy answers against SFT", "greedy"),
    "sampled": ("sampled answers against SFT", "samples"),
    "greedy_over_sft": ("greedy answers against more SFT", "greedy, over more SFT"),
    "sampled_over_sft": ("sampled answers against more SFT", "samples, over more SFT"),
}
"""In a sentence, and as the head of a column."""
PAGE = paths.REPOSITORY / "docs" / "map.md"
MARK = "<!-- written by `python -m benchmarks.map --seeds`, do not edit -->\n"
"""All that stands below the mark comes from `results/map`."""

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
    parser.add_argument("--profile", choices=CHANGES, default="cpu")
    parser.add_argument("--betas", type=float, nargs="*", default=list(BETAS))
    chosen = parser.parse_args()
    runtime.configure()
    record = paths.results("map") / f"{chosen.profile}.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    for seed in chosen.seeds:
        start = "dialogue" if chosen.profile == "dialogue" else "cpu"
        _seed(plan.make(profiles.load(start, CHANGES[chosen.profile]), seed), chosen.betas, record)
    draw()


def draw() -> None:
    """Write docs/map.md and its figures from the cells that are there."""
    text, figures = page()
    for profile, figure in figures.items():
        save(figure, paths.figures("map"), profile)
    write_text(PAGE, text)


def page() -> tuple[str, dict[str, Figure]]:
    """The page and the figures of the cells under results/map; figures by profile."""
    text, figures = PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK, {}
    for profile, title in TITLES.items():
        record = paths.results("map") / f"{profile}.jsonl"
        if record.is_file():
            cells = load_map(record)
            found = summary(cells)
            picture = ""
            if found.loc[found["kind"] == "spin", "beta"].nunique() > 1:  # one row of cells is no map
                figures[profile] = map_figure(found)
                picture = f"![{title}](../figures/map/{profile}.png)\n\n"
            text += f"\n## {title}\n\n{picture}{_findings(found)}{_averages(cells)}\n{_table(found)}\n"
    return text, figures


def _findings(found: pd.DataFrame) -> str:
    """The findings, as sentences that depend on the cells alone."""
    cells = found[found["kind"] == "spin"]
    said, alike = [], []
    for measure, (words, _) in MEASURES.items():
        if measure not in cells:
            continue  # there is no control yet
        sure = {"better": cells[cells[f"{measure}_low"] > 0], "worse": cells[cells[f"{measure}_high"] < 0]}
        for side, there in sure.items():
            if len(there):
                named = "; ".join(f"beta {row.beta:g} after {row.steps} steps" for row in there.itertuples())
                said.append(f"- Significantly {side} in {len(there)} of {len(cells)} cells: {words} ({named}).")
        if not sum(map(len, sure.values())):
            alike.append(words)
    if alike:
        said.append(f"- No significant difference: {', '.join(alike)}.")
    apart = cells.loc[cells["accuracy"].idxmax()]
    said.insert(
        0,
        f"- Real and generated responses are told apart{' best' if len(cells) > 1 else ''} with beta {apart['beta']:g} "
        f"after {apart['steps']} steps: {apart['accuracy']:.0%} of the held-out pairs that differ "
        f"[{apart['accuracy_low']:.0%}, {apart['accuracy_high']:.0%}].",
    )
    sides = {"below": cells[cells["beta"] < 0.5]["drift_real"], "above": cells[cells["beta"] > 0.5]["drift_real"]}
    drifts = [
        f"in {(drift < 0).sum()} of {len(drift)} cells with beta {side} 1/2 (mean {drift.mean():+.2f} nats)"
        for side, drift in sides.items()
        if len(drift)
    ]
    if len(cells) > 1:
        said.insert(1, f"- Real responses became less likely {' and '.join(drifts)}.")
    else:
        said.insert(1, f"- Log-probability of the real responses: {cells['drift_real'].iloc[0]:+.2f} nats on average.")
    return "\n".join(said).replace("-0.", "−0.") + "\n"


def _averages(cells: Sequence[Mapping[str, Any]]) -> str:
    """What the mean of all cells says, if there are several."""
    count = len({(cell["beta"], cell["steps"]) for cell in cells if cell["kind"] == "spin"})
    said = []
    for row in averages(cells).to_dict("records") if count > 1 else []:
        other = f"more SFT at {row['rate']:g}, averaged over its lengths" if row["rate"] else "SFT"
        gains = f"greedy answers {_points(row, 'greedy')}, sampled answers {_points(row, 'sampled')} points"
        said.append(f"- All {count} cells averaged, against {other}: {gains}.\n")
    return "".join(said)


def _table(found: pd.DataFrame) -> str:
    """Every cell with its intervals."""
    rows = [
        {
            "trained": "SPIN" if row["kind"] == "spin" else "more SFT",
            "learning rate": f"{row['rate']:g}",
            "beta": f"{row['beta']:g}" if row["kind"] == "spin" else "",
            "steps": row["steps"],
            "seeds": row["seeds"],
            "told apart, %": f"{100 * row['accuracy']:.0f}",
            "real, nats": f"{row['drift_real']:+.2f}",
            **{head: _points(row, measure) for measure, (_, head) in MEASURES.items()},
        }
        for row in found[found["steps"] > 0].to_dict("records")
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True).replace("-0.", "−0.") + "\n"


def _points(row: Mapping[str, Any], measure: str) -> str:
    value = row.get(measure)
    if value is None or np.isnan(value):
        return ""
    return f"{value:+.1f} [{row[f'{measure}_low']:+.1f}, {row[f'{measure}_high']:+.1f}]".replace("-", "−")


def _seed(steps: plan.Plan, betas: Sequence[float], record: Path) -> None:
    seed = steps.seed
    sizes = BATCHES.get(steps.profile.name, (SPIN.batch_size, SFT.batch_size))
    spin, sft = (replace(settings, batch_size=size) for settings, size in zip((SPIN, SFT), sizes, strict=True))
    known = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    done = {(row["kind"], row["rate"], row["beta"], row["steps"]) for row in known if row["seed"] == seed}
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
    at = [number for number in STEPS if number * spin.batch_size <= len(pairs)]
    for beta in betas:
        settings = replace(spin, beta=beta)
        missing = stops({"kind": "spin", "rate": settings.learning_rate, "beta": beta}, at)
        if missing:
            if not opponent:
                start.scratch.load_state_dict(base.load(start.folder).state_dict())
                opponent = score(start.scratch, pairs, micro_batch_tokens=SPIN.micro_batch_tokens)
            _train(start, pairs, settings, seed, missing, opponent)
    rows = encode_rows(base.load_tokenizer(start.folder), steps.profile.template, run.rows(steps, "sft"))
    demonstrations = [Group(row.prompt_ids, (row.response_ids,)) for row in rows]
    each = sum(group.tokens for group in pairs) / len(pairs) * spin.batch_size
    own = sum(group.tokens for group in demonstrations) / len(demonstrations) * sft.batch_size
    for rate in SFT_RATES:  # after as many tokens as SPIN's cells
        missing = stops({"kind": "sft", "rate": rate, "beta": 0.0}, [max(1, round(n * each / own)) for n in at])
        if missing:
            _train(start, demonstrations, replace(sft, learning_rate=rate), seed, missing, None)


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
