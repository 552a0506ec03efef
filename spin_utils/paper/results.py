"""Results: the small JSON files behind the tables and figures.

    results/PROFILE/seed-S/evaluations/MODEL.json    scores of one checkpoint, item by item
    results/PROFILE/seed-S/transfer/MODEL.json       the same on tasks not used in training
    results/PROFILE/seed-S/training/MODEL.json       metrics of one training run, step by step
    results/PROFILE/seed-S/generations/MODEL.json    the model's responses to SPIN's training prompts
    results/PROFILE/seed-S/heldout/MODEL.json        how an iteration changed log-probabilities on held-out pairs
    results/PROFILE/seed-S/mt_bench/MODEL.json       a judge's grades of the model's answers to MT-Bench
    results/PROFILE/seed-S/instructions/MODEL.json   where a program took the judge's place: instructions followed

Each kind of file has a pydantic model, which checks it when it is written and again when it is read. A bad file is
refused with its path and the field. Scores are shares (0..1) here and points in tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
    ValidationError,
)
from pydantic_core import from_json

from spin_utils.files.disk import SEAL, is_whole, sealed, write_text
from spin_utils.files.paths import KitError
from spin_utils.settings.machine import CATEGORIES
from spin_utils.settings.names import ModelName

SCHEMA = 1
"""Version of the file format; other versions are refused."""

Scored = Literal["evaluations", "transfer", "instructions"]
"""Folders of evaluations: on the tasks of the training mix, on tasks not used in training, and on instructions."""

Model = Annotated[str, AfterValidator(lambda name: ModelName.parse(name).name)]

_AGAIN = "run the stage that writes the file again"


class ResultsError(KitError):
    """A results file is missing or invalid. The message names the file, the field and the remedy."""


class Part(BaseModel):
    """Base of the models below: no unknown fields, no type conversion, finite numbers only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Link(Part):
    """One artifact in the provenance of a result."""

    model_config = ConfigDict(extra="ignore")

    manifest_sha256: str
    stage: str
    key: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    seed: int
    seconds: NonNegativeFloat
    started: Annotated[datetime, Strict(False)]
    commit: str
    dirty: bool
    """Whether the working tree had uncommitted changes."""
    device: str
    versions: dict[str, str]
    inputs: dict[str, dict[Literal["artifact", "manifest"], str]]
    """By name: step and key, for example `sft-0123456789ab`, and sha256 of its manifest."""
    settings: dict[str, Any] = {}
    """For base model and data: revisions and hashes of whatever comes from outside the kit."""
    weights_sha256: dict[str, str] = {}
    """For checkpoints."""


class Provenance(Part):
    """Every artifact behind a result."""

    step: str
    """The step that measured it."""
    chain: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9-]*$")], Link]


class Document(Part):
    """Fields that every file has."""

    version: Literal[1] = Field(alias="schema")
    profile: str
    seed: int
    """Training seed."""
    model: Model
    provenance: Provenance


class Task(Part):
    """Summary of one task."""

    metric: str
    n: PositiveInt
    value: float
    stderr: NonNegativeFloat
    rows_sha256: str = ""
    """Hash of the items asked, in order, as JSON."""
    source: str = ""
    """The dataset's commit on the hub, or Big-Bench's archive; empty: the held-out demonstrations, or a user's file."""
    chance: float | None = None
    """What choosing at random, or always the same, scores on these items; null for other than multiple choice."""


class Item(Part):
    """One scored item of a task."""

    task: str
    id: str | int
    score: Annotated[float, Field(ge=0, le=1)]
    response: str
    tokens: NonNegativeInt
    sampled: Annotated[float, Field(ge=0, le=1)] | None = None
    """Mean score of answers drawn at temperature 1, where they were; for choices of Big-Bench its expectation, which
    is the probability of the right choice."""
    surprise: float | None = None
    """Mean -log p a token, in nats, of answers drawn at temperature 1 under a model that took no part."""


class Metric(Part):
    """A task measured in a unit of its own, such as BLEU or perplexity, over all its items together."""

    metric: str
    n: PositiveInt
    value: float
    higher_is_better: bool


class Evaluation(Document):
    """Scores of one checkpoint."""

    kind: Literal["evaluation"]
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    average: float
    """Unweighted mean over tasks."""
    items: list[Item]
    metrics: dict[str, Metric] = {}
    """Tasks whose metric is no share of each item: not among `tasks`, and in no average."""


class Step(Part):
    """Metrics of one logged step; any further fields are numbers too."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    step: int
    epoch: float
    loss: float
    seconds: NonNegativeFloat
    margin: float = math.nan
    """This and the next two only for training on pairs, that is for everything but SFT."""
    rewards_real: float = math.nan
    rewards_generated: float = math.nan


class Training(Document):
    """Metrics of one training run."""

    kind: Literal["training"]
    rows: list[Step]


class Generation(Part):
    """A real and a generated response to one training prompt."""

    id: str
    family: str
    prompt: str
    real: str
    generated: str
    real_tokens: NonNegativeInt
    generated_tokens: NonNegativeInt
    finish_reason: Literal["stop", "length"]


class Generations(Document):
    """Responses y' to SPIN's training prompts; `model` generated them."""

    kind: Literal["generations"]
    items: Annotated[list[Generation], Field(min_length=1)]


class Drift(Part):
    """log p_{theta_t+1} - log p_{theta_t} for the real and for a freshly generated response, in nats."""

    id: str
    real_drift: float
    generated_drift: float
    real_logp: float
    """log p_{theta_t+1} of the real response."""
    real_bytes: PositiveInt
    """Its length in UTF-8."""
    real_surprise: float | None = None
    """-log p of the real response under the base model, in nats a token; null where there was no SFT."""
    generated_surprise: float | None = None
    """The same of the generated one."""


class Heldout(Document):
    """How an iteration changed log-probabilities on held-out pairs; `model` is its policy, `beta` its lambda."""

    kind: Literal["heldout"]
    beta: PositiveFloat
    items: Annotated[list[Drift], Field(min_length=1)]


class Judge(Part):
    """Who graded."""

    name: str
    base_url: str = ""
    models: list[str]
    """Model names that the endpoint reported."""


class Grade(Part):
    """The judgment of one answer."""

    id: str
    """Question/turn."""
    category: Annotated[str, Field(pattern=f"^({'|'.join(CATEGORIES)})$")]
    status: Literal["graded", "refused", "unparsable"]
    score: Annotated[float, Field(ge=1, le=10)] | None
    judgment: str
    response: str
    tokens: int
    finish_reason: str
    cut_tokens: int


class MtBench(Document):
    """A judge's grades of a model's answers to MT-Bench."""

    kind: Literal["mt_bench"]
    judge: Judge
    grades: dict[Literal["graded", "refused", "unparsable"], int]
    average: float | None
    """Mean of the graded answers; null without any."""
    items: Annotated[list[Grade], Field(min_length=1)]


KINDS: dict[str, type[Document]] = {
    "evaluations": Evaluation,
    "transfer": Evaluation,
    "training": Training,
    "generations": Generations,
    "heldout": Heldout,
    "mt_bench": MtBench,
    "instructions": Evaluation,
}
"""Kind of the files in each folder."""


def validate(document: Mapping[str, Any], folder: str, where: str) -> None:
    """Check the content of a file in one of the folders listed at the top.

    Raises:
        ResultsError: One line with the place `where`, the first wrong field, for example `items.3.score`, and the
            remedy.
    """
    try:
        KINDS[folder].model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        found = "" if first["type"] in ("missing", "value_error") else f", found {first['input']!r:.80}"
        message = first["msg"].removeprefix("Value error, ")
        raise ResultsError(f"{where}: {place}{place and ': '}{message}{found}; {_AGAIN}") from None


def path_of(results: Path, seed: int, folder: str, model: str) -> Path:
    """Path of a file under `results`, which is results/PROFILE."""
    return results / f"seed-{seed}" / folder / f"{model}.json"


def training_seeds(results: Path) -> list[int]:
    """Training seeds with a folder under results/PROFILE, in order."""
    names = (path.name.removeprefix("seed-") for path in results.glob("seed-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def files(results: Path) -> list[Path]:
    """All results files under results/PROFILE. Anything else there, for example a copied folder, is ignored."""
    return [path for folder in KINDS for path in _files(results, folder)]


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Check a results file and write it atomically; the same content gives the same bytes.

    Keys keep their order, and lists of objects have one object per line, so that files diff well. The last field is a
    hash of all the others.

    Raises:
        ResultsError: The document is not valid for its kind.
    """
    validate(document, path.parent.name, str(path))
    write_text(path, _render(sealed(document)))


def read_json(path: Path) -> dict[str, Any]:
    """Read and check one results file.

    Raises:
        ResultsError: The file is missing, is not JSON, was altered, or is not valid for its kind and its place: the
            folder names give the kind, the seed and the profile, the file name gives the model.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such results file; run the stage that writes it") from None
    try:
        document = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise ResultsError(f"{path}: not valid JSON ({error}); delete it and {_AGAIN}") from None
    if not is_whole(document):
        raise ResultsError(
            f"{path}: changed since it was written (hash); restore it, or run `spin-repro reproduce` again"
        )
    del document[SEAL]
    *_, profile, seed, folder, _ = path.resolve().parts
    validate(document, folder, str(path))
    place = {"model": path.stem, "seed": seed.removeprefix("seed-"), "profile": profile}
    for field, expected in place.items():
        if str(document[field]) != expected:
            raise ResultsError(f"{path}: {field} is {document[field]!r}, but its path says {expected!r}; move it")
    return document


_READ: dict[Path, tuple[bytes, dict[str, Any]]] = {}
"""Bytes and content of every file that `_read` read."""


def _read(path: Path) -> dict[str, Any]:
    """`read_json` for the loaders below, which leave what they read as it is: an unchanged file is parsed once."""
    content = path.read_bytes()
    if path not in _READ or _READ[path][0] != content:
        _READ[path] = content, read_json(path)
    return _READ[path][1]


def load_evaluations(results: Path, *, kind_folder: Scored = "evaluations") -> pd.DataFrame:
    """Scores of all models under results/PROFILE, a row per seed, model and item; empty if nothing was run.

    Columns `seed`, `model` and those of `Item`, `sampled` and `surprise` only where they were measured; and whether the
    task is `at_chance` or stands `aside`.
    """
    table = _items(results, kind_folder, list(Item.model_fields)).astype({"id": str, "score": float})
    weak = at_chance(load_summaries(results, kind=kind_folder))
    beside = aside(results) if kind_folder == "evaluations" else ()
    table = table.assign(at_chance=table["task"].isin(weak), aside=table["task"].isin(beside))
    return table.drop(columns=[name for name in ("sampled", "surprise") if table[name].isna().all()])


def load_generations(results: Path) -> pd.DataFrame:
    """Responses to the prompts of self-play: `seed`, `model` (the generator), and the fields of `Generation`."""
    return _items(results, "generations", list(Generation.model_fields))


def load_heldout(results: Path) -> pd.DataFrame:
    """How every iteration changed log-probabilities on held-out pairs: `seed`, `model` (spin-t, the policy theta_t+1 of
    iteration t), `beta`, and the fields of `Drift`.
    """
    return _items(results, "heldout", ["beta", *Drift.model_fields])


def load_mt_bench(results: Path) -> pd.DataFrame:
    """All grades of MT-Bench: `seed`, `model`, `judge`, `judge_models` (as reported by the endpoint), `task` (the
    category), `id` (question/turn), `status` and `grade` (1 to 10, NaN if there is none).
    """
    table = _items(results, "mt_bench", ["judge", "category", "id", "status", "score"])
    names = table["judge"].map(lambda judge: judge["name"])
    models = table["judge"].map(lambda judge: ", ".join(judge["models"]))
    table = table.assign(judge=names, judge_models=models)
    return table.rename(columns={"category": "task", "score": "grade"}).astype({"grade": float})


def _items(results: Path, folder: str, columns: list[str]) -> pd.DataFrame:
    """The items of all files of one folder, each with the fields of its file that are named in `columns`."""
    documents = [_read(path) for path in _files(results, folder)]
    items = [item for document in documents for item in document["items"]]
    table = pd.DataFrame(items, columns=["seed", "model", *columns])
    lengths = [len(document["items"]) for document in documents]
    for name in [name for name in ("seed", "model", *columns) if all(name in document for document in documents)]:
        table[name] = pd.Series([document[name] for document in documents]).repeat(lengths).to_numpy()
    return table


def load_summaries(
    results: Path, *, kind: Scored = "evaluations", part: Literal["tasks", "metrics"] = "tasks"
) -> pd.DataFrame:
    """The summaries of all evaluations: `seed`, `model`, `task` and the fields of `Task`, or of `Metric`."""
    rows = [
        {"seed": document["seed"], "model": document["model"], "task": task, **summary}
        for document in map(_read, _files(results, kind))
        for task, summary in document.get(part, {}).items()
    ]
    fields = (Task if part == "tasks" else Metric).model_fields
    return pd.DataFrame(rows, columns=["seed", "model", "task", *fields])


def load_training(results: Path) -> pd.DataFrame:
    """All training records, one row per seed, model and logged step: `seed`, `model`, `step`, `epoch`, `loss`, ..."""
    rows = [
        {"seed": document["seed"], "model": document["model"], **row}
        for document in map(_read, _files(results, "training"))
        for row in document["rows"]
    ]
    return pd.DataFrame(rows, columns=None if rows else ["seed", "model", "step", "epoch", "loss"])


def at_chance(summaries: pd.DataFrame) -> set[str]:
    """Tasks that judge nothing: there, before any training here, the score is no better than choosing at random.

    Better is more than two standard errors above it. The score is that of the base model where it was measured, else
    of the SFT model, averaged over training seeds.
    """
    first = "base" if "base" in set(summaries["model"].unique()) else "sft"
    choices = summaries[(summaries["model"] == first) & summaries["chance"].notna()]
    means = choices.groupby("task")[["value", "stderr", "chance"]].mean()
    return set(means.index[means["value"] <= means["chance"] + 2 * means["stderr"]])


def aside(results: Path) -> set[str]:
    """`Profile.aside` from the results alone, which may be those of a profile that has changed or is not here."""
    settings = [chain.get("data", {}).get("settings", {}) for _, chain in chains(results)]
    if not any(data.get("families") or data.get("source") == "big_bench" for data in settings):
        return set()
    table = load_summaries(results)
    return set(table[table["source"].astype(str).str.startswith("bigbench")]["task"])


def judged(scores: pd.DataFrame) -> list[str]:
    """The tasks of a table of scores that count for averages and verdicts: not `at_chance`, and not `aside` (shown
    next to the profile's own tasks), by the columns of these names where there are any."""
    left_out = scores[[column for column in ("at_chance", "aside") if column in scores]].any(axis=1)
    return sorted(scores["task"][~left_out].unique())


def counted(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the tasks that are `judged`."""
    return scores[scores["task"].isin(judged(scores))]


def chains(results: Path, *kinds: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Training seed and provenance chain of every evaluation, or of every file of some kinds, by seed."""
    for kind in kinds or ("evaluations",):
        for document in map(_read, _files(results, kind)):
            yield document["seed"], document["provenance"]["chain"]


def check_one_run(results: Path) -> None:
    """Raise if results of two runs are mixed: a difference between them could come from settings or data.

    A step's key, which stands for its settings and inputs, must be the same in all files of a seed; that of data or
    base model in all files.

    Raises:
        ResultsError: Two files name different artifacts of one step, or a file is not valid.
    """
    found: dict[tuple[int | None, str], tuple[str, Path]] = {}
    for path in files(results):
        document = _read(path)
        for name, link in document["provenance"]["chain"].items():
            seed = None if link["stage"] in ("data", "base") else document["seed"]
            key, other = found.setdefault((seed, name), (link["key"], path))
            if key != link["key"]:
                raise ResultsError(
                    f"{path}: made from {name}-{link['key']}, but {other} from {name}-{key}: they belong to two "
                    "different runs; remove one of them, or run `spin-repro reproduce` again"
                )


def _files(results: Path, folder: str) -> Iterator[Path]:
    """Files of one folder over seeds, by seed and then name."""
    for seed in training_seeds(results):
        yield from sorted((results / f"seed-{seed}" / folder).glob("*.json"))


def _render(document: Mapping[str, Any]) -> str:
    dump, fields = partial(json.dumps, ensure_ascii=False, allow_nan=False), []
    for name, value in document.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            body = "[\n  " + ",\n  ".join(map(dump, value)) + "\n ]"
        else:
            body = dump(value, indent=1).replace("\n", "\n ")
        fields.append(f" {dump(name)}: {body}")
    return "{\n" + ",\n".join(fields) + "\n}\n"
