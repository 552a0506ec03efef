"""Tables say what was measured, beside what was printed, and why a cell is empty."""

import re
import shutil
import subprocess

import pandas as pd
import pytest
import synthetic_results as synthetic

from spin_utils.drawing import tables
from spin_utils.paper import generations, published, results
from spin_utils.paper.statistics import paired
from spin_utils.settings.names import label


@pytest.fixture(scope="module")
def table4(scores):
    return tables.table4(scores)


def cell(table, row, column, quantity="score"):
    frame = table.frame
    found = frame[(frame["row"] == row) & (frame["column"] == column) & (frame["quantity"] == quantity)]
    assert len(found) == 1
    return found.iloc[0]


def test_every_score_of_table_4_is_the_mean_of_the_items_in_the_files(root, table4):
    for model in synthetic.ABILITIES:
        for task, benchmark in synthetic.BENCHMARKS.items():
            items = [
                item["score"]
                for seed in (0, 1)
                for item in results.read_json(results.path_of(root, seed, "evaluations", model))["items"]
                if item["task"] == task
            ]
            mean = 100 * sum(items) / len(items)
            assert cell(table4, label(model), benchmark)["value"] == pytest.approx(mean)


def test_gains_are_paired_differences_with_a_verdict_on_the_papers_direction(scores, table4):
    gain = cell(table4, "SPIN iteration 0", "average", "gain over SFT")
    expected = paired(scores, {"spin-0": 1, "sft": -1}).times(100)
    assert (gain["value"], gain["low"], gain["high"]) == (expected.difference, expected.low, expected.high)
    assert gain["paper"] == 2.66
    assert gain["difference"] == pytest.approx(expected.difference - 2.66)
    assert gain["verdict"] in ("reproduced", "not reproduced", "inconclusive")
    falling = cell(table4, "SPIN iteration 0", "winogrande", "gain over SFT")
    assert falling["paper"] == -1.5


def test_a_task_stands_under_its_own_name_unless_it_is_the_papers_benchmark(scores, table4):
    assert table4.header[2] == "Arc"
    assert not table4.lead
    own = tables.table4(scores.assign(benchmark=""))
    assert own.header[2:9] == (*sorted(synthetic.BENCHMARKS), "Average")
    assert own.lead.startswith("chain_sum, family_relationships,")
    assert "not benchmarks of the paper, whose average is over Arc, TruthfulQA" in own.lead
    assert own.lead in tables.markdown(own)
    assert tables.latex(own).count("not benchmarks of the paper") == 1
    assert own.lines[1][2:9] == ("",) * 6 + ("58.14",), "the paper has no number under a task that is not its own"


def test_table_1_calls_a_task_the_papers_benchmark_only_where_a_suite_measures_it():
    summary = pd.DataFrame([{"task": "hellaswag", "metric": "acc", "n": 3, "chance": None}])
    every = ({"hellaswag": "10"}, {"hellaswag": "as in its file"}, {})
    names = [tables.table1(summary, shots=shots).lines[0][0] for shots in every]
    assert names == ["HellaSwag", "hellaswag", "hellaswag"]


def test_a_column_at_chance_says_so_and_judges_nothing(scores):
    table = tables.table4(scores.assign(at_chance=scores["task"] == "chain_sum"))
    assert table.header[2:8] == ("Arc", "TruthfulQA", "Winogrande", "GSM8k (at chance)", "HellaSwag", "MMLU")
    assert "no more than two standard errors above guessing" in table.lead
    kept = scores[scores["task"] != "chain_sum"]
    for model in ("sft", "spin-1"):
        expected = 100 * kept[kept["model"] == model].groupby("task")["score"].mean().mean()
        assert cell(table, label(model), "average")["value"] == pytest.approx(expected)
    assert pd.isna(cell(table, "SPIN iteration 0", "gsm8k", "gain over SFT")["verdict"])
    assert not pd.isna(cell(table, "SPIN iteration 0", "arc", "gain over SFT")["verdict"])


def test_a_real_task_next_to_generated_families_is_shown_and_is_in_no_average(scores):
    """As results/cpu/protocol.md says: the average over the six families decides, and tasks of Big-Bench are shown."""
    more = scores[scores["task"] == "chain_sum"].assign(task="social_iqa", benchmark="", score=0.0)
    table = tables.table4(pd.concat([scores, more]).assign(aside=lambda all_: all_["task"] == "social_iqa"))
    assert "social_iqa (aside)" in table.header
    assert "social\niqa\n(aside)" in tables.compact(table)[0]
    assert "Aside: social_iqa, of Big-Bench, is shown" in table.lead
    assert "at chance" not in table.lead.lower()
    alone = tables.table4(scores)
    for model in ("SFT", "SPIN iteration 3"):
        assert cell(table, model, "average")["value"] == cell(alone, model, "average")["value"]


def test_what_was_not_measured_is_an_em_dash_with_its_reason_below(scores):
    table = tables.table4(scores[scores["model"] != "spin-3"])
    line = next(line for line in table.lines if line[0] == "SPIN iteration 3")
    assert set(line[2:]) == {"—"}
    assert "no evaluation of spin-3" in tables.markdown(table)
    some = {task: benchmark for task, benchmark in synthetic.BENCHMARKS.items() if benchmark != "mmlu"}
    table = tables.table4(synthetic.benchmarked(scores, some))
    assert table.lines[0][table.header.index("MMLU")] == "—"
    assert "— this profile does not measure MMLU." in table.notes


def test_iterations_after_the_papers_last_have_their_rows(scores):
    further = scores[scores["model"] == "spin-3"]
    more = pd.concat([scores, further.assign(model="spin-4"), further.assign(model="spin-10")])
    table = tables.table4(more)
    assert [line[0] for line in table.lines if line[1] == "ours"][-2:] == ["SPIN iteration 4", "SPIN iteration 10"]


def test_dpo_after_a_shorter_run_has_its_row_and_no_note_is_on_dpo_that_was_not_run(scores):
    shorter = scores[~scores["model"].isin(["dpo", "spin-2", "spin-3", "spin-3-dpo"])]
    assert "DPO here" not in tables.markdown(tables.table3(shorter, preferences="samples"))
    more = pd.concat([shorter, shorter[shorter["model"] == "spin-0"].assign(model="spin-1-dpo")])
    assert "DPO here" not in tables.markdown(tables.table3(more, preferences="hub"))
    table = tables.table3(more, preferences="samples")
    assert cell(table, "SPIN iteration 1 + DPO", "average", "gain over SPIN iteration 1")["n"] == 240
    assert "DPO here" in tables.markdown(table)


def test_table_2_gives_minutes_over_seeds_and_says_what_was_not_run():
    times = pd.DataFrame(
        [{"stage": "training", "iteration": 0, "seconds": s} for s in (60.0, 120.0)]
        + [{"stage": "generation", "iteration": 0, "seconds": 30.0}]
    )
    table = tables.table2(times, machine="two cores")
    assert table.lines[0][2:4] == ("0.50", "—"), "of less than a minute one digit would hide a fifth"
    assert table.lines[2][2:] == ("1.45",) * 4
    assert table.lines[3][2] == "1.5 [1.0, 2.0]"
    assert "— training of iteration 3 was not run." in table.notes
    assert tables.table2(times.drop(index=1)).lines[3][2] == "1.0", "one seed has no spread"
    assert "seeds, with several steps at once" in tables.table2(times, alone=False).notes[0]


def test_table_6_has_the_papers_benchmarks_and_our_transfer_tasks_under_their_own_names(transfer):
    own = tables.table6(transfer.assign(benchmark=""))
    assert own.header[2:] == (
        "MT-Bench",
        "BB-causal",
        "BB-formal",
        "BB-sports",
        "OpenBookQA",
        *sorted(synthetic.TRANSFER),
    )
    assert "tasks that no model was trained on, not benchmarks of the paper" in own.lead
    table = tables.table6(transfer)
    assert any("zero-shot" in note for note in table.notes), "Big-Bench's tasks, not Big-Bench-Hard's"
    assert cell(table, "SPIN iteration 2", "openbookqa")["paper"] == published.score("spin-2", "openbookqa")
    mean = transfer[(transfer["model"] == "spin-3") & (transfer["task"] == "long_sums")]["score"].mean()
    assert cell(table, "SPIN iteration 3", "bb_causal")["value"] == pytest.approx(100 * mean)
    assert pd.isna(cell(table, "SPIN iteration 3", "bb_causal")["paper"])


def test_table_6_shows_the_judges_grades_as_the_paper_prints_its_own(transfer, tmp_path):
    synthetic.write_mt_bench(tmp_path / "cpu")
    grades = results.load_mt_bench(tmp_path / "cpu")
    table = tables.table6(transfer, grades)
    shown = {line[0]: line[2] for line in table.lines if line[1] == "ours"}
    for model in ("sft", "spin-0", "spin-3"):
        average = results.read_json(results.path_of(tmp_path / "cpu", 0, "mt_bench", model))["average"]
        assert shown[label(model)].startswith(f"{average:.2f} [")
        assert cell(table, label(model), "mt_bench")["value"] == pytest.approx(average)
    gain = cell(table, "SPIN iteration 0", "mt_bench", "gain over SFT")
    assert gain["difference"] == pytest.approx(gain["value"] - 0.52)
    assert any("graded 1 to 10 by made-up-judge" in note and "Not graded and left out" in note for note in table.notes)


def test_table_6_without_any_transfer_evaluation_gives_the_papers_numbers_and_the_reason(transfer):
    table = tables.table6(transfer[:0])
    assert table.lines[1][2:] == ("5.94", "56.15", "49.60", "96.00", "45.40")
    assert set(table.lines[0][2:]) == {"—"}
    assert "— this profile does not measure BB-causal." in table.notes
    assert any("needs a judge model" in note for note in table.notes)


def test_the_table_of_arms_compares_each_with_sft_and_with_spin_without_its_change(tmp_path):
    models = {"sft": 0.0, "sft-more-1": 0.02, "spin-0": 0.1, "spin-1": 0.1}
    arms = {"spin-0-arm-nll": 0.9, "spin-1-arm-unmixed": -0.9}
    root = synthetic.write(tmp_path, seeds=(0, 1), models=models | arms)
    scores = results.load_evaluations(root).assign(sampled=lambda table: table["score"] / 2)
    changes = {"nll": {"spin.training.nll": 0.2}, "unmixed": {"spin.mix_previous": False}, "absent": {}}
    table = tables.arms(scores, changes)
    rows = {line[0]: line for line in table.lines}
    assert list(rows) == [label(model) for model in (*models, *arms)]
    nll, unmixed = (rows[label(model)] for model in arms)
    assert (nll[1], nll[-1], unmixed[1], unmixed[-1]) == ("nll: 0.2", "yes", "mix_previous: false", "harmed")
    for model, plain in zip(arms, ("spin-0", "spin-1"), strict=True):
        for other in ("sft", plain):
            expected = paired(scores, {model: 1, other: -1}).times(100)
            gain = cell(table, label(model), "average", f"gain over {label(other)}")
            assert (gain["value"], gain["low"], gain["high"]) == (expected.difference, expected.low, expected.high)
        half = paired(scores, {model: 1, "sft": -1}, column="sampled").times(100)
        assert cell(table, label(model), "average of samples", "gain over SFT")["value"] == half.difference
    assert [path.name for path in tables.write(table, tmp_path)] == ["arms.md", "arms.csv", "arms.tex"]
    assert "not in the paper" in (tmp_path / "arms.tex").read_text()
    assert tables.arms(scores[~scores["model"].isin(arms)], changes) is None


def test_a_task_in_a_unit_of_its_own_has_a_table_and_no_part_in_the_scores(tmp_path):
    for seed, bleu in ((0, 30.5), (1, 32.5)):
        document = synthetic.evaluation("sft", seed, ability=0.1)
        results.write_json(results.path_of(tmp_path / "plain" / "cpu", seed, "evaluations", "sft"), document)
        measured = {"metric": "bleu", "n": 9, "value": bleu, "higher_is_better": True}
        lower = measured | {"metric": "word_perplexity", "higher_is_better": False}
        document |= {"metrics": {"translation": measured, "prose": lower}}
        results.write_json(results.path_of(tmp_path / "own" / "cpu", seed, "evaluations", "sft"), document)
    table = tables.own_units(results.load_summaries(tmp_path / "own" / "cpu", part="metrics"))
    assert table.header[2:] == ("prose: word_perplexity (lower is better)", "translation: bleu")
    assert table.lines == (("SFT", "", *["31.50 [30.50, 32.50]"] * 2),)
    plain, own = (results.load_evaluations(tmp_path / name / "cpu") for name in ("plain", "own"))
    assert plain.equals(own)
    assert tables.own_units(results.load_summaries(tmp_path / "plain" / "cpu", part="metrics")) is None


def test_the_finer_measures_stand_beside_the_greedy_score(root):
    drifts = results.load_heldout(root)
    scores = results.load_evaluations(root)
    sampled = scores.assign(sampled=scores["score"] / 2, surprise=scores["score"] + 3)
    bounds, bits = generations.jsd_bounds(drifts), generations.bits_per_byte(drifts)
    told = generations.discriminator(results.load_generations(root))
    table = tables.instruments(sampled, bounds, bits, told)
    assert table.name == "instruments"
    cells = table.frame.set_index(["row", "column", "quantity"])
    greedy, samples = (cells.loc[("SPIN iteration 1", name, "level"), "value"] for name in ("greedy", "samples"))
    assert samples == pytest.approx(greedy / 2)
    assert cells.loc[("SPIN iteration 1", "surprise", "level"), "value"] == pytest.approx(greedy / 100 + 3)
    assert cells.loc[("SFT", "bits per byte", "level"), "value"] > 2
    found = cell(table, "SPIN iteration 1", "discriminator", "level")
    assert found["value"] == pytest.approx(100 * told[told["model"] == "spin-1"]["discriminator"].mean())
    assert found["seeds"] == told["seed"].nunique()
    some = sampled.assign(sampled=sampled["sampled"].where(sampled["task"] == "chain_sum"))
    table = tables.instruments(some, bounds, bits, told)
    mean = 100 * some[some["model"] == "spin-1"]["sampled"].mean()
    assert cell(table, "SPIN iteration 1", "samples", "level")["value"] == pytest.approx(mean)
    assert any(note.startswith("Samples cover chain_sum only") for note in table.notes)
    plain = tables.instruments(scores, bounds, bits[:0], told[:0])
    assert not {"Samples", "Bits per byte", "Discriminator, %"} & set(plain.header)
    assert not any("Discriminator" in note for note in plain.notes)
    weak = tables.instruments(scores.assign(at_chance=True), bounds, bits[:0], told[:0])
    assert "Greedy" not in weak.header, "all tasks are at chance"
    assert "| SPIN iteration 1 " in tables.markdown(weak)


def test_a_finer_measure_of_fewer_seeds_is_named_below_its_table(root):
    drifts = results.load_heldout(root)
    scores, bits = results.load_evaluations(root), generations.bits_per_byte(drifts)
    bounds = generations.jsd_bounds(drifts[(drifts["model"] != "spin-1") | (drifts["seed"] == 0)])
    whole, lacking = (
        tables.instruments(scores, table, bits, bits[:0]).notes for table in (generations.jsd_bounds(drifts), bounds)
    )
    assert not any("Not on all" in note or "not on all" in note for note in whole)
    named = [note for note in lacking if "not on all of the seeds 0, 1: SPIN iteration 0 (0)." in note]
    assert [note.partition(":")[0] for note in named] == ["Told apart", "JSD"]
    assert not any("Samples" in note for note in lacking), "a column that is not there"


COMPILED = r"""\documentclass{article}
\usepackage{booktabs}\usepackage{graphicx}\begin{document}
%s
\end{document}
"""


def test_every_table_is_latex_that_compiles_whatever_a_model_wrote(root, scores, tmp_path):
    texts = results.load_generations(root)
    hostile = "50% of $x_1^2$ & \\end{tabular} {open} #3 ~ 汉 😀 “so” ≤ 2 – 1 — done\n[next"
    texts = texts.assign(prompt=hostile, generated=hostile)
    measured = generations.measures(texts)
    drawn = [
        tables.table3(scores, preferences="samples"),
        *(make(scores) for make in (tables.table4, tables.table5)),
        *(make(texts, measured) for make in (tables.table7, tables.table8)),
    ]
    for table in drawn:
        body = tables.latex(table).partition("\n")[2]
        assert body.count(r"\end{tabular}") == 1
        *rows, _ = re.sub(r".*\\midrule\n|\\addlinespace\n", "", body, flags=re.DOTALL).split(" \\\\\n")
        assert len(rows) == len(table.lines)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.header) - 1}
        assert not any(row.startswith(("[", "*")) for row in rows), "or the row before takes it for its argument"
        plain = re.sub(r"\\[\\{}&%_#$]", "", body).replace("{%\n", "{")
        assert plain.count("{") == plain.count("}")
        assert plain.count("$") % 2 == 0
        assert not re.search(r"[#%_^~]|[^\x00-\u024f]", plain), "nor characters that pdfTeX's fonts lack"
    assert "[U+6C49]" in tables.latex(drawn[3])
    if shutil.which("pdflatex"):
        (tmp_path / "all.tex").write_text(COMPILED % "\n".join(map(tables.latex, drawn)))
        subprocess.run(["pdflatex", "-interaction=batchmode", "-halt-on-error", "all.tex"], cwd=tmp_path, check=True)


def test_a_compact_table_4_has_a_line_for_each_model_and_dashes_for_what_was_not_run(scores, table4):
    header, rows = tables.compact(table4)
    assert tuple(header[1:7]) == table4.header[2:8]
    assert header[-5:] == ["average", "gain over\nrow above", "direction", "paper", "gain"]
    assert [row[0] for row in rows] == [label(model) for model in ("sft", *(f"spin-{t}" for t in range(4)))]
    assert rows[1][-2:] == ["60.8", "+2.7"]
    fewer = tables.table4(scores[scores["model"] != "spin-2"])
    header, rows = tables.compact(fewer, with_tasks=False)
    assert rows[3][:3] == ["SPIN iteration 2", "—", "—"]
