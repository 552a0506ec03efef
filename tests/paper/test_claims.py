"""Every table, figure and claim has a row, every row a verdict, and every missing run its reason."""

import pandas as pd
import pytest
import synthetic_results as synthetic

from spin_utils.drawing import draw
from spin_utils.paper import claims, generations, published, results
from spin_utils.paper.generations import mean_grade
from spin_utils.paper.statistics import paired
from spin_utils.settings.machine import CATEGORIES
from spin_utils.settings.run import TrainingSettings

TIMES = pd.DataFrame(
    [
        {"seed": seed, "stage": stage, "iteration": t, "seconds": seconds * (1 + 0.1 * seed)}
        for seed in (0, 1)
        for t in range(4)
        for stage, seconds in (("generation", 34.0), ("training", 100.0 if t == 0 else 200.0))
    ]
)


@pytest.fixture(scope="module")
def findings(root, scores, transfer):
    training = results.load_training(root)
    judged = claims.judge(
        scores,
        times=TIMES,
        training=training,
        transfer=transfer,
        generations=generations.measures(results.load_generations(root)),
        heldout=generations.jsd_bounds(results.load_heldout(root)),
    )
    return {finding.id: finding for finding in judged}


def test_the_papers_values_come_from_its_tables_and_figures(findings):
    expected = {
        "average-iteration-0": 2.66,
        "average-iteration-3": 0.19,
        "average-final": 5.02,
        "gsm8k-iteration-0": 8.34,
        "truthfulqa-final": 11.17,
        "dpo-after-spin": 0.89,
        "sft-more-epochs": -0.91,
        "sft-epoch-2": 0.78,
        "size-14": 1.41,
        "spin-over-more-sft": 1.01,
        "epochs-truthfulqa": 5.75,
    }
    assert {name: findings[name].paper for name in expected} == pytest.approx(expected)
    assert findings["time-training-doubles"].paper == 2.0


def test_the_paper_contradicts_itself_only_on_gsm8k_at_iteration_0(findings):
    assert [name for name, finding in findings.items() if finding.paper_holds is False] == ["gsm8k-iteration-0"]


def test_a_verdict_is_the_rule_applied_to_the_paired_interval(scores, findings):
    estimate = paired(scores, {"spin-0": 1, "sft": -1}).times(100)
    finding = findings["average-iteration-0"]
    assert (finding.low, finding.ours, finding.high) == (estimate.low, estimate.difference, estimate.high)
    assert (finding.verdict == "reproduced") == (finding.low > 0)
    assert (finding.n, finding.seeds) == (240, 2)
    direction, size = findings["average-final"], findings["average-final-size"]
    assert (direction.low, direction.high) == (size.low, size.high)
    assert direction.verdict == "reproduced"
    assert (size.verdict == "reproduced") == (size.low > 3.02 and size.high < 7.02)


def test_times_are_compared_as_ratios_over_seeds(findings):
    assert findings["time-training-doubles"].ours == pytest.approx(2.0)
    assert findings["time-training-doubles"].verdict == "reproduced"
    assert findings["time-generation-share"].seeds == 2
    assert findings["table-2"].verdict == "reproduced"


def test_a_time_is_compared_with_that_of_its_own_seed():
    row = next(row for row in claims.registry() if row.id == "time-training-doubles")
    slower = TIMES.assign(seconds=TIMES["seconds"] * (1 + TIMES["seed"]))
    first_of_seed_0 = (slower["stage"] == "training") & (slower["iteration"] == 0) & (slower["seed"] == 0)

    empty = pd.DataFrame(columns=["seed", "model", "task", "id", "score"])
    (finding,) = claims.judge(empty, times=slower[~first_of_seed_0], rows=[row])
    assert (finding.ours, finding.seeds) == (pytest.approx(2.0), 1)
    assert (finding.verdict, finding.low, finding.high) == ("inconclusive", None, None), "one ratio has no range"


def test_claims_on_other_benchmarks_are_judged_on_transfer_tasks_only(transfer, findings):
    expected = paired(transfer, {"spin-2": 1, "sft": -1}, tasks=["long_words"]).times(100)
    finding = findings["bb-sports-kept"]
    assert (finding.ours, finding.low, finding.n) == (expected.difference, expected.low, 30)
    assert finding.paper == -1.6
    assert findings["mt-bench"].verdict == findings["figure-6"].verdict == "not run"
    assert findings["mt-bench-final"].reason == "needs a judge model and none was run"
    assert findings["mt-bench-final"].paper == pytest.approx(0.84)
    assert "of 4 claims reproduced" in findings["table-6"].reason


def test_mt_bench_is_judged_on_grades_and_figure_6_category_by_category(scores, tmp_path):
    synthetic.write_mt_bench(tmp_path / "cpu", seeds=(0, 1))
    grades = results.load_mt_bench(tmp_path / "cpu")
    rows = [row for row in claims.registry() if row.id == "figure-6" or row.id.startswith("mt-bench")]
    judged = {row.id: row for row in claims.judge(scores, grades=grades, rows=rows)}
    expected = mean_grade(grades, {"spin-1": 1, "sft": -1}, category="math")
    finding = judged["mt-bench-math"]
    assert (finding.ours, finding.low, finding.high) == (expected.difference, expected.low, expected.high)
    assert (finding.verdict == "reproduced") == (expected.low > 0)
    assert finding.paper is None, "the figure has no numbers"
    assert judged["mt-bench-final"].verdict == "reproduced"
    assert judged["mt-bench-final"].seeds == 2
    assert "of 8 claims reproduced" in judged["figure-6"].reason


def test_length_similarity_and_divergence_are_judged_on_all_generations_and_held_out_pairs(root, findings):
    measured = generations.measures(results.load_generations(root))
    expected = paired(measured, {"spin-2": 1, "spin-0": -1}, column="similarity")
    finding = findings["similarity-iteration-2"]
    assert (finding.ours, finding.low, finding.high) == (expected.difference, expected.low, expected.high)
    assert findings["length-iteration-1"].n == 30
    assert findings["jsd-iteration-0"].verdict == "reproduced"
    assert findings["jsd-iteration-0"].high < 0


def test_a_bound_that_is_not_above_0_cannot_fall(root, scores):
    bounds = generations.jsd_bounds(results.load_heldout(root))
    nothing = bounds.assign(jsd_bound=bounds["jsd_bound"].where(bounds["model"] != "sft", 0.0))
    (row,) = (row for row in claims.registry() if row.id == "jsd-iteration-0")
    (found,) = claims.judge(scores, heldout=nothing, rows=[row])
    assert found.verdict == "inconclusive"
    assert "it cannot fall" in found.reason


def test_the_loss_starts_at_log_2_and_another_loss_is_not_held_to_it(root, scores, findings):
    assert findings["loss-starts-at-log-2"].verdict == "reproduced"
    (row,) = (row for row in claims.registry() if row.id == "loss-starts-at-log-2")
    training = results.load_training(root)
    changed = ({"loss": "hinge"}, {"nll": 0.2}, {"reference_free": True})
    for change in changed:
        loss = draw.loss_of(TrainingSettings(learning_rate=1.0, **change))
        (found,) = claims.judge(scores, training=training, loss=loss, rows=[row])
        assert found.verdict == "not judged"
    assert draw.loss_of(TrainingSettings(learning_rate=1.0, positive=5.0)) == "logistic", "it adds nothing at the start"


def test_a_table_is_reproduced_only_if_all_its_claims_are(findings):
    parts = [findings[row.id].verdict for row in claims.registry() if "table-4" in row.part_of]
    whole = findings["table-4"]
    unclear = "not reproduced" if "not reproduced" in parts else "inconclusive"
    assert whole.verdict == ("reproduced" if set(parts) == {"reproduced"} else unclear)
    assert whole.reason == f"{parts.count('reproduced')} of {len(parts)} claims reproduced"


def test_a_claim_without_its_runs_is_not_run_and_says_why(scores):
    some = scores[scores["model"].isin(["sft", "spin-0", "spin-1"])]
    some = some.assign(benchmark=some["benchmark"].replace("gsm8k", ""))
    found = {finding.id: finding for finding in claims.judge(some)}
    assert found["average-iteration-1"].verdict != "not run"
    for name, reason in (
        ("dpo-iteration-0", "no evaluation of dpo"),
        ("average-iteration-2", "no evaluation of spin-2"),
        ("time-training-doubles", "training of iteration 1 was not run"),
        ("loss-starts-at-log-2", "no training records"),
        ("bb-causal-kept", "no evaluation on transfer tasks of spin-2, sft"),
        ("length-iteration-2", "no generations of spin-2, spin-0"),
        ("jsd-iteration-1", "no held-out pairs against spin-1, spin-0"),
    ):
        assert (found[name].verdict, found[name].reason) == ("not run", reason)
    assert "this profile does not measure GSM8k" in found["gsm8k-iteration-0"].reason
    weak = scores.assign(at_chance=scores["task"] == "chain_sum")
    (row,) = (row for row in claims.registry() if row.id == "gsm8k-iteration-0")
    (finding,) = claims.judge(weak, rows=[row])
    assert (finding.verdict, finding.reason) == ("not run", "at chance before any training here, so it judges nothing")
    assert found["table-4"].verdict == "not run"
    assert "average-iteration-2" in found["table-4"].reason


def test_the_two_files_hold_every_finding_and_are_written_identically_twice(tmp_path, findings):
    first, second = (draw.write_verdicts(list(findings.values()), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    table = pd.read_csv(first[0])
    assert list(table.columns) == ["id", "statement", "paper", "ours", "low", "high", "n", "seeds", "verdict"]
    assert list(table["id"]) == list(findings)
    assert set(table["verdict"]) <= set(claims.OUTCOMES)
    lines = [line for line in first[1].read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == len(findings) + 2


NEEDED = {
    "contrast": ("contrast", "benchmark", "claim"),
    "times": ("ratio", "claim"),
    "training": ("tolerance",),
    "theory": ("check", "tolerance"),
    "parts": (),
    "shown": ("reason",),
}


def test_every_table_and_figure_has_a_row_and_every_row_what_its_computation_needs():
    rows = claims.registry()
    wholes = {row.id for row in rows if row.compute == "parts"}
    ids = {row.id for row in rows}
    assert len(ids) == len(rows)
    assert {f"table-{n}" for n in range(1, 9)} | {f"figure-{n}" for n in range(1, 7)} <= ids
    assert {whole for row in rows for whole in row.part_of} == wholes
    for row in rows:
        assert all(getattr(row, name) not in (None, "", {}, []) for name in NEEDED[row.compute]), row.id
        assert row.value is not None or row.claim not in ("at_least", "at_most"), row.id
        assert row.benchmark in ("", *published.BENCHMARK_LABELS), row.id
        assert row.category in ("", *CATEGORIES), row.id
