"""benchmarks/scaling.md is what the cost model gives today, and its limits are where the counts cross them."""

from __future__ import annotations

import pytest

from benchmarks import scaling
from spin_utils.experiment import estimate
from spin_utils.experiment.estimate import Architecture, Workload
from spin_utils.paper import published
from spin_utils.settings import profiles

PAPER = profiles.load("paper")


def test_the_committed_page_is_what_the_generator_gives() -> None:
    assert scaling.PAGE.read_text(encoding="utf-8") == scaling.render(), "run python -m benchmarks.scaling"


def test_the_papers_cell_is_the_prediction_of_table_2() -> None:
    generation, training = scaling.chain_hours(Architecture(), Workload().prompts, 8, PAPER)
    assumed, (sampled, trained) = Workload().utilisation, scaling.shares()
    generation, training = generation * sampled / assumed, training * trained / assumed
    assert generation == pytest.approx(4 * estimate.generation_hours(Workload(), Architecture()))
    assert training == pytest.approx(sum(estimate.training_hours(Workload(), Architecture(), t) for t in range(4)))
    hours = published.wall_clock_hours().groupby("stage")["hours"].sum()
    assert training < hours["training"], "a prediction without communication is below what was needed"


def test_every_model_has_its_public_number_of_parameters() -> None:
    billions = {name: round(a.parameters / 1e9, 3) for name, a in scaling.MODELS.items()}
    assert billions == {
        "SmolLM2-135M": 0.135,
        "Qwen2.5-0.5B": 0.494,
        "SmolLM2-1.7B": 1.711,
        "Mistral-7B": 7.242,
        "Llama-2-13B": 13.016,
        "Llama-3-70B": 70.554,
    }
