"""The SFT data: prompts x and human responses y, from files, the hub or a generator, and their splits.

Training rows are shuffled once with the data seed. The SPIN rows are the first ones, so they are a random subset of the
SFT rows (sec. 6.1: 50k prompts chosen at random), and so is any shorter prefix.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

from spin_utils.data import big_bench, families
from spin_utils.data.rows import Row, RowError, as_row, checked_rows, first_rows, listed, question
from spin_utils.settings.inputs import DemonstrationSettings

_logger = logging.getLogger(__name__)

_HELD_OUT = {"test": 600, "validation": 300}
"""Most rows to hold out if the settings do not say how many; else it is a tenth. The test rows are drawn first."""


@dataclass(frozen=True)
class Demonstrations:
    """Checked rows by use; `spin` is a prefix of `sft`."""

    sft: list[Row]
    spin: list[Row]
    validation: list[Row]
    test: list[Row]
    transfer: list[Row] = field(default_factory=list)
    """Rows of families not used in training."""


def load(settings: DemonstrationSettings) -> Demonstrations:
    """Read or generate the demonstrations, check every row and split them, so that no prompt is in two splits.

    Without a file or split for validation or test, rows with a unique prompt are held out from the training rows.

    Raises:
        RowError: a file or row cannot be used, there are duplicates or too few rows, or a task family cannot be
            generated.
    """
    if settings.source == "reasoning_gym":
        sizes = {"train": settings.sft_rows}
        sizes |= {"validation": settings.validation_rows or 0, "test": settings.test_rows or 0}
        how: dict[str, Any] = {"seed": settings.seed, "wordings": settings.wordings}
        made = _demonstrations(settings, **families.generate(settings.families, sizes, **how))
        transfer = families.generate(settings.transfer, {"test": settings.transfer_rows}, **how)["test"]
        trained_on = {question(row) for row in made.sft}
        for row in transfer:
            if question(row) in trained_on:
                raise RowError(
                    f"demonstrations.transfer.{row['family']}: {row['id']} is also a training prompt; "
                    "give the family options that the training family does not cover"
                )
        return replace(made, transfer=transfer)
    if settings.source == "big_bench":
        return _by_conversation(settings, big_bench.demonstrations(settings.name))
    train = _read(settings, settings.train)
    if settings.expected_rows and len(train) != settings.expected_rows:
        raise RowError(
            f"{settings.name or settings.train} [train]: {len(train)} distinct usable rows, but "
            f"demonstrations.expected_rows is {settings.expected_rows}; check name and revision, or set it to 0 to "
            "accept any number"
        )
    held_out: dict[str, list[Row]] = {}
    for split in _HELD_OUT:
        if given := getattr(settings, split):
            wanted = _wanted(settings, split, 0)
            held_out[split] = first_rows(_read(settings, given), wanted, f"demonstrations.{split}_rows", given)
            train = _disjoint(settings, train, settings.train, held_out[split], split)
    rows = len(train)
    for split in _HELD_OUT:
        if split not in held_out:
            train, held_out[split] = _hold_out(train, _wanted(settings, split, rows), split, settings)
    validation = _disjoint(settings, held_out["validation"], settings.validation, held_out["test"], "test")
    if settings.turns == "all":  # held-out rows are asked for the last answer
        taken = {question(row) for held in held_out.values() for row in held}  # conversations may begin alike
        turns = (turn for row in train for turn in _every_turn(row) if question(turn) not in taken)
        train = list({(question(turn), turn["response"]): turn for turn in turns}.values())
    Random(f"order/{settings.seed}").shuffle(train)
    return _demonstrations(settings, train, validation, held_out["test"])


def _by_conversation(settings: DemonstrationSettings, rows: list[Row]) -> Demonstrations:
    """Rows of Big-Bench, split so that no conversation and no question is in two splits.

    A held-out conversation gives one row, so that items are independent.
    """
    talks: dict[str, list[Row]] = {}
    for row in rows:
        talks.setdefault(row["id"].rpartition("/")[0], []).append(row)
    left, draw = sorted(talks), Random(f"conversations/{settings.seed}")
    draw.shuffle(left)
    taken: set[tuple[str, ...]] = set()
    held_out: dict[str, list[Row]] = {}
    for split in _HELD_OUT:
        wanted = _wanted(settings, split, len(rows))
        found = held_out[split] = []
        while left and len(found) < wanted:
            row = draw.choice(talks[left.pop()])
            if question(row) not in taken:
                taken.add(question(row))
                found.append(row)
        first_rows(found, wanted, f"demonstrations.{split}_rows", settings.name)
    train = [row for talk in left for row in talks[talk] if question(row) not in taken]
    Random(f"order/{settings.seed}").shuffle(train)
    return _demonstrations(settings, train, held_out["validation"], held_out["test"])


def _demonstrations(
    settings: DemonstrationSettings, train: list[Row], validation: list[Row], test: list[Row]
) -> Demonstrations:
    source = settings.train or settings.name or settings.source
    sft = first_rows(train, settings.sft_rows, "demonstrations.sft_rows", source)
    if not sft:
        raise RowError(f"{source}: no rows are left for training; hold out fewer or add rows")
    spin = first_rows(sft, settings.spin_rows, "demonstrations.spin_rows", "the SFT split")
    return Demonstrations(sft=sft, spin=spin, validation=validation, test=test)


def _wanted(settings: DemonstrationSettings, split: str, rows: int) -> int:
    """How many of these rows to hold out for a split."""
    wanted: int | None = getattr(settings, f"{split}_rows")
    return min(rows // 10, _HELD_OUT[split]) if wanted is None else wanted


def _read(settings: DemonstrationSettings, given: str) -> list[Row]:
    # The same prompt with a different response is a valid second demonstration.
    return checked_rows(settings, given, partial(as_row, turns=settings.turns), ("prompt", "response"))


def _every_turn(row: Row) -> list[Row]:
    """A row of a conversation as one row for each of its answers, whose ids end in their number."""
    said = [*row.get("earlier", ()), row["prompt"], row["response"]]
    rows = []
    for place in range(0, len(said), 2):
        own = {"id": f"{row['id']}/{place // 2 + 1}", "prompt": said[place], "response": said[place + 1]}
        rows.append({key: value for key, value in row.items() if key != "earlier"} | own)
        if place:
            rows[-1]["earlier"] = said[:place]
    return rows


def _disjoint(
    settings: DemonstrationSettings, rows: list[Row], source: str, held_out: list[Row], split: str
) -> list[Row]:
    """The rows whose prompts are not held out. Others are an error in a file, and left out if they are from the hub."""
    taken = {question(row): row["id"] for row in held_out}
    shared = [row for row in rows if question(row) in taken]
    if not shared:
        return rows
    examples = [
        f"row {row['id']}: the prompt is also row {taken[question(row)]} of {split}; remove one of them"
        for row in shared
    ]
    if settings.source == "file":
        raise RowError(listed([f"{source}, {example}" for example in examples]))
    reason = "%s: %d rows left out because their prompts are in %s, the first: %s"
    _logger.warning(reason, source, len(shared), split, examples[0])
    return [row for row in rows if question(row) not in taken]


def _hold_out(
    train: list[Row], wanted: int, split: str, settings: DemonstrationSettings
) -> tuple[list[Row], list[Row]]:
    """Hold out `wanted` rows with a unique prompt from the training rows, chosen by the data seed."""
    times = Counter(question(row) for row in train)
    single = [place for place, row in enumerate(train) if times[question(row)] == 1]
    if len(single) < wanted or (wanted and len(train) == wanted):
        raise RowError(
            f"{settings.train}: {len(train)} rows are left ({len(single)} with a unique prompt), but "
            f"demonstrations.{split}_rows asks to hold out {wanted} and training needs some too; "
            f"add rows with other prompts, lower {split}_rows, or name a file in demonstrations.{split}"
        )
    chosen = set(Random(f"{split}/{settings.seed}").sample(single, wanted))
    kept = [row for place, row in enumerate(train) if place not in chosen]
    return kept, [train[place] for place in sorted(chosen)]
