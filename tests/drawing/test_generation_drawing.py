"""What is said about generations follows from all of them, and examples are chosen by a rule."""

import math

import numpy as np
import pandas as pd
import pytest
import synthetic_results as synthetic
from synthetic_results import words

from spin_utils.drawing import figures, tables
from spin_utils.paper import generations, results
from spin_utils.paper.statistics import paired


@pytest.fixture(scope="module")
def texts(root):
    return results.load_generations(root)


@pytest.fixture(scope="module")
def measured(texts):
    return generations.measures(texts)


@pytest.fixture(scope="module")
def bounds(root):
    return generations.jsd_bounds(results.load_heldout(root))


def rows(*texts, model):
    items = pd.DataFrame({"id": list("012"), "generated": texts})
    return items.assign(seed=0, model=model, family="sums", prompt="p", real="a b c d", real_tokens=4)


def heldout_pairs(real_drift, generated_drift, model="spin-0"):
    drifts = {"real_drift": real_drift, "generated_drift": generated_drift}
    ids = [str(number) for number in range(len(real_drift))]
    return pd.DataFrame({"seed": 0, "model": model, "id": ids, "beta": 1.0, **drifts})


@pytest.mark.parametrize("speed", [0.1, 1.0, 7.0])
def test_the_bound_reaches_the_exact_jsd_in_the_right_direction_however_far_the_step_went(speed):
    data, model = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    plus, minus = np.outer(data, model), np.outer(model, data)
    half = (plus + minus) / 2
    jsd = 0.5 * (plus * np.log(plus / half)).sum() + 0.5 * (minus * np.log(minus / half)).sum()
    rng = np.random.default_rng(0)
    drift = speed * np.log(data / model)
    pairs = heldout_pairs(drift[rng.choice(3, 8000, p=data)], drift[rng.choice(3, 8000, p=model)], "spin-2")
    table = generations.jsd_bounds(pairs)
    assert set(table["model"]) == {"spin-1"}, "the bound is about the opponent"
    error = table["jsd_bound"].std() / math.sqrt(len(table))
    assert table["jsd_bound"].mean() == pytest.approx(jsd, abs=3 * error)


def test_the_example_is_the_first_prompt_with_the_most_different_texts():
    sft = rows("a b c d", "x", "y", model="sft")
    spin = rows("z", "z", "z", model="spin-0")
    for order in (1, -1):
        chosen = generations.example(pd.concat([spin, sft]).iloc[::order], ["sft", "spin-0"])
        assert (set(chosen["id"]), list(chosen.index)) == ({"1"}, ["sft", "spin-0"])


def test_table_8_shows_another_prompt_than_table_7_where_all_are_of_one_family(texts, measured):
    assert "a different family" in " ".join(tables.table8(texts, measured).notes)
    one, counted = texts.assign(family="topical_chat"), measured.assign(task="topical_chat")
    first, second = (make(one, counted) for make in (tables.table7, tables.table8))
    assert first.lines[0][2] != second.lines[0][2]
    assert "a different family" not in " ".join(second.notes)


def test_the_claims_of_tables_7_and_8_are_measured_on_all_prompts_with_paired_intervals(texts, measured):
    frame = tables.table7(texts, measured).frame
    cells = frame[frame["row"] == "SPIN iteration 2"].set_index(["column", "quantity"])
    mean = texts[texts["model"] == "spin-2"].groupby("family")["generated_tokens"].mean().mean()
    assert cells.loc[("tokens", "mean of all prompts"), "value"] == pytest.approx(mean)
    expected = paired(measured, {"spin-2": 1, "spin-0": -1}, column="similarity")
    gap = cells.loc[("similarity", "difference to iteration 0")]
    assert (gap["value"], gap["low"], gap["high"]) == (expected.difference, expected.low, expected.high)
    assert gap["n"] == texts["id"].nunique()


def test_tables_7_and_8_have_the_surprise_of_sampled_text_beside_that_of_real_text(texts, measured, bounds):
    assert tables.table7(texts, measured, bounds).header[-1] == "Distinct, %", "it was not measured"
    surprise = bounds["model"].map({"sft": 4.25, "spin-0": 4.0, "spin-1": 3.75, "spin-2": 3.5})
    bounds = bounds.assign(generated_surprise=surprise, real_surprise=3.875)
    table = tables.table7(texts, measured, bounds)
    assert table.header[-2:] == ("Distinct, %", "Surprise")
    shown = {line[0]: line for line in table.lines if line[1] == "mean of all prompts"}
    assert shown["SPIN iteration 0"][-1].startswith("4.00 [")
    assert shown["Ground truth"][-1].startswith("3.88 [")
    assert {len(line) for line in table.lines} == {len(table.header)}
    mean = 100 * measured[measured["model"] == "spin-1"].groupby("task")["distinct"].mean().mean()
    assert shown["SPIN iteration 1"][-2].startswith(f"{mean:.1f} [")
    fewer = tables.table7(texts, measured, bounds[bounds["model"] != "spin-1"])
    assert "— no held-out pairs against SPIN iteration 1." in fewer.notes
    assert not any("no generations of" in note for note in fewer.notes)


def test_figure_1_shows_prompt_truth_and_both_generations_of_one_prompt(texts):
    chosen = generations.example(texts, ("sft", "spin-0"))
    shown = words(figures.figure1(texts))
    for text in (*chosen["real"], *chosen["generated"]):
        assert text[:50] in shown
    assert chosen["id"].iloc[0] in shown


def test_figure_6_draws_the_means_of_all_tasks_and_says_that_the_paper_prints_none(scores, transfer):
    figure = figures.figure6(scores, transfer, profile="cpu")
    axes = figure.axes[0]
    line = axes.lines[generations.MODELS.index("spin-1")]
    means = pd.concat([scores, transfer]).query("model == 'spin-1'").groupby("task")["score"].mean() * 100
    tasks = [*sorted(synthetic.BENCHMARKS), *sorted(synthetic.TRANSFER)]
    assert line.get_ydata() == pytest.approx([*(means[task] for task in tasks), means[tasks[0]]])
    assert "prints no numbers" in words(figure)
    some = scores[scores["model"] != "spin-1"]
    shown = words(figures.figure6(some, scores[:0], profile="cpu"))
    assert "Not run: SPIN iteration 1." in shown
    assert "Tasks of Table 6: not run." in shown


def test_figure_6_counts_the_seeds_of_both_kinds_of_tasks_and_figures_3_and_6_name_what_stands_aside(scores, transfer):
    scores = scores.assign(aside=scores["task"] == "syllogism")
    shown = words(figures.figure6(scores, transfer[transfer["seed"] == 0], profile="cpu"))
    assert "Means over 2 training seeds, in the tasks from Table 6 over 1." in shown
    for text in (shown, words(figures.figure3(scores, profile="cpu"))):
        assert "Aside, in no average: syllogism, of Big-Bench." in text


def test_convergence_draws_each_measure_with_intervals_and_breaks_at_a_missing_model(measured, bounds):
    figure = figures.convergence(measured, bounds[bounds["model"] != "spin-0"])
    jsd, same, length, _ = figure.axes
    assert same.lines[0].get_ydata() == pytest.approx(
        [
            100 * measured[measured["model"] == model].groupby("task")["identical"].mean().mean()
            for model in generations.MODELS
        ]
    )
    assert [list(np.isnan(line.get_ydata())) for line in jsd.lines if line.get_marker() == "o"] == [[0, 1, 0, 0]]
    assert "No held-out pairs against SPIN iteration 0." in words(figure)
    assert length.lines[-1].get_ydata()[0] == pytest.approx(measured["real_tokens"].mean())


@pytest.mark.parametrize(
    ("right", "same", "said"),
    [
        (80, 0, "told apart in 80.0% of the 100 held-out pairs that differ"),
        (80, 100, "told apart in 80.0% of the 100 held-out pairs that differ"),
        (62, 0, "; the entry test asks for surely more than 60%"),
        (57, 0, "; more pairs or training seeds would show"),
        (47, 0, ": nothing to learn (Theorem 5.2)"),
        (0, 100, "all held-out responses equal the real ones: nothing to learn (Theorem 5.2)"),
    ],
)
def test_the_entry_test_says_whether_there_is_anything_to_learn(right: int, same: int, said: str) -> None:
    drifts = [1.0] * right + [-1.0] * (100 - right) * bool(right) + [0.0] * same
    pairs = heldout_pairs(drifts, [0.0] * len(drifts))
    found = generations.entry_test(pairs)
    assert said in found
    assert ("nothing to learn" in found) == ("nothing to learn" in said)


def test_the_entry_test_has_the_interval_of_the_table_and_of_the_verdict() -> None:
    one = heldout_pairs([1.0] * 60 + [-1.0] * 40, [0.0] * 100)
    both = pd.concat([one, one.assign(seed=1, real_drift=-one["real_drift"].to_numpy()[::-1])])
    told = paired(generations.jsd_bounds(both), {"sft": 1.0}, column="told_apart").times(100)
    found = generations.entry_test(both)
    assert f"[{told.low:.1f}%, {told.high:.1f}%]" in found
    jsd = paired(generations.jsd_bounds(both), {"sft": 1.0}, column="jsd_bound")
    assert f"is {max(0, jsd.difference):.4f} nats [{max(0, jsd.low):.4f}, {max(0, jsd.high):.4f}]" in found


def test_bits_per_byte_are_all_bits_over_all_bytes_of_the_real_responses():
    before, after, lengths = np.array([-30.0, -10.0]), np.array([-20.0, -12.0]), [16, 4]
    pairs = heldout_pairs(after - before, [0.0, 0.0]).assign(real_logp=after, real_bytes=lengths)
    table = generations.bits_per_byte(pairs)
    means = table.groupby("model")["bits_per_byte"].mean()
    assert means["sft"] == pytest.approx(40 / math.log(2) / 20)
    assert means["spin-0"] == pytest.approx(32 / math.log(2) / 20)


def answers(real, generated, ids=None):
    ids = ids or [f"prompt-{number}" for number in range(len(real))]
    return pd.DataFrame({"seed": 0, "model": "sft", "id": ids, "real": real, "generated": generated})


def accuracy(texts):
    return paired(generations.discriminator(texts), {"sft": 1}, column="discriminator")


def written(words, number, seed=0):
    drawn = np.random.default_rng(seed).choice(words.split(), (number, 6))
    return [" ".join(row) for row in drawn]


def test_the_discriminator_tells_apart_what_differs_and_nothing_else():
    human, model = "well I think so too maybe not", "yes of course here are some facts"
    alike = accuracy(answers(written(human, 150), written(human, 150, seed=1)))
    assert alike.low < 0.5 < alike.high
    assert alike.high - alike.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(120), rel=0.1)
    assert accuracy(answers(written(human, 150), written(model, 150))).difference == 1
    same = written(human, 20)
    assert set(generations.discriminator(answers(same, same))["discriminator"]) == {0.5}
    longer = [f"{text} {more}" for text, more in zip(written(human, 60), written(human, 60, seed=1), strict=True)]
    assert accuracy(answers(written(human, 60, seed=2), longer)).low > 0.5, "only their lengths differ"


def test_no_answer_is_judged_by_a_classifier_that_saw_its_prompt_or_its_conversation():
    real, generated = written("a b c", 100), written("a b c", 100, seed=1)
    # Seen with one of its two answers, a topic would give away that the other is of the other kind.
    topics = [f"topic{number} " for number in range(100)]
    both = [[topic + text for topic, text in zip(topics, texts, strict=True)] for texts in (real, generated)]
    shared = accuracy(answers(*both))
    assert shared.low < 0.5 < shared.high
    # Each side of a conversation of five turns has a word of its own, which only another turn could give away.
    talks = [number // 5 for number in range(100)]
    real, generated = (
        [f"{kind}{talk} {text}" for talk, text in zip(talks, texts, strict=True)]
        for kind, texts in (("human", real), ("model", generated))
    )
    own = accuracy(answers(real, generated, [f"talk-{talk}/{number}" for number, talk in enumerate(talks)]))
    assert own.low < 0.5 < own.high
    assert accuracy(answers(real, generated)).low > 0.8, "these ids name no conversation"


def test_a_model_with_a_single_prompt_has_no_discriminator():
    assert generations.discriminator(answers(["a"], ["b"])).empty
    assert generations.discriminator(answers(["a"] * 2, ["b"] * 2))["discriminator"].tolist() == [1]
