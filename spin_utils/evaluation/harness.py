"""Scores of a checkpoint, item by item, with lm-eval.

The local suite turns each family of held-out rows into one lm-eval task, the paper's suites are in `suites`, and
further tasks (lm-eval's own by name, a user's YAML file, or Big-Bench's by name) add columns. A column's value is the
mean of its items, so that two models can be compared item by item.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import islice
from numbers import Real
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import datasets
import lm_eval.api.task
import lm_eval.config.task
import lm_eval.tasks
import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate as run_tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_utils.data import big_bench
from spin_utils.evaluation import suites
from spin_utils.evaluation.answers import EvaluationError
from spin_utils.evaluation.lm import PackedLM, known_options
from spin_utils.files import hub, paths
from spin_utils.model import base
from spin_utils.model.logprobs import score
from spin_utils.paper.results import SCHEMA
from spin_utils.settings.inputs import BigBenchSettings, TemplateSettings
from spin_utils.settings.run import EvaluationSettings

TASKS = Path(__file__).parent / "tasks"
"""The kit's own task files."""
FEWSHOT_SEED = 1234
"""lm-eval's default seed for choosing few-shot examples."""


@dataclass(frozen=True)
class Column:
    """One column of the results: an lm-eval task or group, and what is read from it."""

    name: str
    """Name in the results."""
    spec: str
    """Task name, or path of a YAML file, that lm-eval loads."""
    parts: tuple[dict[str, Any], ...] = ()
    """Instead of `spec`, tasks of the kit as they would be in files, whose items have their own `id`."""
    big_bench: bool = False
    metric: str = ""
    """Metric per item; empty: the task's first."""
    filter: str = ""
    """Filter of a generation task; empty: the task's first."""
    shots: int | None = None
    """Few-shot examples; None: as in the task."""
    limit: int = 0
    """Items to use; 0: as in the settings."""


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]] | None,
    *,
    template: TemplateSettings | None,
    settings: EvaluationSettings,
    independent: Path | None = None,
    work: Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Score a model.

    Args:
        model: The checkpoint, on its device and in its compute dtype.
        rows: Held-out rows for the suite `local`; None: only further tasks, or a suite of the paper.
        template: How prompts of generation tasks become tokens; None: plain text, as in lm-eval.
        independent: A checkpoint that took no part, which says how surprising drawn answers are; None: not measured.
        work: Folder that keeps finished answers, so that a killed evaluation resumes; None: not kept.
        progress: Called with the number of newly finished requests.

    Returns:
        A `results.Evaluation` without profile, seed, model and provenance. With `settings.samples`, items of the suite
        `local` also hold `sampled`, the mean score of that many answers drawn at temperature 1, and `surprise`, their
        mean -log p a token under `independent`, in nats.

    Raises:
        EvaluationError: An unknown task, or no task whose metric is a share of each item.
    """
    of_rows = _row_columns(rows or ()) if settings.suite == "local" else []
    further = _further_columns(settings.tasks)
    columns = [*of_rows, *_paper_columns(settings.suite), *further, *_big_bench_columns(settings.big_bench)]
    loaded = _load(columns)
    tasks = {key: task for leaves in loaded.values() for key, task in leaves.items()}
    counts: dict[str, int] = {}
    for column in columns:
        counts |= _counts(loaded[column.name], column.limit or settings.limit)
    with _quick_and_quiet():
        own_unit = {column.name for column in further if not _shares(column.spec, loaded[column.name])}
        if len(own_unit) == len(columns):
            raise EvaluationError(
                f"tasks: {', '.join(sorted(own_unit))}: no metric is a share of each item; add one that is"
            )
        lm = PackedLM(
            model,
            tokenizer,
            template=template,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            prefixes={key: task.doc_to_prefix for key, task in tasks.items() if task.get_config("gen_prefix")},
            work=work,
            progress=progress,
        )
        output = run_tasks(
            lm,
            {"tasks": tasks, "groups": {}},
            samples={key: range(count) for key, count in counts.items()},
            bootstrap_iters=0,
            log_samples=True,
        )
    rows_asked = [task for column in of_rows for task in loaded[column.name].values()]
    sampled = _sampled(lm, rows_asked, settings.samples, independent) if settings.samples and rows_asked else {}
    record: dict[str, Any] = {"schema": SCHEMA, "kind": "evaluation", "tasks": {}, "average": 0.0, "items": []}
    for column in columns:
        leaves = loaded[column.name]
        if column.name in own_unit:
            record.setdefault("metrics", {}).update(_in_own_unit(leaves, counts, output["results"]))
            continue
        found = [item for key, task in leaves.items() for item in _items(column, key, task, output["samples"][key], lm)]
        if column in of_rows and sampled:
            found = [item | sampled[item["id"]] for item in found]
        scores = [item["score"] for item in found]
        metric = column.metric or _first_metric(next(iter(leaves.values())))
        deviation = stdev(scores) if len(scores) > 1 else 0.0
        summary = {"metric": metric, "n": len(scores), "value": fmean(scores)}
        summary["stderr"] = deviation / math.sqrt(len(scores))
        record["tasks"][column.name] = summary | _rows_of(column, leaves, counts)
        record["items"] += found
    record["average"] = fmean(summary["value"] for summary in record["tasks"].values())
    return record


def _row_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """A column for each family."""
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    task = load_yaml(TASKS / "spin_responses.yaml")
    return [
        Column(name, name, (task | {"task": name, "dataset_kwargs": {"rows": own}},)) for name, own in families.items()
    ]


def _paper_columns(suite: str) -> list[Column]:
    return [
        Column(name, b.task, metric=b.metric, filter=b.filter, shots=suites.shots(name))
        for name, b in suites.SUITES.get(suite, {}).items()
    ]


def _counts(leaves: Mapping[str, Any], limit: int) -> dict[str, int]:
    """Number of items to use from each task of a column. A limit is split among a group's tasks, at least one each."""
    sizes = {name: len(task.eval_docs) for name, task in leaves.items()}
    return {name: min(size, -(-limit // len(leaves)) or size) for name, size in sizes.items()}


def _further_columns(tasks: Sequence[str]) -> list[Column]:
    return [Column(Path(task).stem if paths.is_yaml(task) else task, task) for task in tasks]


def _big_bench_columns(tasks: Mapping[str, BigBenchSettings]) -> list[Column]:
    columns = []
    for name, settings in tasks.items():
        parts = []
        for part, content in big_bench.load(name).items():
            metric = big_bench.metric_of(content)
            task = load_yaml(TASKS / f"big_bench_{'choices' if metric == big_bench.CHOICE else 'text'}.yaml")
            task["task"] = part.removeprefix(f"{name}/")
            task["dataset_kwargs"] = {"big_bench": part, "cloze": settings.cloze}
            task["fewshot_delimiter"] = content.get("few_shot_example_separator", "\n")
            task["metric_list"][0]["metric"] = metric
            parts.append(task)
        spec, own = f"big_bench {name}", tuple(parts)
        columns.append(Column(name, spec, own, big_bench=True, shots=settings.shots, limit=settings.limit))
    return columns


def check_tasks(settings: EvaluationSettings, families: Iterable[str]) -> None:
    """Load further tasks as `evaluate` will, and score one item of each; `families` are columns of the suite `local`.

    Raises:
        EvaluationError: A task cannot be loaded or scored, or it has the name of another column.
    """
    local = settings.suite == "local"
    what = "a family of the demonstrations" if local else f"a benchmark of the suite {settings.suite}"
    taken = dict.fromkeys(families if local else suites.SUITES[settings.suite], what)
    columns = [*_further_columns(settings.tasks), *_big_bench_columns(settings.big_bench)]
    with _quick_and_quiet():
        loaded = _load(columns, taken | {"average": "the mean of all columns"})
        for column in columns:
            _shares(column.spec, loaded[column.name])


@cache
def _all_tasks(folder: Path | None = None) -> TaskManager:
    """Index of lm-eval's thousands of task files, and of those in a folder, which come first. It takes seconds."""
    return TaskManager(include_path=folder, include_defaults=True)


def _load(columns: Sequence[Column], taken: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """lm-eval's tasks by column, then by COLUMN/TASK, because two files may name their tasks alike.

    `taken` says what else has a column's name.
    """
    names = dict(taken or {})
    for column in columns:
        if column.name in names:
            same = names[column.name]
            raise EvaluationError(f"tasks: {column.spec} has the name of {same}; rename it or leave it out")
        names[column.name] = column.spec
    theirs = Path(lm_eval.tasks.__file__).parent
    shipped = {theirs / benchmark.folder for suite in suites.SUITES.values() for benchmark in suite.values()}
    manager = TaskManager(include_path=sorted(shipped), include_defaults=False)
    named = [column.spec for column in columns if not column.parts and not paths.is_yaml(column.spec)]
    if not set(named) <= set(manager.all_tasks):
        manager = _all_tasks()
    loaded: dict[str, dict[str, Any]] = {}
    for column in columns:
        loaded[column.name] = {}
        for name, task in _leaves(manager, column).items():
            shots = task.get_config("num_fewshot") if column.shots is None else column.shots
            task.set_config(key="num_fewshot", value=shots or 0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            if task.OUTPUT_TYPE == "generate_until":
                known_options(task.config.generation_kwargs, where=f"tasks: {name}: ")
            key = f"{column.name}/{name}"
            task.set_config(key="task", value=key)
            loaded[column.name][key] = task
        if not loaded[column.name]:
            raise EvaluationError(f"tasks: {column.spec} is a group without tasks; list them, or leave out `group`")
    return loaded


def _leaves(manager: TaskManager, column: Column) -> Mapping[str, Any]:
    """A column's tasks by lm-eval's names. Paths in a task file are relative to that file."""
    spec = column.spec
    file = Path(spec).resolve() if paths.is_yaml(spec) and not column.parts else None
    if not file and not column.parts and spec not in manager.all_tasks:
        raise EvaluationError(
            f"tasks: lm-eval knows no task {spec!r}; check the name, or give the path of its YAML file"
        )
    if file and not file.is_file():
        raise EvaluationError(f"tasks: {spec}: no such file; check the path, which starts at the profile's folder")
    try:
        with chdir(file.parent) if file else nullcontext(), _pinned(), _of_the_settings_length():
            given: list[Any] = [*column.parts] or [str(file or spec)]
            if file and "group" in load_yaml(file, resolve_func=False):
                given = [_group(file)]
            return dict(manager.load(given)["tasks"])
    except EvaluationError:
        raise
    except Exception as error:  # a task file, its functions and its data can fail anywhere in lm-eval and datasets
        away = isinstance(error, (ConnectionError, hub.HubError))
        remedy = "run `spin-repro fetch` where there is network" if away else "correct its file"
        raise EvaluationError(f"tasks: {spec} cannot be loaded ({paths.reason(error)}); {remedy}") from error


def _group(file: Path) -> Any:
    """A user's group, of lm-eval's tasks and those next to its file. From a path, lm-eval itself makes no group."""
    manager, content = _all_tasks(file.parent), load_yaml(file, resolve_func=False)
    members = content.get("task")
    for name in members if isinstance(members, list) else ():
        if isinstance(name, str) and name not in manager.all_tasks:
            raise EvaluationError(
                f"tasks: {file}: lm-eval knows no task {name!r}, and no .yaml file next to it has that name; correct it"
            )
    entry = Entry(name=content["group"], kind=Kind.GROUP, yaml_path=file)
    return TaskFactory().build(entry, registry=manager.task_index)


def _pinned() -> AbstractContextManager[object]:
    """Inside the block tasks load the datasets of `suites.REVISIONS` at these commits."""

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        revision = options.pop("revision", None) or suites.REVISIONS.get(path)
        if revision:
            return hub.load_rows(path, name, revision=revision, **options)
        return datasets.load_dataset(path, name, revision=None, **options)  # a further task, whatever is the latest

    return patch.object(lm_eval.api.task, "datasets", SimpleNamespace(**{**vars(datasets), "load_dataset": load}))


def _of_the_settings_length() -> AbstractContextManager[object]:
    """Inside the block tasks without `generation_kwargs` get lm-eval's other defaults, but not its 256 tokens."""
    return patch.object(lm_eval.config.task, "default_gen_kwargs", lambda until: {"do_sample": False, "until": [until]})


def _shares(spec: str, leaves: Mapping[str, Any]) -> bool:
    """Whether a column's value is the mean of a share of each item, better when higher, so it can be given in points.

    The first item of each task is scored with an empty response and with the right one, whatever the model is.
    """
    shares = True
    for task in leaves.values():
        metric, scores = _first_metric(task), defaultdict[str, list[Any]](list)
        shares = shares and task.higher_is_better().get(metric, True) and task.aggregation()[metric] is mean
        try:
            task.build_all_requests(limit=1)
            document = task.instances[0].doc
            for answers in _possible_answers(task, document):
                for instance, answer in zip(task.instances, answers, strict=True):
                    instance.resps, instance.filtered_resps = [answer] * instance.repeats, {}
                task.apply_filters()
                chosen = next(iter(task.instances[0].filtered_resps))
                found = task.process_results(document, [each.filtered_resps[chosen] for each in task.instances])
                for name in {metric, *found}:
                    scores[name].append(found[name])
            if task.OUTPUT_TYPE == "multiple_choice" and not any(scores[metric]):
                raise LookupError("no choice is right; doc_to_target must give the number from 0 or the text of one")
            shares = shares and all(map(_is_share, scores[metric]))
            for name, values in scores.items():  # lm-eval aggregates all of them
                float(task.aggregation().get(name, mean)(values))
        except Exception as error:  # a task's functions may be the user's own
            raise EvaluationError(
                f"tasks: {spec}: metric {metric!r} fails on the first item ({paths.reason(error)}); correct its file"
            ) from error
        task.set_fewshot_seed(seed=FEWSHOT_SEED)  # examples of the run are drawn as if none had been drawn here
    return shares


def _possible_answers(task: Any, document: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Responses to an item's requests: empty and right texts, or each choice in turn as the most likely."""
    count = len(task.instances)
    if task.OUTPUT_TYPE == "generate_until":
        yield [""] * count
        target = task.doc_to_target(document)
        if task.config.doc_to_choice is not None:
            target = task.doc_to_choice(document)[target]
        yield [str(target[0] if isinstance(target, list) and target else target)] * count
    elif task.OUTPUT_TYPE == "loglikelihood_rolling":
        yield [-9.0] * count
    else:
        for likeliest in range(count):
            yield [(-1.0, True) if i == likeliest else (-9.0, False) for i in range(count)]


def _in_own_unit(
    leaves: Mapping[str, Any], counts: Mapping[str, int], aggregated: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Metrics that lm-eval has aggregated over all items, such as BLEU or perplexity, by task."""
    found = {}
    for key, task in leaves.items():
        metric, (column, _, name) = _first_metric(task), key.partition("/")
        value = float(next(value for label, value in aggregated[key].items() if label.partition(",")[0] == metric))
        if not math.isfinite(value):
            raise EvaluationError(
                f"{name}: metric {metric!r} over all items is {value}; correct the task's file, or leave the task out"
            )
        found[column if len(leaves) == 1 or name == column else key] = {
            "metric": metric,
            "n": counts[key],
            "value": value,
            "higher_is_better": bool(task.higher_is_better().get(metric, True)),
        }
    return found


def _items(
    column: Column, key: str, task: Any, samples: Sequence[Mapping[str, Any]], lm: PackedLM
) -> Iterator[dict[str, Any]]:
    """Items of one lm-eval task, in order."""
    name = key.removeprefix(f"{column.name}/")
    prefix = "" if name == column.name else f"{name}/"
    metric, chosen = column.metric or _first_metric(task), column.filter or samples[0]["filter"]
    for sample in samples:
        if sample["filter"] != chosen:
            continue
        item = f"{prefix}{sample['doc']['id'] if column.parts else sample['doc_id']}"
        score = sample[metric]
        if not _is_share(score):
            raise EvaluationError(
                f"tasks: {column.spec}: metric {metric!r} of item {item} is {score!r}, but that of the first item is a "
                "share from 0 to 1; correct the task's file"
            )
        drawn = {"sampled": sample["drawn"]} if column.big_bench and "drawn" in sample else {}
        yield {"task": column.name, "id": item, "score": float(score), **_response(task, sample, lm, metric), **drawn}


def _rows_of(column: Column, leaves: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """Which rows a column was measured on: their hash, where they are from, and what guessing scores on them."""
    seen, sources = hashlib.sha256(), {big_bench.ARCHIVE} if column.big_bench else set()
    guessed: list[float] = []
    always: dict[str, float] = defaultdict(float)  # score of one and the same choice on all items
    for key, task in leaves.items():
        for document in islice(task.eval_docs, counts[key]):
            seen.update(json.dumps(document, sort_keys=True, default=str).encode())
            if "scores" in document:
                guessed.append(math.fsum(document["scores"]) / len(document["scores"]))
                for choice, score in zip(document["choices"], document["scores"], strict=True):
                    always[choice] += score
            elif task.OUTPUT_TYPE == "multiple_choice" and task.config.process_results is None:
                guessed.append(1 / len(task.doc_to_choice(document)))
        revision = suites.REVISIONS.get(task.config.dataset_path or "")
        if revision:
            sources.add(f"{task.config.dataset_path}@{revision}")
        for split in task.dataset.values() if isinstance(task.dataset, Mapping) and not revision else ():
            sources.update(re.findall("@([0-9a-f]{40})/", " ".join(split.info.download_checksums or ())))
    chance = max(math.fsum(guessed), *always.values(), 0) / len(guessed) if guessed else None
    return {"rows_sha256": seen.hexdigest(), "source": ", ".join(sorted(sources)), "chance": chance}


def _is_share(score: Any) -> bool:
    return isinstance(score, Real) and 0 <= float(score) <= 1


def _sampled(lm: PackedLM, tasks: Sequence[Any], samples: int, independent: Path | None) -> dict[str, dict[str, float]]:
    """What is measured of answers drawn at temperature 1 to held-out rows, by the row's id."""
    asked = [(task, request) for task in tasks for request in task.instances]
    groups, drawn = lm.draw([request for _, request in asked], samples)
    found = {
        request.doc["id"]: {
            "sampled": fmean(task.process_results(request.doc, [text])[_first_metric(task)] for text in texts)
        }
        for (task, request), texts in zip(asked, drawn, strict=True)
    }
    if independent is not None:
        logps = score(base.load_for_inference(independent), groups, micro_batch_tokens=lm.micro_batch_tokens)
        for measured, group, values in zip(found.values(), groups, logps, strict=True):
            lengths = map(len, group.response_ids)
            measured["surprise"] = fmean(-logp / tokens for logp, tokens in zip(values, lengths, strict=True))
    return found


def _response(task: Any, sample: Mapping[str, Any], lm: PackedLM, metric: str) -> dict[str, Any]:
    """The model's response: its text, or the choice that it prefers, for which no tokens were generated."""
    if task.OUTPUT_TYPE == "generate_until":
        context, options = sample["arguments"][0]
        greedy = not options.get("do_sample") and not options.get("temperature")
        request = Instance("generate_until", sample["doc"], (context, options), 0)
        return {"response": sample["resps"][0][0], "tokens": lm.length(request) if greedy else 0}
    choices = [choice for _, choice in sample["arguments"]]
    if task.OUTPUT_TYPE == "multiple_choice":  # which may stand in the context, or be scored without it as well
        choices = task.doc_to_choice(sample["doc"])
    by_character = metric == "acc_norm" or sample["doc"].get("cloze")  # the latter of Big-Bench
    values = [
        response[0][0] / (max(1, len(choice)) if by_character else 1)
        for response, choice in zip(sample["resps"], choices, strict=False)
    ]
    return {"response": choices[values.index(max(values))].strip(), "tokens": 0}


def _first_metric(task: Any) -> str:
    return str(next(iter(task.aggregation())))


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Compile each template of a task once, where lm-eval recompiles it for every item and example: minutes for MMLU.

    Also hide lm-eval's progress bars on standard error, which notebooks show in red; the kit has its own.
    """
    environment = lm_eval.utils.env
    once = patch.object(environment, "from_string", cache(environment.from_string))
    with once, patch.object(lm_eval.api.task, "tqdm", lambda items, **_: items):
        yield
