"""Checks before any long work: a run's inputs, and for `spin-repro check` whether it can run here at all.

`check_inputs` raises; `check` reports. Nothing is trained, and of a model only config.json is fetched.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from spin_utils.data import preferences
from spin_utils.data.demonstrations import Demonstrations
from spin_utils.data.demonstrations import load as load_demonstrations
from spin_utils.data.rows import Row, RowError, listed, question, read_rows
from spin_utils.data.templates import TooLongError, encode_rows
from spin_utils.evaluation import suites
from spin_utils.experiment import clock, launch, mt_bench, plan
from spin_utils.experiment.plan import Plan, all_trainings, control_demonstrations, needs_data, played
from spin_utils.files import hub, paths
from spin_utils.files.paths import KitError
from spin_utils.model import base
from spin_utils.model.base import ModelError
from spin_utils.settings.inputs import ModelSettings
from spin_utils.settings.run import LoraSettings, Profile

if TYPE_CHECKING:
    from spin_utils.experiment.cost import Machine
    from spin_utils.experiment.estimate import Need

log = logging.getLogger(__name__)


def check_inputs(profile: Profile) -> None:
    """Raise `KitError` if a run's inputs are wrong or do not fit together, before any long work."""
    for _, look in _on_this_machine(profile):
        look()
    for settings in (profile.model, *profile.released.values()):
        base.identity(settings)
    if profile.model.source == "directory":
        base.check_folder(Path(profile.model.path), profile.template)
    _check_adapters(profile)
    names: set[str] = set()
    if needs_data(profile):
        demonstrations = load_demonstrations(profile.demonstrations)
        names = _families(demonstrations)
        _check_demonstrations(profile, demonstrations)
        if not profile.released:
            _check_control(profile, demonstrations)
            _check_preferences(profile, demonstrations)
    _check_tasks(profile, names)


def _on_this_machine(profile: Profile) -> Iterator[tuple[str, Callable[[], object]]]:
    """Checks of what a run needs here besides its inputs, by what they are about."""
    from spin_utils.model import vllm
    from spin_utils.training import trackers

    asked, generation = profile.resources, profile.generation
    gpus = max(kind.gpus for kind in (asked.training, asked.generation, asked.evaluation))
    yield "device", lambda: launch.check(profile.processes, gpus)
    yield "trackers", lambda: trackers.check({name for each in all_trainings(profile) for name in each.trackers})
    if generation.backend == "vllm" and not profile.released:
        yield "generation", lambda: vllm.check_environment(generation.vllm)
    if profile.mt_bench is not None:
        yield "mt_bench", partial(mt_bench.check, profile.mt_bench)


def _families(demonstrations: Demonstrations) -> set[str]:
    return {row["family"] for rows in vars(demonstrations).values() for row in rows}


def _check_tasks(profile: Profile, names: Collection[str]) -> bool:
    """Load further lm-eval tasks and score each on one item; False if there are none."""
    further = bool(profile.evaluation.tasks or profile.evaluation.big_bench)
    if further:
        from spin_utils.evaluation import harness  # takes seconds

        harness.check_tasks(profile.evaluation, names)
    return further


def _check_adapters(profile: Profile) -> None:
    """Raise if the model has no layers for the adapters of a training run, however late it comes."""
    adapters = _adapters(profile)
    if adapters:
        from spin_utils.experiment import estimate  # needs torch

        estimate.architecture(profile.model, adapters=adapters)


def _adapters(profile: Profile) -> set[LoraSettings]:
    """Of all training runs, variants of SPIN included."""
    return {each.lora for each in all_trainings(profile) if each.lora is not None}


def _check_demonstrations(profile: Profile, demonstrations: Demonstrations) -> None:
    if profile.evaluation.suite == "local" and not demonstrations.test:
        raise RowError(
            f"{profile.demonstrations.train or profile.demonstrations.source}: no rows are held out for evaluation; "
            "give at least 10 rows (a tenth is held out), or set demonstrations.test or demonstrations.test_rows"
        )
    for part in () if profile.released else profile.spin.subsets:
        if len(demonstrations.spin) * part < 50:
            raise RowError(
                f"spin.subsets: {part} fiftieths of {len(demonstrations.spin)} prompts is less than one; raise "
                "demonstrations.spin_rows or leave the subsets out: spin.subsets=[]"
            )
    # The first stage makes or unpacks other tokenizers.
    if profile.demonstrations.source == "file" and profile.model.source == "directory":
        check_fit(Path(profile.model.path), profile, vars(demonstrations))


def _check_control(profile: Profile, demonstrations: Demonstrations) -> None:
    """Raise if rows of the SFT control cannot be trained on or their prompts are held out."""
    settings = control_demonstrations(profile)
    if settings is None:
        return
    try:
        rows = load_demonstrations(settings).sft
    except RowError as error:
        raise RowError(f"sft_control: {error}; or leave the control out: sft_more=0") from None
    _check_not_held_out("sft_control.demonstrations", rows, profile, demonstrations)
    if settings.source == "file" and profile.model.source == "directory":
        check_fit(Path(profile.model.path), profile, {"sft_control": rows})


def _check_preferences(profile: Profile, demonstrations: Demonstrations) -> None:
    """Raise if pairs for DPO cannot be trained on or their prompts are held out."""
    if profile.dpo is None or profile.dpo.preferences.source == "samples":
        return
    _check_not_held_out("dpo.preferences", preferences.load(profile.dpo.preferences), profile, demonstrations)
    if profile.model.source == "directory":
        check_pair_lengths(Path(profile.model.path), profile)


def _check_not_held_out(name: str, rows: Sequence[Row], profile: Profile, demonstrations: Demonstrations) -> None:
    if profile.evaluation.suite == "local":
        held_out = {question(row): row["id"] for row in demonstrations.test}
        faults = [
            f"{name}, row {row['id']}: the prompt is held out for evaluation (row {held_out[question(row)]}); "
            "remove one of them"
            for row in rows
            if question(row) in held_out
        ]
        if faults:
            raise RowError(listed(faults))


def check_start(plan: Plan, model: Path) -> None:
    """Check the lengths of all rows and pairs of a run, its adapters and tasks, as soon as its base model is available.

    A notebook may start without `check_inputs`.
    """
    _check_adapters(replace(plan.profile, model=ModelSettings(source="directory", path=str(model))))
    data = plan.directory("data")
    asked = {split: read_rows(data / f"{split}.jsonl") for split in ("spin", "validation", "test", "transfer")}
    check_fit(model, plan.profile, asked)
    check_pair_lengths(model, plan.profile)
    _check_tasks(plan.profile, {row["family"] for rows in asked.values() for row in rows})


def check_fit(model: Path, profile: Profile, splits: Mapping[str, Sequence[Row]]) -> None:
    """Raise if rows in any split are too long for the model to train on or to answer. Every row is encoded once.

    Raises:
        TooLongError: a row is too long for the template; names the split and the row.
        ModelError: a row, or a prompt and its longest answer, needs more positions than the model has.
    """
    tokenizer = base.load_tokenizer(model)
    # An answer of an opponent that is cut gets an end token.
    spin = max(p.generation.max_new_tokens + p.spin.training.end_truncated for p in played(profile))
    answers = {"spin": ("generation", spin), "validation": ("generation", profile.generation.max_new_tokens)}
    answers |= dict.fromkeys(("test", "transfer"), ("evaluation", profile.evaluation.max_new_tokens))
    for split, rows in splits.items():
        template = profile.template
        if template.too_long == "drop" and split in ("test", "transfer"):  # evaluation drops no prompt
            template = replace(template, too_long="truncate")
        try:
            encoded = encode_rows(tokenizer, template, rows)
        except TooLongError as error:
            raise TooLongError(f"demonstrations, {split} {error}") from None
        if split in ("sft", "spin", "sft_control"):
            whole = (len(row.prompt_ids) + len(row.response_ids) for row in encoded)
            _check_positions(model, f"{split} row", whole, "template.max_response_tokens")
        if split in answers:
            section, answer = answers[split]
            answered = (len(row.prompt_ids) + answer for row in encoded)
            _check_positions(model, f"{split} prompt with its answer", answered, f"{section}.max_new_tokens")
    if profile.mt_bench is not None:  # a longer question is cut, but one token of it there has to be
        asked = [1 + profile.mt_bench.max_new_tokens]
        _check_positions(model, "question of MT-Bench with its answer", asked, "mt_bench.max_new_tokens")


def check_pair_lengths(model: Path, profile: Profile) -> None:
    """Encode every pair of a DPO file once, because it is only used after the main chain. Raises as `check_fit`."""
    if profile.dpo is None or profile.dpo.preferences.source != "file":
        return
    try:
        pairs = preferences.load(profile.dpo.preferences)
        encoded = preferences.encode_preferences(base.load_tokenizer(model), profile.template, pairs)
    except TooLongError as error:
        raise TooLongError(f"dpo.preferences, {error}") from None
    rows = (len(pair["prompt_ids"]) + max(len(pair["real_ids"]), len(pair["generated_ids"])) for pair in encoded)
    _check_positions(model, "row of dpo.preferences", rows, "template.max_response_tokens")


def _check_positions(model: Path, what: str, tokens: Iterable[int], setting: str) -> None:
    positions, longest = base.positions(model), max(tokens, default=0)
    if longest > positions:
        raise ModelError(
            f"{model}: has {positions} positions, and the longest {what} needs {longest}; shorten it, or lower "
            f"template.max_prompt_tokens or {setting}"
        )


State = Literal["ok", "note", "unknown", "refused"]


@dataclass(frozen=True)
class Finding:
    """One line of the check."""

    what: str
    state: State
    """`note`: worth knowing; `unknown`: cannot be determined now; `refused`: the run would not start or finish."""
    text: str


@dataclass(frozen=True)
class Report:
    """All findings of the check."""

    profile: str
    machine: str
    findings: list[Finding]

    @property
    def verdict(self) -> Literal["fits", "does not fit", "unknown"]:
        """About memory and disk; unknown if the check ended before the time."""
        if any(f.state == "refused" and f.what.startswith(("memory", "vLLM", "disk")) for f in self.findings):
            return "does not fit"
        return "fits" if self.findings[-1].what == "time" else "unknown"

    def ready(self) -> bool:
        """Whether the run can start."""
        return all(finding.state != "refused" for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """The report as data for JSON."""
        return {**dataclasses.asdict(self), "verdict": self.verdict, "ready": self.ready()}

    def lines(self) -> list[str]:
        """The report as lines of text."""
        marks = {"ok": "ok", "note": "note", "unknown": "?", "refused": "NO"}
        width = max(len(finding.what) for finding in self.findings)
        lines = [f"  {marks[f.state]:<5}{f.what:<{width}}  {f.text}" for f in self.findings]
        return [f"profile {self.profile} on {self.machine}: {self.verdict}", *lines]


def check(profile: Profile, machine: Machine) -> Report:
    """Report whether a profile can run on a machine: versions, hub, rows, memory, disk, hours of unfinished steps."""
    return Report(profile.name, machine.name, list(_findings(profile, machine)))


def _findings(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """Ends early if the model or the plan cannot be used."""
    from spin_utils.experiment import estimate  # needs torch
    from spin_utils.model import general

    yield _versions()
    yield Finding("device", "ok", f"{machine.name}, {_gb(machine.memory)} free on each")
    for what, look_here in _on_this_machine(profile) if machine.disk < math.inf else ():  # else another machine
        yield from _refusal(what, look_here)
    asked = {repository: look(repository) for repository in wanted(profile)}
    for state, text in dict.fromkeys(asked.values()):
        names = ", ".join(repository.name for repository in asked if asked[repository] == (state, text))
        yield Finding("hub", state, f"{names}: {text}")
    if gone := missing(profile):
        yield Finding("offline", "note", f"without network a run would fail: {_not_fetched(gone)}")
    read: dict[str, Demonstrations] = {}
    demonstrations = profile.demonstrations if needs_data(profile) else None
    for what, settings in {"demonstrations": demonstrations, "sft_control": control_demonstrations(profile)}.items():
        if settings is None:
            continue
        try:
            read[what] = load_demonstrations(settings)
        except RowError as error:
            away = any(place.name == settings.name and state == "unknown" for place, (state, _) in asked.items())
            away = away and "expected_rows" not in str(error)
            yield Finding(what, "unknown" if away else "refused", str(error))
        else:
            sizes = (f"{split} {len(found):,}" for split, found in vars(read[what]).items() if found)
            yield Finding(what, "ok", ", ".join(sizes))
    rows = read.get("demonstrations")
    try:
        if profile.model.source == "directory":
            base.check_folder(Path(profile.model.path), profile.template)
        reachable = any(repository.kind == "model" and state == "ok" for repository, (state, _) in asked.items())
        known = estimate.architecture(profile.model, reachable=reachable, adapters=_adapters(profile))
        judge = profile.mt_bench.judge_model if profile.mt_bench else None
        judging = estimate.architecture(judge, reachable=reachable) if judge else None
    except ModelError as error:
        yield Finding("model", "refused", str(error))
        return
    if known is None or (judge and judging is None):
        whose = "judge" if known else "model"
        yield Finding("memory", "unknown", f"the {whose}'s sizes are unknown until its config.json can be read")
        return
    architecture, source = known
    size = f"{architecture.parameters / 1e9:.3g} billion parameters ({source})"
    state = "ok" if architecture.path == "fast" else "note"
    yield Finding("model", state, f"{size}; {general.COSTS[architecture.path]}")
    shared = 1 if profile.processes.sharding == "ddp" else estimate.processes(profile, machine)
    judged = judging[0] if judging else None
    for stage, need, lower in estimate.memory(profile, architecture, machine, judged):
        yield _memory(stage, need, lower, shared, machine)
    if machine.kind == "cuda":
        main = estimate.main_memory(profile, architecture, machine, judged)
        text = f"{_gb(main)} of {_gb(machine.host)} beside the GPUs, where each process loads the whole model"
        fewer = "; use a machine with more, or fewer processes (processes.count)"
        enough = main <= machine.host
        yield Finding("memory: main", "ok" if enough else "refused", text if enough else text + fewer)
    vllm = profile.generation.vllm
    gpus = max(1, vllm.processes) * vllm.tensor_parallel_size if profile.generation.backend == "vllm" else 0
    if gpus > machine.devices:
        text = f"{gpus} GPUs of {machine.devices}; lower generation.vllm.processes or tensor_parallel_size"
        yield Finding("vLLM", "refused", text)
    try:
        _check_tasks(profile, _families(rows) if rows else ())
    except KitError as error:
        left = "disk and time below are without further tasks"
        yield Finding("tasks", "refused", f"{str(error).removeprefix('tasks: ')}; {left}")
        profile = replace(profile, evaluation=replace(profile.evaluation, tasks=(), big_bench={}))
    if rows:
        yield from _refusal("demonstrations", partial(_check_demonstrations, profile, rows))
        if "sft_control" in read:
            yield from _refusal("sft_control", partial(_check_control, profile, rows))
        if profile.dpo and profile.dpo.preferences.source == "file":
            yield from _refusal("dpo", partial(_check_preferences, profile, rows))
    try:
        made = plan.make(profile, seed=0)
    except KitError as error:
        yield Finding("plan", "refused", str(error))
        return
    for reason in plan.left_out(profile).splitlines():
        yield Finding("left out", "note", reason)
    if requests := mt_bench.requests([made]):
        yield Finding("judge", "note", requests)
    space = estimate.disk(made, architecture)
    text = f"{_gb(space)} of {_gb(machine.disk)} for one seed"
    if space <= machine.disk:
        yield Finding("disk", "ok", text)
    else:
        more = "set SPIN_HOME to a larger disk, or lower spin.epochs_shown or spin.subsets"
        yield Finding("disk", "refused", f"{text}; {more}")
    run = estimate.workload(profile, machine, rows)
    hours = estimate.hours(made, run, architecture, estimate.rows_of(profile, rows, read.get("sft_control")))
    counted = f"{run.prompt_tokens} + {run.real_tokens} + {run.generated_tokens} tokens of prompt and responses "
    counted += "counted from the rows" if rows else "assumed"
    yield Finding("time", "ok", f"{_hours(made, hours, machine)}; {counted}" if hours else "every step is done")


def _refusal(what: str, look: Callable[[], object]) -> Iterator[Finding]:
    try:
        look()
    except KitError as error:
        yield Finding(what, "refused", str(error))


def _memory(stage: str, need: Need, lower: str, devices: int, machine: Machine) -> Finding:
    """Whether a stage fits on a device, alone or sharded over several."""
    parts = sorted({**need.sharded, **need.own}.items(), key=lambda part: -part[1])[:3]
    largest = ", ".join(f"{name} {_gb(size)}" for name, size in parts)
    what, text = f"memory: {stage}", f"{_gb(need.total())} of {_gb(machine.memory)} ({largest})"
    if need.total() <= machine.memory:
        return Finding(what, "ok", text)
    if need.total(devices) <= machine.memory:
        return Finding(what, "note", f"{text}; {_gb(need.total(devices))} each when sharded over {devices} devices")
    return Finding(what, "refused", f"{text}; {lower}")


def _hours(made: Plan, hours: Mapping[str, float], machine: Machine) -> str:
    by_stage: dict[str, float] = defaultdict(float)
    for name, value in hours.items():
        by_stage[made.steps[name].stage] += value
    parts = ", ".join(f"{stage} {clock.duration(3600 * value)}" for stage, value in by_stage.items() if value)
    text = (
        f"about {clock.duration(3600 * sum(hours.values()))} for {len(hours)} unfinished steps ({parts}), by the cost "
        f"model at {machine.flops / 1e12:.3g} TFLOP/s and {machine.bandwidth / 1e9:.3g} GB/s per device, which leaves "
        "out downloads, preference pairs, held-out prompts, MT-Bench and further tasks"
    )
    measured, where = clock.measured(made.profile.name)
    if not measured:
        return text
    known = clock.duration(sum(measured.get(name, 0) for name in hours))
    return f"{text}; for the existing results these steps took {known} on {where}"


def _versions() -> Finding:
    """Installed versions compared with the lock; builds like 2.13.0+cpu count as 2.13.0."""
    lock = (paths.REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    pinned = [line.split("==") for line in lock.splitlines() if "==" in line]
    found = {name: _installed(name) for name, _ in pinned}
    other = [f"{name} {found[name]} instead of {version}" for name, version in pinned if found[name] != version]
    if not other:
        return Finding("versions", "ok", f"all {len(pinned)} packages as in requirements.lock")
    more = f" and {len(other) - 5} more" if len(other) > 5 else ""
    return Finding("versions", "note", f"{', '.join(other[:5])}{more}; make setup installs the lock")


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size < float("inf") else "an unknown size"


class Wanted(NamedTuple):
    """A hub repository that a profile reads."""

    kind: hub.Kind
    name: str
    revision: str
    """Commit; empty if it has to be given."""
    setting: str
    """Setting that names the commit."""


def wanted(profile: Profile) -> list[Wanted]:
    """Every hub repository that a run of the profile reads."""
    sources: dict[str, Any] = {
        "model": profile.model,
        **{f"released.{name}": model for name, model in profile.released.items()},
        "mt_bench.judge_model": profile.mt_bench and profile.mt_bench.judge_model,
        "demonstrations": profile.demonstrations if needs_data(profile) else None,
        "sft_control.demonstrations": control_demonstrations(profile),
        "dpo.preferences": profile.dpo.preferences if profile.dpo and not profile.released else None,
    }
    found = []
    for where, of in sources.items():
        if of is not None and of.source == "hub":
            kind: hub.Kind = "model" if isinstance(of, ModelSettings) else "dataset"
            found.append(Wanted(kind, of.name, of.revision, f"{where}.revision"))
    if profile.evaluation.suite != "local":
        scored = ("paper", "paper_others") if profile.evaluation.suite == "paper" else (profile.evaluation.suite,)
        names = (benchmark.dataset for suite in scored for benchmark in suites.SUITES[suite].values())
        found += [Wanted("dataset", name, suites.REVISIONS[name], "evaluation.suite") for name in names]
    return list(dict.fromkeys(found))


def missing(profile: Profile) -> list[Wanted]:
    """The repositories among those wanted that have not been fetched into the hub's cache."""
    return [each for each in wanted(profile) if hub.fetched(each.kind, each.name, each.revision) is None]


def check_fetched(profile: Profile, *, elsewhere: bool = False) -> None:
    """Raise `HubError` if HF_HUB_OFFLINE is set and a run needs something that is not in the hub's cache at all.

    If steps run `elsewhere`, on nodes that may have no network, warn of all that has not been fetched.
    """
    from huggingface_hub import constants

    not_whole = missing(profile)
    gone = [each for each in not_whole if hub.fetched(each.kind, each.name, each.revision, whole=False) is None]
    if constants.HF_HUB_OFFLINE and gone:
        raise hub.HubError(f"HF_HUB_OFFLINE is set, but {_not_fetched(gone)}")
    if elsewhere and not_whole:
        log.warning("steps on nodes without network would fail: %s", _not_fetched(not_whole))


def fetch(profile: Profile) -> Iterator[str]:
    """Download everything that a run reads from the hub into its cache; yields a line for each repository when it is
    there.

    Raises:
        HubError: one cannot be fetched, or its revision is not pinned.
    """
    repositories = wanted(profile)
    for each in repositories:  # before gigabytes of the others
        if not each.revision:
            raise hub.HubError(f"{each.name}: no revision; pin the commit with --set {each.setting}=COMMIT")
    for kind, name, revision, _ in repositories:
        yield f"{name} at {revision[:8]}: {hub.fetch(kind, name, revision)}"
    if _check_tasks(profile, ()):
        yield f"further tasks: {', '.join([*profile.evaluation.tasks, *profile.evaluation.big_bench])}"
    elif not repositories:
        yield "this profile reads nothing from the hub"


def _not_fetched(gone: Sequence[Wanted]) -> str:
    names = ", ".join(f"{each.name} ({each.setting.removesuffix('.revision')})" for each in gone)
    return f"not fetched: {names}; run `spin-repro fetch` with the same options where there is network"


def look(repository: Wanted) -> tuple[State, str]:
    """Ask the hub whether a repository can be read, with the user's token if there is one. Nothing is downloaded."""
    from huggingface_hub import HfApi, constants, errors

    kind, name, revision, setting = repository
    if hub.fetched(kind, name, revision) is not None:
        return "ok", f"fetched, {str(revision)[:8]}"
    if revision == "":
        return "refused", f"no revision; pin the commit with --set {setting}=COMMIT"
    if constants.HF_HUB_OFFLINE:
        return "unknown", "not checked: HF_HUB_OFFLINE is set; only what is already downloaded can be used"
    api = HfApi()
    try:
        api.repo_info(name, revision=revision, repo_type=kind, timeout=10.0)
        api.auth_check(name, repo_type=kind)
    except errors.GatedRepoError:
        page = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        return "refused", f"its licence must be accepted at {page}; then log in: hf auth login"
    except errors.RevisionNotFoundError:
        return "refused", f"has no revision {revision}; correct {setting}"
    except errors.RepositoryNotFoundError:
        return "refused", "no such repository, or a private one; check the name, or log in: hf auth login"
    except Exception as error:  # a dozen kinds of network error, all meaning the same here
        reason = (str(error).splitlines() or [""])[0]
        return "unknown", f"the hub does not answer ({type(error).__name__}: {reason[:120]})"
    return "ok", f"reachable at {revision[:8]}"
