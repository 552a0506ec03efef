"""The cost model counts what the method needs, and nothing else."""

import dataclasses

import pytest

from spin_utils.experiment import forecast, sizes
from spin_utils.paper import published

RUN, MISTRAL = sizes.Workload(), sizes.Architecture()


def test_the_default_architecture_has_the_published_number_of_parameters():
    assert MISTRAL.parameters == 7_241_732_096


def test_a_small_forward_pass_equals_counting_by_hand():
    tiny = sizes.Architecture(layers=1, hidden=2, query=2, key_value=1, feed_forward=3, vocabulary=5)
    weights = 2 * (2 + 2 * 1) + 2 * 2 + 3 * 2 * 3
    seen = 1 + 2 + 3  # each of three tokens attends to itself and those before it
    assert forecast.forward_flops(tiny, 1, 2) == 2 * weights * 3 + 4 * 2 * seen + 2 * 2 * 5 * 2


def test_a_shared_prompt_is_counted_once():
    together = forecast.forward_flops(MISTRAL, 128, 300, 230)
    apart = forecast.forward_flops(MISTRAL, 128, 300) + forecast.forward_flops(MISTRAL, 128, 230)
    assert apart - together == forecast.forward_flops(MISTRAL, 128)


def test_generation_one_by_one_is_bound_by_reading_the_weights():
    alone = forecast.generation_hours(dataclasses.replace(RUN, decoded_together=1), MISTRAL)
    reading = RUN.prompts * RUN.generated_tokens * 2 * MISTRAL.parameters / RUN.bandwidth
    assert alone == pytest.approx(reading / (RUN.gpus * RUN.utilisation) / 3600, rel=0.01)


def test_utilisation_undoes_the_prediction_and_is_low_for_the_papers_hours():
    hours = forecast.training_hours(RUN, MISTRAL, 0)
    assert forecast.utilisation(RUN, MISTRAL, 0, hours) == pytest.approx(RUN.utilisation)
    paper = published.wall_clock_hours().set_index(["stage", "iteration"])["hours"]["training", 0]
    assert 0.05 < forecast.utilisation(RUN, MISTRAL, 0, paper) < RUN.utilisation
