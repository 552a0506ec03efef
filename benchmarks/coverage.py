"""How often the intervals of `spin_utils.paper.statistics` cover the truth: the table of docs/statistics.md.

    python -m benchmarks.coverage

Two models answer the same items with several training seeds. An item has a difficulty that both models share; each
model, seed and item has a draw of its own; a seed may shift a model's ability as a whole. What is asked for is 95 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spin_utils.files.paths import REPOSITORY
from spin_utils.paper.statistics import crossed, extremity

PAGE, MARK = REPOSITORY / "docs" / "statistics.md", "<!-- written by `python -m benchmarks.coverage`, do not edit -->"
"""The table stands below the mark."""
REPETITIONS = 1000
"""As the page says."""
MODELS = 10
"""Of a table, from whose seeds a contrast of few seeds borrows strength."""


@dataclass(frozen=True)
class World:
    """What is simulated."""

    seeds: int = 3
    tasks: int = 6
    items: int = 150
    """Of each task."""
    share: float = 0.5
    """Mean probability of a right answer."""
    seed_sd: float = 0.0
    """Standard deviation of a model's ability between seeds, as a share."""
    cluster: int = 1
    """Items of a source, which share their difficulty and the effect of training on them."""
    graded: bool = False
    """Scores lie anywhere between 0 and 1, as a ROUGE does, instead of at the ends."""
    mean: bool = False
    """The mean of one model instead of a difference."""

    def __str__(self) -> str:
        parts = [f"{self.tasks} x {self.items} items", f"{self.share:.0%} right"]
        parts += [f"seeds differ by {100 * self.seed_sd:g} points"] if self.seed_sd else []
        parts += [f"sources of {self.cluster}"] if self.cluster > 1 else []
        parts += ["scores between"] if self.graded else []
        return ", ".join([*parts, "mean" if self.mean else "difference"])


def covers(world: World, generator: np.random.Generator) -> tuple[bool, float]:
    """One repetition: whether the interval holds the truth, and its half width in points."""
    clusters = world.items // world.cluster
    # Most items are easy or hard for everyone; graded scores lie closer together.
    ability = np.array([world.share, 1 - world.share]) * (8 if world.graded else 1)
    hard = generator.beta(*ability, size=(1, world.tasks, clusters)).repeat(world.cluster, axis=2)
    models = MODELS if world.seeds > 1 else 2
    chance = np.clip(hard + generator.normal(0, world.seed_sd, size=(models, world.seeds, 1, 1)), 0, 1)
    shape = models, world.seeds, world.tasks, world.items
    draws = 20 if world.graded else 1
    values = generator.binomial(draws, chance, shape) / draws
    contrast = values[0] if world.mean else values[1] - values[0]
    truth = world.share if world.mean else 0.0
    pooled = None
    if len(values) > 2 and not world.mean:
        table = values.mean(axis=(2, 3))
        around = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        pooled = 2 * float((around**2).sum()) / ((len(table) - 1) * (world.seeds - 1))
    sums = contrast.reshape(world.seeds, world.tasks, clusters, world.cluster).sum(axis=3)
    sizes = np.full(clusters, float(world.cluster))
    least, most, pseudo = (0.0, 1.0, 2.0) if world.mean else (-1.0, 1.0, 1.0)
    ends = least, most, pseudo * extremity([contrast])
    found = crossed([(sums[:, task], sizes) for task in range(world.tasks)], ends, pooled=pooled)
    return found.low <= truth <= found.high, 50 * (found.high - found.low)


def coverage(world: World, repetitions: int, seed: int = 0) -> tuple[float, float]:
    """Share of repetitions whose interval covers the truth, and the median half width in points."""
    generator = np.random.default_rng(seed)
    found = [covers(world, generator) for _ in range(repetitions)]
    return float(np.mean([held for held, _ in found])), float(np.median([half for _, half in found]))


def worlds() -> list[World]:
    """What the page shows."""
    found = []
    for seeds in (1, 2, 3, 8):
        found += [World(seeds=seeds, seed_sd=sd) for sd in ((0.0,) if seeds == 1 else (0.0, 0.01, 0.02, 0.05))]
        found += [World(seeds=seeds, share=0.02)]
        found += [World(seeds=seeds, tasks=1, items=300, share=0.02), World(seeds=seeds, tasks=1, items=60)]
        found += [World(seeds=seeds, cluster=10)] + (
            [World(seeds=seeds, cluster=10, seed_sd=0.01)] if seeds > 1 else []
        )
        found += [World(seeds=seeds, mean=True, share=share) for share in (0.5, 0.02)]
        found += [World(seeds=seeds, tasks=1, items=300, share=0.14, graded=True, mean=mean) for mean in (False, True)]
    return found


def main() -> None:
    rows = ["| seeds | simulated | coverage, % | half width, points |", "|---:|---|---:|---:|"]
    for world in worlds():
        held, half = coverage(world, REPETITIONS)
        rows.append(f"| {world.seeds} | {world} | {100 * held:.1f} | {half:.2f} |")
        print(rows[-1], flush=True)
    prose = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text("\n".join([prose + MARK, *rows, ""]), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
