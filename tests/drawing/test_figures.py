"""Figures show the numbers of the results and the paper, and say what is missing."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import synthetic_results as synthetic
from synthetic_results import words

from spin_utils.drawing import draw, figures, style, training_figures
from spin_utils.paper import published, results


def drawn(name, scores):
    return getattr(figures, name)(scores, profile="cpu")


def test_figure_2_draws_our_means_solid_and_the_papers_printed_averages_dashed(scores):
    ours, theirs, gain = drawn("figure2", scores).axes
    means = [
        100 * scores[scores["model"] == model].groupby("task")["score"].mean().mean() for model in synthetic.ABILITIES
    ]
    assert ours.lines[0].get_ydata() == pytest.approx(means)
    bars = [line.get_ydata() for line in ours.lines[1:]]
    assert all(low < mean < high for (low, high), mean in zip(bars, means, strict=True))
    printed = [58.14, 60.80, 62.12, 62.97, 63.16]
    assert theirs.lines[0].get_ydata() == pytest.approx(printed)
    assert (ours.lines[0].get_linestyle(), theirs.lines[0].get_linestyle()) == ("-", "--")
    assert gain.lines[0].get_ydata() == pytest.approx(np.subtract(means, means[0]))
    assert np.diff(ours.get_ylim()) == pytest.approx(np.diff(theirs.get_ylim())), "slopes compare"


def test_figure_2_shows_further_epochs_of_sft_where_they_were_measured(scores):
    def drawn_gains(table):
        lines = drawn("figure2", table).axes[2].lines
        return [list(zip(*line.get_data(), strict=True)) for line in lines if line.get_marker() == "s"]

    means = {model: 100 * own.groupby("task")["score"].mean().mean() for model, own in scores.groupby("model")}
    ours, theirs = drawn_gains(scores)
    assert ours == [(4 + n, pytest.approx(means[f"sft-more-{n}"] - means["sft"])) for n in (1, 2)]
    assert theirs == [(5.1, pytest.approx(57.23 - 58.14))]
    assert not drawn_gains(scores[~scores["model"].str.startswith("sft-more")])


@pytest.mark.parametrize("tasks", [1, 6])
def test_figure_3_bars_are_the_papers_table_3_however_many_tasks_are_ours(scores, tasks):
    theirs = drawn("figure3", scores[scores["task"].isin(sorted(synthetic.BENCHMARKS)[:tasks])]).axes[1]
    widths = [bar.get_width() for bar in theirs.patches]
    models = ("sft", "dpo", "spin-0", "spin-1", "spin-2", "spin-3")
    expected = [published.score(m, b) for b in (*published.LEADERBOARD, "average") for m in models]
    assert widths == pytest.approx(expected)


def test_figure_4_shows_iteration_0_at_its_own_last_epoch(scores):
    def points(table):
        return drawn("figure4", table).axes[4].lines[0].get_ydata()[1:]

    without = scores[~scores["model"].str.startswith("spin-0-epoch")]
    mean = 100 * scores[scores["model"] == "spin-0"].groupby("task")["score"].mean().mean()
    shown = points(draw.with_last_epoch(without, 2))
    assert np.flatnonzero(~np.isnan(shown)).tolist() == [1]
    assert shown[1] == pytest.approx(mean)
    assert draw.with_last_epoch(scores, 2) is scores, "an epoch of its own stays"
    earlier = scores[scores["model"] != "spin-0-epoch-2"]
    assert points(draw.with_last_epoch(earlier, 1))[1] == pytest.approx(mean), "results of a profile that has changed"


def test_a_panel_of_ours_says_why_it_is_empty(scores):
    one = scores[scores["task"] == "chain_sum"].assign(benchmark="")
    shown = words(drawn("figure4", one))
    assert ("no second task" in shown, "not run" in shown) == (True, False)
    weak = words(drawn("figure2", one.assign(at_chance=True)))
    assert ("all tasks are at chance" in weak, "not run" in weak) == (True, False)
    assert "not run no evaluations" in words(drawn("figure2", one[one["model"] == "sft"].assign(model="base")))
    assert "1 tasks" not in words(drawn("figure2", one)) + words(drawn("figure5", one))


def test_figure_5_shows_the_printed_labels_of_the_paper(scores):
    shown = words(drawn("figure5", scores))
    for value in published.numbers("figure5_training_size")["average"]:
        assert f"{value:.2f}" in shown


@pytest.mark.parametrize(
    ("name", "model", "reason"),
    [
        ("figure2", "spin-3", "Not run: SPIN iteration 3."),
        ("figure3", "dpo", "Not run: DPO."),
        ("figure4", "spin-0-epoch-4", "Not run: SPIN iteration 0, epoch 4."),
        ("figure5", "sft-more-2", "Not run: SFT, 2 more epochs."),
    ],
)
def test_a_missing_series_is_named_below_the_figure(scores, name, model, reason):
    assert reason in words(drawn(name, scores[scores["model"] != model]))
    assert "Not run" not in words(drawn(name, scores))


def test_a_line_joins_no_model_that_ran_on_fewer_than_half_of_the_seeds(scores):
    scores = pd.concat([scores[scores["seed"] == 0].assign(seed=seed) for seed in range(3)])
    few = drawn("figure5", scores[(scores["model"] != "sft-more-2") | (scores["seed"] == 0)])
    assert len(few.axes[0].lines[0].get_xdata()) == 3
    assert np.isnan(few.axes[0].lines[0].get_ydata()[2])
    said = words(few)
    assert "Not drawn, run on fewer than half of the seeds: SFT, 2 more epochs." in said
    assert "Not run" not in said


@pytest.mark.parametrize(("name", "model"), [("figure4", "spin-0-epoch-2"), ("figure5", "spin-0-rows-14")])
def test_points_of_a_line_are_means_over_the_same_seeds(scores, name, model):
    scores = pd.concat([scores[scores["seed"] == 0], scores[scores["seed"] == 0].assign(seed=1, score=1.0)])
    figure = drawn(name, scores[(scores["model"] != model) | (scores["seed"] == 1)])
    assert set(figure.axes[0].lines[0].get_ydata()) == {100}
    assert "seeds are those that all of these models have: 1." in " ".join(words(figure).split())
    assert "these models have" not in words(drawn(name, scores))


def test_a_model_with_half_of_the_seeds_that_are_left_has_them_all(scores):
    scores = pd.concat([scores[scores["seed"] == 0].assign(seed=seed, score=float(seed < 3)) for seed in range(8)])
    most = scores["model"].map({"spin-0-rows-14": 4, "sft-more-1": 3}).fillna(8)
    figure = drawn("figure5", scores[scores["seed"] < most])
    lines = [line.get_ydata().tolist() for line in figure.axes[0].lines if len(line.get_ydata()) > 2]
    assert lines == [[100] * 3, [100] * 4]
    assert "seeds are those that all of these models have: 0, 1, 2." in " ".join(words(figure).split())


def test_drawing_leaves_matplotlib_as_it_was_and_ignores_the_users_settings(tmp_path, scores):
    plain = style.save(drawn("figure2", scores), tmp_path / "plain", "f")
    assert {path.suffix for path in plain} == {".pdf", ".png", ".svg"}
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        loud = style.save(drawn("figure2", scores), tmp_path / "loud", "f")
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in loud]


def test_training_curves_start_at_log_2_and_go_through_all_iterations(root):
    training = results.load_training(root)
    figure = training_figures.training_curves(training)
    loss = figure.axes[0]
    starts = [line.get_ydata()[0] for line in loss.lines if line.get_linewidth() == 0.4 and len(line.get_ydata()) > 2]
    assert starts == pytest.approx([np.log(2)] * 8)
    assert figure.axes[2].get_xlim()[1] == 4 * 60
    assert "log 2" in words(figure)
    assert "l(0) = 1" in words(training_figures.training_curves(training, loss="hinge"))
    assert "Not run" in words(training_figures.training_curves(training[training["model"] != "spin-3"]))


def test_every_model_of_a_shorter_run_has_a_colour() -> None:
    assert style.colour("spin-1-dpo") == style.colour("spin-3-dpo") != style.colour("dpo")
    assert style.colour("spin-0-rows-14") == style.colour("spin-0")
    assert style.colour("sft-more-2") == style.colour("sft-more-1") != style.colour("sft")
