"""The two steps of MT-Bench for one model, its answers and a judge's grades; or one step of verifiable instructions.

Answers need no network, grades no accelerator, and a new judge no new answers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin_utils.evaluation import instructions, judge
from spin_utils.evaluation.judge import Judge, grade_all
from spin_utils.evaluation.mt_bench import Message, Question, converse, judge_messages, judge_prompts, questions
from spin_utils.experiment.plan import Plan, Step, stream
from spin_utils.files import artifacts
from spin_utils.files.runtime import progress
from spin_utils.model import base
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.machine import CATEGORIES, MtBenchSettings

log = logging.getLogger(__name__)

STREAM = 600
"""Number of the answers' random stream, after those of preference pairs."""


def make_answers(plan: Plan, step: Step, work: Path) -> None:
    """The model answers both turns of every question: answers.json."""
    artifacts.write_json(work / "answers.json", _answers(plan, step, questions(_settings(plan).limit)))


def make_instructions(plan: Plan, step: Step, work: Path) -> None:
    """The model answers verifiable instructions, and a program checks the answers: evaluation.json."""
    asked = instructions.questions(_settings(plan).limit)
    answers = _answers(plan, step, [each.question for each in asked])
    artifacts.write_json(work / "evaluation.json", instructions.evaluation(asked, answers))


def _answers(plan: Plan, step: Step, asked: Sequence[Question]) -> list[dict[str, Any]]:
    """A model's answers to both turns of each question, as `converse` returns them."""
    settings, folder = _settings(plan), plan.checkpoint(step.parameters["model"])
    model, tokenizer = base.load_for_inference(folder), base.load_tokenizer(folder)
    with progress(2 * len(asked), step.name, "answers") as bar:
        answers = converse(
            model,
            tokenizer,
            plan.profile.template,
            asked,
            settings,
            seed=stream(plan.seed, STREAM),
            progress=bar.advance,
        )
    cut = sum(turn["cut_tokens"] > 0 for answer in answers for turn in answer["turns"])
    if cut:
        log.warning("%s: %d conversations longer than the model's context lost their beginning", step.name, cut)
    return answers


def make_grades(plan: Plan, step: Step, work: Path) -> None:
    """The judge grades each answer separately: mt_bench.json, in the format of `results.MtBench`."""
    settings = _settings(plan)
    answers = artifacts.read_json(plan.directory(step.inputs[0]), "answers.json")
    prompts, asked = judge_prompts(), {question.id: question for question in questions()}
    requests: dict[str, list[Message]] = {}
    items: dict[str, dict[str, Any]] = {}
    for answer in answers:
        texts = (answer["turns"][0]["text"], answer["turns"][1]["text"])
        for turn, said in enumerate(answer["turns"], start=1):
            name = f"{answer['id']}/{turn}"  # both turns of a question are one cluster of an interval
            requests[name] = judge_messages(prompts, asked[answer["id"]], texts, turn)
            items[name] = {"id": name, "category": answer["category"], **said}
            items[name]["response"] = items[name].pop("text")
    with progress(len(requests), step.name, "grades") as bar:
        grades = grade_all(requests, settings, artifacts.scratch(work), bar.advance)
    counts = Counter(grade["status"] for grade in grades.values())
    if counts["graded"] < len(grades):
        told = ", ".join(f"{counts[status]} {status}" for status in ("refused", "unparsable") if counts[status])
        log.warning("%s: %s of %d answers", step.name, told, len(grades))
    scores = [grade["score"] for grade in grades.values() if grade["score"] is not None]
    document = {
        "judge": {
            "name": settings.judge_name,
            "base_url": settings.base_url if settings.judge_model is None else "",
            "models": sorted({grade["judge_model"] for grade in grades.values()} - {""}),
        },
        "grades": {status: counts[status] for status in ("graded", "refused", "unparsable")},
        "average": sum(scores) / len(scores) if scores else None,
        "items": [
            {**items[name], **{field: grades[name][field] for field in ("status", "score", "judgment")}}
            for name in requests
        ],
    }
    artifacts.write_json(work / "mt_bench.json", document)


def check(settings: MtBenchSettings) -> None:
    """Check what MT-Bench needs on this machine: the questions, and the judge or, if there is a key, its client.

    Raises:
        KitError: the questions are missing or damaged, or the client is not installed.
        ModelError: the judge's folder is not that of a model with a chat template.
    """
    if settings.is_programmatic:
        return
    questions(settings.limit)
    judge_prompts()
    if settings.judge_model is not None and settings.judge_model.source == "directory":
        base.check_folder(Path(settings.judge_model.path), TemplateSettings(kind="chat"))
    elif settings.judge_model is None and judge.can_grade(settings):
        judge.client_library()


def check_judge(plans: Sequence[Plan]) -> None:
    """If grades are missing from a judge elsewhere, ask it one short question and log how many requests will follow.

    Raises `KitError` for a wrong key, address, name or option.
    """
    asked = requests(plans)
    if asked and _settings(plans[0]).judge_model is None:
        Judge(_settings(plans[0])).grade([{"role": "user", "content": 'Reply with "[[5]]" and nothing else.'}])
        log.info("MT-Bench: %s (mt_bench=null leaves them out)", asked)


def requests(plans: Sequence[Plan]) -> str:
    """How many requests the missing grades take, and whose account pays for them; empty if none are missing."""
    steps = [step for plan in plans for step in plan if step.stage == "mt_bench"]
    missing = sum(not artifacts.is_complete(step.directory) for step in steps)
    if not missing:
        return ""
    settings = _settings(plans[0])
    about = f"about {missing * 2 * len(CATEGORIES) * min(settings.limit or 10, 10)} requests to {settings.judge_name}"
    if settings.judge_model is not None:
        return f"{about} on this machine"
    return f"{about} at {settings.base_url}, on the account of {judge.KEY}"


def _settings(plan: Plan) -> MtBenchSettings:
    assert plan.profile.mt_bench is not None
    return plan.profile.mt_bench
