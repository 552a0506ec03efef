"""Evaluation records are whole, graded row by row, and agree with lm-eval's own numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import big_bench_archive
import lm_eval
import numpy as np
import pytest
import synthetic_results as synthetic
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer
from transformers import PreTrainedModel

from spin_utils.data import templates
from spin_utils.evaluation import harness, lm
from spin_utils.evaluation.harness import TASKS, EvaluationError, evaluate
from spin_utils.experiment import plan
from spin_utils.model.packing import Group
from spin_utils.model.sampling import sample
from spin_utils.paper import results
from spin_utils.settings import profiles
from spin_utils.settings.inputs import BigBenchSettings, SettingsError, TemplateSettings
from spin_utils.settings.run import EvaluationSettings, GenerationSettings

TEMPLATE = TemplateSettings(kind="text", prompt="Q: {prompt}\nA:", end="</s>")
TOKENIZER = byte_tokenizer()
SETTINGS = EvaluationSettings(batch_size=4, max_new_tokens=6)
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama", vocabulary=len(TOKENIZER))


def greedy(model: PreTrainedModel, prompt: str) -> tuple[str, int]:
    settings = GenerationSettings(temperature=0, max_new_tokens=6)
    ids = templates.encode_conversation(TOKENIZER, TEMPLATE, [prompt])
    (answer,) = sample(model, [ids], eos_ids=templates.end_ids(TOKENIZER, TEMPLATE), settings=settings, seed=0)
    return templates.decode_response(TOKENIZER, TEMPLATE, answer.token_ids), len(answer.token_ids)


@pytest.fixture(scope="module")
def rows(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Two families; in `copied` every other row expects exactly what the model says, in `sums` a program grades."""
    made: list[dict[str, Any]] = []
    for i in range(7):
        prompt = f"The cat {i}"
        answer = f" {greedy(model, prompt)[0]} " if i % 2 else "no"
        made.append({"id": f"copied-{i}", "prompt": prompt, "response": answer, "family": "copied"})
    for i in range(5):
        prompt = f"One two {i}"
        right = greedy(model, prompt)[0].strip() if i < 2 else "-12345"
        entry = {"question": prompt, "answer": right, "metadata": {"source_dataset": "chain_sum"}}
        grader = {"dataset": "chain_sum", "entry": entry}
        made.append({"id": f"sums-{i}", "prompt": prompt, "response": "x", "family": "sums", "grader": grader})
    return made


@pytest.fixture
def run(model: PreTrainedModel, rows: list[dict[str, Any]]) -> Run:
    """Valid results of an evaluation of these rows and of further tasks."""

    def scored(*tasks: Path | str, of: Any = rows, options: Any = None, **settings: Any) -> dict[str, Any]:
        own = replace(SETTINGS, tasks=tuple(map(str, tasks)), **settings)
        record = evaluate(model, TOKENIZER, of, template=TEMPLATE if of else None, settings=own, **options or {})
        provenance = synthetic.provenance("eval-sft", "evaluation")
        whole = record | {"profile": "smoke", "seed": 0, "model": "sft", "provenance": provenance}
        results.validate(whole, "evaluations", "record")
        return record

    return scored


def stock(model: PreTrainedModel, *tasks: str, manager: TaskManager, tokenizer: Any = TOKENIZER, **options: Any) -> Any:
    """What lm-eval itself says."""
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=False, batch_size=1)
    given = {"tasks": list(tasks), "task_manager": manager, "bootstrap_iters": 0, **options}
    return lm_eval.simple_evaluate(theirs, **given)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that a model is given."""
    texts, honest = list[str](), lm.sample

    def spy(model: Any, prompts: Any, **rest: Any) -> Any:
        texts.extend(map(TOKENIZER.decode, prompts))
        return honest(model, prompts, **rest)

    monkeypatch.setattr(lm, "sample", spy)
    return texts


def test_rows_are_graded_by_their_grader_or_by_exact_match(
    run: Run, model: PreTrainedModel, rows: list[dict[str, Any]]
) -> None:
    record = run()
    assert [item["id"] for item in record["items"]] == [row["id"] for row in rows]
    for item, row in zip(record["items"], rows, strict=True):
        assert (item["response"], item["tokens"]) == greedy(model, row["prompt"])
        assert item["task"] == row["family"]
    scores = [item["score"] for item in record["items"]]
    assert scores[:7] == [0, 1, 0, 1, 0, 1, 0]
    assert scores[7:] == [1, 1, 0, 0, 0]
    copied = record["tasks"]["copied"]
    assert len(copied.pop("rows_sha256")) == 64
    assert copied == {
        "source": "",
        "chance": None,
        "metric": "score",
        "n": 7,
        "value": pytest.approx(3 / 7),
        "stderr": pytest.approx(np.std(scores[:7], ddof=1) / 7**0.5),
    }
    assert record["average"] == pytest.approx((3 / 7 + record["tasks"]["sums"]["value"]) / 2)
    assert run(limit=2)["items"] == record["items"][:2] + record["items"][7:9], "the first two of each family"


def test_tasks_of_big_bench_give_the_numbers_of_stock_lm_eval_and_the_probability_of_the_right_choice(
    run: Run, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[str]
) -> None:
    big_bench_archive.install(tmp_path, monkeypatch)
    asked = {"colours": BigBenchSettings(), "parts": BigBenchSettings(shots=1)}
    record = run(of=None, big_bench=asked | {"sorting": BigBenchSettings(shots=1, limit=1)})
    assert seen in (["Sort: b a =>a b\nSort: d c =>"], ["Sort: d c =>c d\nSort: b a =>"])
    assert {name: task["n"] for name, task in record["tasks"].items()} == {"colours": 4, "parts": 6, "sorting": 1}
    assert {task["source"] for task in record["tasks"].values()} == {"bigbench-1.0.0.tar.gz"}
    assert len({task["rows_sha256"] for task in record["tasks"].values()}) == 3
    at_random = (1 / 3 + 1 / 3 + 0.25 + 1 / 2) / 4
    assert record["tasks"]["colours"]["chance"] == pytest.approx(max(at_random, (0 + 1 + 0.5 + 0) / 4))
    assert record["tasks"]["sorting"]["chance"] is None
    scored = {(item["task"], item["id"]): item for item in record["items"]}
    assert {id for task, id in scored if task == "parts"} == {f"one/{i}" for i in (0, 1, 3, 4)} | {"two/0", "two/1"}
    manager = TaskManager(include_path=TASKS, include_defaults=False, metadata={"big_bench": "colours"})
    theirs = stock(model, "big_bench_choices", manager=manager)
    value = theirs["results"]["big_bench_choices"]["multiple_choice_grade,none"]
    assert record["tasks"]["colours"]["value"] == pytest.approx(value)
    for sample_ in theirs["samples"]["big_bench_choices"]:
        item, document = scored["colours", sample_["doc"]["id"]], sample_["doc"]
        example = big_bench_archive.COLOURS["examples"][int(document["id"])]
        assert sample_["arguments"][0][0].startswith(f"Name the colour.\n\nQ: {example['input']}\n  choice: ")
        assert item["score"] == example["target_scores"][item["response"]]
        logps = np.array([response[0][0] for response in sample_["resps"]])
        drawn = np.exp(logps) / np.exp(logps).sum() @ np.array(document["scores"])
        assert item["sampled"] == pytest.approx(drawn, rel=1e-4)
    assert "sampled" not in scored["sorting", record["items"][-1]["id"]]


def test_sampled_answers_are_scored_as_well_as_the_greedy_one(
    run: Run, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(samples=4, options={"work": tmp_path})
    done = {"work": tmp_path, "progress": lambda _: pytest.fail("nothing is left to do")}
    assert run(samples=4, options=done) == record
    groups = [Group([5, 1 + place], ([7, 8], [9, 8, 7])) for place in range(len(rows))]
    texts = [["no", "yes", "no", "no"]] * len(rows)
    monkeypatch.setattr(lm.PackedLM, "draw", lambda *_: (groups, texts))
    third = tiny_model("llama", vocabulary=len(TOKENIZER), seed=1)
    for part in (third, TOKENIZER):
        part.save_pretrained(tmp_path / "third")
    drawn = run(samples=4, options={"independent": tmp_path / "third"})["items"]
    assert [item.pop("sampled") for item in drawn] == [0.75 * (row["response"] == "no") for row in rows]
    for item, group in zip(drawn, groups, strict=True):
        expected = []
        for ids in group.response_ids:
            whole = torch.tensor([[*group.prompt_ids, *ids]])
            logps = third(whole).logits[0].detach().log_softmax(-1)
            expected += [-sum(float(logps[1 + i, token]) for i, token in enumerate(ids)) / len(ids)]
        assert item.pop("surprise") == pytest.approx(sum(expected) / 2, abs=0.03)  # bfloat16
    assert drawn == run()["items"]


def test_sampled_answers_are_drawn_from_the_model(model: PreTrainedModel) -> None:
    """Shares of first tokens are those of the softmax."""
    prompt = templates.encode_conversation(TOKENIZER, TEMPLATE, ["The cat"])
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    request = Instance("generate_until", {}, ("The cat", {"until": [], "max_gen_toks": 1}), 0)
    (group,), (texts,) = lm.PackedLM(model, TOKENIZER, template=TEMPLATE).draw([request], 400)
    assert list(group.prompt_ids) == prompt
    assert [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in group.response_ids] == texts
    likely = TOKENIZER.decode([int(expected.argmax())])
    assert texts.count(likely) / 400 == pytest.approx(float(expected.max()), abs=0.08)
    assert len(set(texts)) > 10


def test_an_unknown_task_is_refused(run: Run) -> None:
    with pytest.raises(EvaluationError, match="no task 'no_such_task'; check the name, or give the path of its YAML"):
        run("no_such_task")


GENERATING = "output_type: generate_until\ngeneration_kwargs: {until: [], max_gen_toks: 5}\n"
CHOOSING = "output_type: multiple_choice\ndoc_to_choice: [sat, ran]\n"
IN_CONTEXT = "doc_to_text: \"{{(answer != 'sat') | int}}\"\ndoc_to_target: on the mat\n"
"""As in WinoGrande: the choices come first, and one continuation is scored behind each."""


def task_file(
    path: Path,
    text: str,
    *,
    name: str = "",
    answers: tuple[str, ...] = ("sat",),
    metric: str = "exact_match",
    aggregation: str = "mean",
    higher: str = "true",
) -> Path:
    """A task file and its items, which it names by a path relative to itself."""
    path.parent.mkdir(exist_ok=True)
    items = [{"question": f"The cat {i}", "answer": answer} for i, answer in enumerate(answers)]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    path.write_text(
        f"task: {name or path.stem}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {path.stem}.jsonl}}}}\n"
        f"test_split: test\ndoc_to_text: question\ndoc_to_target: answer\n"
        f"metric_list: [{{metric: {metric}, aggregation: {aggregation}, higher_is_better: {higher}}}]\n{text}"
    )
    return path


def check(*tasks: Path | str) -> None:
    harness.check_tasks(replace(SETTINGS, tasks=tuple(map(str, tasks))), ["sums"])


@pytest.mark.parametrize(
    ("metric", "more"),
    [
        ("acc", ""),
        ("acc_norm", ""),
        ("acc", "metric_list: [{metric: acc}, {metric: acc_mutual_info}]\n"),
        ("acc", IN_CONTEXT),
    ],
)
def test_a_users_own_multiple_choice_task_gives_the_numbers_of_stock_lm_eval(
    metric: str, more: str, run: Run, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = CHOOSING.replace("ran", "sat on the mat of the dog") + "fewshot_split: test\nnum_fewshot: 3\n"
    answers = ("sat", "sat on the mat of the dog", "sat on the mat of the dog") * 5
    mine = task_file(tmp_path / "mine.yaml", shots + more, answers=answers, metric=metric)
    record = run(mine)
    assert list(record["tasks"]) == ["copied", "sums", "mine"]
    monkeypatch.chdir(tmp_path)
    theirs = stock(model, "mine.yaml", manager=TaskManager(include_defaults=False))
    assert record["tasks"]["mine"]["value"] == pytest.approx(theirs["results"]["mine"][f"{metric},none"])
    items = [item for item in record["items"] if item["task"] == "mine"]
    assert [item["id"] for item in items] == [str(sample["doc_id"]) for sample in theirs["samples"]["mine"]]
    for item, found, right in zip(items, theirs["samples"]["mine"], answers, strict=True):
        assert item["score"] == found[metric]
        assert (item["response"] == right) == (item["score"] == 1)
        assert item["response"] in answers


def test_tasks_of_one_name_are_scored_each_on_its_own_items(run: Run, tmp_path: Path) -> None:
    """Two files whose `task:` is the same, which is also the name of a family."""
    rows = [{"id": i, "prompt": f"One {i}", "response": "x", "family": "Quiz" if i else "quiz"} for i in range(5)]
    easy = task_file(tmp_path / "easy.yaml", CHOOSING, name="quiz", answers=("sat",) * 3, metric="acc")
    hard = task_file(tmp_path / "hard.yaml", CHOOSING, name="quiz", answers=("sat", "ran") * 3, metric="acc")
    check(easy, hard)
    together = run(easy, hard, of=rows)
    sizes = {name: task["n"] for name, task in together["tasks"].items()}
    assert sizes == {"quiz": 1, "Quiz": 4, "easy": 3, "hard": 6}
    for file in (easy, hard):
        assert run(file, of=rows)["tasks"][file.stem] == together["tasks"][file.stem]
    assert together["tasks"]["hard"]["value"] == 0.5


def test_files_that_a_task_names_lie_next_to_it_wherever_the_command_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_file(tmp_path / "tasks" / "colours.yaml", GENERATING)
    for folder in (tmp_path, task.parent):
        monkeypatch.chdir(folder)
        check(task.relative_to(folder))
    monkeypatch.chdir("/")
    assert run(task)["tasks"]["colours"]["n"] == 1


def test_tasks_that_no_evaluation_could_score_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_all_tasks", lambda: pytest.fail("reads thousands of files"))
    check(task_file(tmp_path / "good.yml", GENERATING))
    with pytest.raises(EvaluationError, match="tasks: beams: generation_kwargs: num_beams is not supported"):
        check(task_file(tmp_path / "beams.yml", GENERATING.replace("5}", "5, num_beams: 4}")))
    with pytest.raises(EvaluationError, match="'acc' fails on the first item .* no choice is right; doc_to_target"):
        check(task_file(tmp_path / "hidden.yml", CHOOSING, answers=("-1",), metric="acc"))
    with pytest.raises(EvaluationError, match=r"good.yml has the name of .*good.yml; rename it or leave it out"):
        check(tmp_path / "good.yml", tmp_path / "good.yml")


GRADERS = """
def points(doc, results): return {"points": 100 * (results[0] == doc["answer"]) + 40.0}
def first(doc, results): return {"points": results[0].split()[0] == doc["answer"]}
"""


def test_a_task_whose_functions_fail_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "graders.py").write_text(GRADERS)
    failing = GENERATING + "process_results: !function graders.first\n"
    with pytest.raises(EvaluationError, match=r"mine.yaml: metric 'points' fails on the first item \(IndexError"):
        check(task_file(tmp_path / "mine.yaml", failing, metric="points"))
    aggregated = task_file(tmp_path / "other.yaml", GENERATING, aggregation="no_such")
    with pytest.raises(EvaluationError, match=r"other.yaml: metric 'exact_match' fails on the first item"):
        check(aggregated)


def test_a_metric_that_is_no_share_keeps_its_unit_and_enters_no_average(
    run: Run, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points are a mean over items, perplexity is of all items together; both are lm-eval's own numbers."""
    (tmp_path / "graders.py").write_text(GRADERS)
    graded = GENERATING + "process_results: !function graders.points\n"
    points = task_file(tmp_path / "points.yaml", graded, metric="points")
    perplexity = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher": "false"}
    text = "output_type: loglikelihood_rolling\n"
    rolling = task_file(tmp_path / "rolling.yaml", text, answers=("sat", "ran"), **perplexity)
    check(points, rolling)
    record = run(points, rolling)
    found = record.pop("metrics")
    assert record == run()
    monkeypatch.chdir(tmp_path)
    theirs = stock(model, "points.yaml", "rolling.yaml", manager=TaskManager(include_defaults=False))["results"]
    assert found["points"] == {"metric": "points", "n": 1, "value": 40, "higher_is_better": True}
    expected = {"metric": "word_perplexity", "n": 2, "higher_is_better": False}
    assert found["rolling"] == expected | {"value": pytest.approx(theirs["rolling"]["word_perplexity,none"], rel=1e-4)}
    with pytest.raises(EvaluationError, match="points, rolling: no metric is a share of each item"):
        run(points, rolling, of=None)


def test_a_value_that_is_no_mean_of_shares_is_lm_evals_own_and_metrics_may_be_functions(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "graders.py").write_text(
        "def worst(items): return min(items)\ndef quarter(references, predictions, **_): return 0.25\n"
    )
    answers = ("sat", "ran")
    least = "!function graders.worst"
    worst = task_file(tmp_path / "worst.yaml", CHOOSING, answers=answers, metric="acc", aggregation=least)
    quarter = task_file(tmp_path / "quarter.yaml", GENERATING, metric="!function graders.quarter")
    default = task_file(tmp_path / "default.yaml", CHOOSING, answers=answers, metric="acc")
    default.write_text(re.sub("metric_list.*\n", "", default.read_text()))
    check(worst, quarter, default)
    record = run(worst, quarter, default)
    assert record["metrics"] == {"worst": {"metric": "acc", "n": 2, "value": 0, "higher_is_better": True}}
    found = {name: (task["metric"], task["value"]) for name, task in record["tasks"].items()}
    assert (found["quarter"], found["default"]) == (("quarter", 0.25), ("acc", 0.5))


def test_a_users_group_has_the_tasks_next_to_its_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, answers in {"one": ("sat", "ran"), "two": ("sat",)}.items():
        task_file(tmp_path / f"{name}.yaml", CHOOSING, answers=answers, metric="acc")
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    monkeypatch.setattr(harness, "_all_tasks", lambda folder: manager)
    group = tmp_path / "both.yaml"
    group.write_text("group: mine\ntask: [one, two]\n")
    check(group)
    items = [(item["id"], item["score"]) for item in run(group)["items"] if item["task"] == "both"]
    assert items == [("one/0", 1), ("one/1", 0), ("two/0", 1)]
    for text, message in {
        "group: mine\ntask: [one, tow]\n": "both.yaml: lm-eval knows no task 'tow', and no .yaml file next to it",
        "group: mine\n" + (tmp_path / "one.yaml").read_text(): "both.yaml is a group without tasks; .* out `group`",
    }.items():
        group.write_text(text)
        with pytest.raises(EvaluationError, match=message):
            check(group)


def test_an_answer_to_a_task_without_options_is_as_long_as_the_settings_allow(run: Run, tmp_path: Path) -> None:
    items = run(task_file(tmp_path / "plain.yaml", "output_type: generate_until\n"))["items"]
    assert 0 < max(item["tokens"] for item in items if item["task"] == "plain") <= SETTINGS.max_new_tokens


def test_what_a_task_needs_from_the_hub_is_said_to_need_a_fetch(tmp_path: Path) -> None:
    task = task_file(tmp_path / "far.yaml", CHOOSING, metric="acc")
    task.write_text(re.sub("dataset_kwargs.*\n", "", task.read_text()).replace("path: json", "path: nobody/nothing"))
    with pytest.raises(
        EvaluationError, match="far.yaml cannot be loaded .*; run `spin-repro fetch` where there is net"
    ):
        check(task)


def test_what_an_answer_begins_with_follows_the_generation_prompt_as_in_lm_eval(
    model: PreTrainedModel,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: list[str],
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    task = task_file(tmp_path / "mine.yaml", GENERATING + 'gen_prefix: "So {{question}} then"\n')
    settings, template = replace(SETTINGS, tasks=(str(task),)), TemplateSettings(kind="chat")
    evaluate(model, tokenizer, rows[:1], template=template, settings=settings)
    monkeypatch.chdir(tmp_path)
    manager = TaskManager(include_defaults=False)
    theirs = stock(model, "mine.yaml", manager=manager, tokenizer=tokenizer, apply_chat_template=True)
    (sample,) = theirs["samples"]["mine"]
    assert sample["arguments"][0][0] in seen
    assert sample["arguments"][0][0] == "<user>The cat 0</s><assistant>So The cat 0 then"


def test_an_edited_task_file_is_another_measurement_and_a_missing_one_is_named(home: Path) -> None:
    task = home / "mine.yaml"
    task.write_text("task: mine")
    change = {"evaluation.tasks": [str(task)]}
    before = plan.make(profiles.load("smoke", change), 0)
    task.write_text(
        "include: [first.yaml]\ntask: mine\nprocess_docs: !function code.of\n"
        "dataset_kwargs: {data_files: {test: 'test rows.jsonl', train: '*.json'}}\n"
    )
    after = plan.make(profiles.load("smoke", change), 0)
    assert before.directory("eval-sft") != after.directory("eval-sft")
    for used in ("first.yaml", "code.py", "words.py", "test rows.jsonl", "train.json"):
        (home / used).write_text("doc_to_text: !function words.prompt")
        edited = plan.make(profiles.load("smoke", change), 0)
        assert edited.directory("eval-sft") != after.directory("eval-sft"), used
        after = edited
    (home / "other.py").write_text("")
    unused = plan.make(profiles.load("smoke", change), 0)
    assert unused.directory("eval-sft") == after.directory("eval-sft"), "a file that the task does not use"
    drawn = plan.make(profiles.load("smoke", change | {"evaluation.samples": 4}), 0)
    assert drawn.directory("eval-sft") != after.directory("eval-sft")
    assert before.directory("sft") == after.directory("sft")
    task.unlink()
    with pytest.raises(SettingsError, match=r"mine\.yaml: no such file"):
        plan.make(profiles.load("smoke", change), 0)


def test_big_bench_tasks_are_part_of_the_measurement_and_those_of_table_6_of_transfer(home: Path) -> None:
    change = {"demonstrations.transfer": {}, "demonstrations.transfer_rows": 0}
    task = {"evaluation.big_bench.colours.benchmark": "bb_causal"}
    before, after = (plan.make(profiles.load("smoke", change | more), 0) for more in ({}, task))
    assert before.directory("eval-sft") != after.directory("eval-sft")
    assert before.directory("sft") == after.directory("sft")
    assert "transfer-sft" in after.steps
    assert "transfer-sft" not in before.steps


def test_a_rows_own_system_message_and_earlier_turns_are_part_of_its_prompt(run: Run, seen: list[str]) -> None:
    before: list[dict[str, Any]] = [{}, {"system": "Be brief."}, {"earlier": ["Who?", "I."]}]
    row = {"prompt": "The cat", "response": "sat", "family": "cats"}
    run(of=[{"id": i, **row, **more} for i, more in enumerate(before)])
    assert sorted(seen) == [
        "Q: Be brief.\n\nThe cat\nA:",
        "Q: The cat\nA:",
        "Q: Who?\nA:I.</s>Q: The cat\nA:",
    ]
