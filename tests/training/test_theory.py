"""The theorems of section 5 hold to machine precision on a categorical model."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from spin_utils.drawing import theory_figures
from spin_utils.files.paths import KitError
from spin_utils.training import theory
from spin_utils.training.loss import link

BETAS = (0.1, 1.0, 5.0)
DATA = theory.distribution([0.40, 0.25, 0.20, 0.10, 0.05])
OPPONENT = theory.distribution([0.10, 0.15, 0.25, 0.30, 0.20])


@pytest.mark.parametrize("loss", theory.LOSSES)
@pytest.mark.parametrize("beta", BETAS)
def test_the_population_loss_is_the_double_sum_of_equation_4_7(loss, beta):
    policy = theory.random_distribution(5, 3)
    slow = 0.0
    for y in range(5):
        for other in range(5):
            margin = beta * float(policy[y] - OPPONENT[y]) - beta * float(policy[other] - OPPONENT[other])
            weight = math.exp(DATA[y]) * math.exp(OPPONENT[other])
            slow += weight * float(link(torch.tensor(margin, dtype=torch.float64), loss))
    assert float(theory.population_loss(policy, OPPONENT, DATA, beta=beta, loss=loss)) == pytest.approx(slow)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_the_theorems_of_section_5_hold_as_equalities(seed):
    assert theory.fixed_point_error(seed) < 1e-14
    assert theory.necessity_margin(seed) < 0
    assert theory.update_law_error(seed) < 1e-9
    assert theory.contraction_error(seed) < 1e-12
    assert theory.minimum_error(seed) < 1e-12


def test_the_slope_at_lambda_0_is_minus_half_the_two_divergences():
    # g'(0) = l'(0) [KL(data || opponent) + KL(opponent || data)] with l'(0) = -1/2 for the logistic loss
    step = 1e-5
    ahead, behind = (float(theory.population_loss(DATA, OPPONENT, DATA, beta=b)) for b in (step, -step))
    both = theory.divergence(DATA, OPPONENT) + theory.divergence(OPPONENT, DATA)
    assert (ahead - behind) / (2 * step) == pytest.approx(-0.5 * float(both), rel=1e-6)


def test_descent_with_a_rate_over_lambda_squared_takes_the_same_way_in_the_judge():
    paths = {b: theory.descend(OPPONENT, DATA, beta=b, steps=50, learning_rate=0.2 / b**2) for b in (0.1, 1.0, 5.0)}
    for beta, path in paths.items():
        judge = beta * (path - OPPONENT)
        reference = paths[1.0] - OPPONENT
        assert_close(judge - judge.mean(1, keepdim=True), reference - reference.mean(1, keepdim=True))


def test_at_lambda_one_tenth_descent_passes_near_the_data_before_it_leaves():
    path = theory.descend(OPPONENT, DATA, beta=0.1, steps=300, learning_rate=0.2 / 0.1**2)
    distances = theory.divergence(DATA, path)
    nearest = int(distances.argmin())
    assert 0 < nearest < 300
    assert float(distances[nearest]) < 0.1 * float(distances[0])
    assert float(distances[-1]) > 5 * float(distances[0])


@pytest.mark.parametrize("weights", [[1.0], [1, 0], [1, math.nan]])
def test_what_is_no_distribution_is_refused(weights):
    with pytest.raises(KitError, match="positive finite"):
        theory.distribution(weights)


def test_a_lambda_must_be_above_zero():
    with pytest.raises(KitError, match="above 0"):
        theory.check_lambdas([0.0])


@pytest.mark.parametrize(("beta", "iterations"), [(0.1, 0), (0.6, 3), (10.0, 10)])
def test_the_game_of_many_iterations_can_be_played_at_every_place_of_its_sliders(beta, iterations):
    axes = theory_figures.after(OPPONENT, DATA, beta, iterations).axes[0]
    policy = [bar.get_height() for bar in axes.patches[5:10]]
    expected = theory.iterate(OPPONENT, DATA, beta=beta, iterations=iterations)[-1].exp()
    assert policy == pytest.approx(expected.tolist())


def test_a_loss_of_ones_own_is_drawn_however_many_there_are(monkeypatch):
    monkeypatch.setattr(theory, "LOSSES", theory.LOSSES * 3)
    labels = [line.get_label() for line in theory_figures.losses().axes[0].lines]
    assert [label for label in labels if label in theory.LOSSES] == list(theory.LOSSES)


def test_logarithmic_axes_have_plain_numbers():
    figures = theory_figures.distances(OPPONENT, DATA, BETAS), theory_figures.early_stopping(OPPONENT, DATA, BETAS)
    for figure in figures:
        figure.canvas.draw()
        labels = [
            label.get_text() for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
        ]
        assert {"0.01", "0.001"} & set(labels)
        assert not any("$" in label for label in labels)
