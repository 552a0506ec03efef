"""Checks before any long work: a run's inputs, and for `spin-repro check` whether it can run here at all.

`check_inputs` raises; `check` reports. Nothing is trained, and only a model's config.json is fetched.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from spin_utils.data import families, preferences
from spin_utils.data.demonstrations import Demonstrations
from spin_utils.data.demonstrations import load as load_demonstrations
from spin_utils.data.rows import Row, RowError, listed, question, read_rows
from spin_utils.data.templates import TooLongError, encode_rows
from spin_utils.evaluation import judge, suites
from spin_utils.experiment import clock, forecast, launch, plan, sizes
from spin_utils.experiment.plan import Plan, control_demonstrations, needs_data, trainings
from spin_utils.experiment.sizes import Lengths, Machine, Workload
from spin_utils.files import artifacts, paths
from spin_utils.files.paths import KitError
from spin_utils.model import base
from spin_utils.model.base import ModelError
from spin_utils.paper import generations, results
from spin_utils.settings.inputs import DemonstrationSettings, SettingsError, TemplateSettings
from spin_utils.settings.run import Profile


def check_inputs(profile: Profile) -> None:
    """Raise if a run's inputs are wrong or do not fit together, before any long work.

    Raises:
        KitError, RowError, TemplateError, EvaluationError, MtBenchError: naming the file, the row and the remedy.
    """
    from spin_utils.experiment import mt_bench
    from spin_utils.model import vllm
    from spin_utils.training import trackers

    trackers.check({name for training in trainings(profile).values() for name in training.trackers})
    launch.check(profile.processes)
    for settings in (profile.model, *profile.released.values()):
        base.identity(settings)
    if needs_data(profile):
        demonstrations = load_demonstrations(profile.demonstrations)
        _check_together(profile, demonstrations)
        _check_control(profile, demonstrations)
        if not profile.released:
            _check_preferences(profile, demonstrations)
    elif profile.evaluation.tasks:
        from spin_utils.evaluation import harness  # takes seconds

        harness.check_tasks(profile.evaluation, ())
    if profile.released:
        return
    if profile.generation.backend == "vllm":
        vllm.check_environment(profile.generation.vllm)
    if profile.mt_bench is not None:
        mt_bench.check(profile.mt_bench)


def _check_together(profile: Profile, demonstrations: Demonstrations) -> None:
    """Raise if model folder, demonstrations and tasks do not fit together."""
    if profile.model.source == "directory":
        base.check_folder(Path(profile.model.path), profile.template)
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
    names = {row["family"] for rows in vars(demonstrations).values() for row in rows}
    for name in names:
        if name.lower() == "average":
            raise RowError(f"demonstrations: family {name!r} has the name that tables use for the mean; rename it")
    if profile.demonstrations.source == "file":
        _check_graders(demonstrations)
        if profile.model.source == "directory":  # the first stage makes or unpacks other tokenizers
            check_fit(Path(profile.model.path), profile, vars(demonstrations))
    if profile.evaluation.tasks:
        from spin_utils.evaluation import harness  # takes seconds

        harness.check_tasks(profile.evaluation, names)


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
        folder = Path(profile.model.path)
        _, whole = check_lengths(base.load_tokenizer(folder), profile.template, {"control": rows})
        _check_positions(folder, base.positions(folder), "row of sft_control", whole["control"])


def _check_preferences(profile: Profile, demonstrations: Demonstrations) -> None:
    """Raise if pairs for DPO cannot be trained on or their prompts are held out."""
    if profile.dpo is None or profile.dpo.preferences.source == "samples":
        return
    pairs = preferences.load(profile.dpo.preferences)
    _check_not_held_out("dpo.preferences", pairs, profile, demonstrations)
    if profile.model.source == "directory":  # as above
        check_pair_lengths(Path(profile.model.path), profile)


def check_pair_lengths(model: Path, profile: Profile) -> None:
    """Encode every pair of a DPO file once, because it is only used after the main chain.

    Raises:
        TooLongError: a pair is too long; names the response and the row.
        ModelError: a pair needs more positions than the model has.
    """
    if profile.dpo is None or profile.dpo.preferences.source != "file":
        return
    try:
        pairs = preferences.load(profile.dpo.preferences)
        encoded = preferences.encode_preferences(base.load_tokenizer(model), profile.template, pairs)
    except TooLongError as error:
        raise TooLongError(f"dpo.preferences, {error}") from None
    rows = [len(pair["prompt_ids"]) + max(len(pair["real_ids"]), len(pair["generated_ids"])) for pair in encoded]
    _check_positions(model, base.positions(model), "row of dpo.preferences", max(rows, default=0))


def _check_not_held_out(name: str, rows: Sequence[Row], profile: Profile, demonstrations: Demonstrations) -> None:
    if profile.evaluation.suite != "local":
        return
    held_out = {question(row): row["id"] for row in demonstrations.test}
    faults = [
        f"{name}, row {row['id']}: the prompt is held out for evaluation (row {held_out[question(row)]}); "
        "remove one of them"
        for row in rows
        if question(row) in held_out
    ]
    if faults:
        raise RowError(listed(faults))


def _check_graders(demonstrations: Demonstrations) -> None:
    """Raise if a grader does not give its own row's response full marks: it cannot grade other answers."""
    faults = [
        f"row {row['id']}: the grader does not give the row's own response full marks; correct it or leave grader out"
        for row in (*demonstrations.sft, *demonstrations.validation, *demonstrations.test)
        if "grader" in row and families.grade(row, row["response"]) != 1.0
    ]
    if faults:
        raise RowError(listed(faults))


def check_fit(model: Path, profile: Profile, splits: Mapping[str, Sequence[Row]]) -> None:
    """Raise if rows in any split are too long for the model to train on or to answer.

    Raises:
        TooLongError: a row is too long for the template; names the split and the row.
        ModelError: a prompt and its longest answer need more positions than the model has.
    """
    longest, rows = check_lengths(base.load_tokenizer(model), profile.template, splits)
    positions = base.positions(model)
    for split in ("sft", "spin"):
        _check_positions(model, positions, f"{split} row", rows.get(split, 0))
    answers = {"generation": profile.generation.max_new_tokens, "evaluation": profile.evaluation.max_new_tokens}
    asked = {"spin": "generation", "validation": "generation", "test": "evaluation", "transfer": "evaluation"}
    for split, section in asked.items():
        prompt, answer = longest.get(split, 0), answers[section]
        end = split == "spin" and profile.spin.training.end_truncated  # training appends it to a truncated answer
        needed = prompt + answer + end
        if prompt and needed > positions:
            raise base.ModelError(
                f"{model}: has {positions} positions, and the longest {split} prompt ({prompt} tokens) with "
                f"{section}.max_new_tokens ({answer}) needs {needed}{' with its end token' if end else ''}; lower it, "
                "or shorten the prompts"
            )


def check_start(plan: Plan, model: Path) -> None:
    """Check the lengths of all rows and pairs of a run, as soon as its base model's tokenizer is available."""
    data = plan.directory("data")
    asked = {split: read_rows(data / f"{split}.jsonl") for split in ("spin", "validation", "test", "transfer")}
    check_fit(model, plan.profile, asked)
    check_pair_lengths(model, plan.profile)


def _check_positions(model: Path, positions: int, what: str, tokens: int) -> None:
    if tokens > positions:
        raise base.ModelError(
            f"{model}: has {positions} positions, and the longest {what} has {tokens} tokens; shorten it, or lower "
            "template.max_prompt_tokens or template.max_response_tokens"
        )


def check_lengths(
    tokenizer: Any, template: TemplateSettings, splits: Mapping[str, Sequence[Row]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Length of the longest prompt and of the longest row in each split, from encoding every row once.

    Returns:
        Tokens of each split's longest prompt, and of its longest row (prompt and response).

    Raises:
        TooLongError: a row is too long; names the split and the row.
    """
    prompts, whole = {}, {}
    for split, rows in splits.items():
        cut = template.too_long == "drop" and split in ("test", "transfer")  # only for evaluation
        try:
            encoded = encode_rows(tokenizer, replace(template, too_long="truncate") if cut else template, rows)
        except TooLongError as error:
            raise TooLongError(f"demonstrations, {split} {error}") from None
        prompts[split] = max((len(row.prompt_ids) for row in encoded), default=0)
        whole[split] = max((len(row.prompt_ids) + len(row.response_ids) for row in encoded), default=0)
    return prompts, whole


State = Literal["ok", "note", "unknown", "refused"]
Verdict = Literal["fits", "does not fit", "unknown"]


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
    verdict: Verdict
    """About memory and disk."""
    findings: list[Finding]

    def ready(self) -> bool:
        """Whether the run can start."""
        return self.verdict != "does not fit" and all(finding.state != "refused" for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """The report as data for JSON."""
        return {**dataclasses.asdict(self), "ready": self.ready()}

    def lines(self) -> list[str]:
        """The report as lines of text."""
        marks = {"ok": "ok", "note": "note", "unknown": "?", "refused": "NO"}
        head = f"profile {self.profile} on {self.machine}: {self.verdict}"
        width = max(len(finding.what) for finding in self.findings)
        return [head, *(f"  {marks[f.state]:<5}{f.what:<{width}}  {f.text}" for f in self.findings)]


def check(profile: Profile, machine: Machine, seed: int = 0) -> Report:
    """Report whether a profile can run on a machine: versions, hub, rows, memory, disk and hours.

    Args:
        profile: the validated profile.
        machine: where it would run.
        seed: the seed whose finished steps count as done.
    """
    from spin_utils.experiment import memory  # needs torch

    findings = [_versions(), Finding("device", "ok", f"{machine.name}, {_gb(machine.memory)} free on each")]
    asked = {repository: look(repository) for repository in wanted(profile)}
    findings += _hub(asked)
    rows, said = _rows("demonstrations", profile.demonstrations if needs_data(profile) else None)
    control, also_said = _rows("sft_control", control_demonstrations(profile))
    findings += [*said, *also_said, *_tasks(profile, rows)]
    reachable = any(repository.kind == "model" and access.state == "ok" for repository, access in asked.items())
    try:
        found = sizes.architecture(profile.model, reachable=reachable)
    except ModelError as error:
        found = None
        findings.append(Finding("model", "refused", str(error)))
    if found is None:
        text = "the model's sizes are unknown until its config.json can be read"
        return Report(profile.name, machine.name, "unknown", [*findings, Finding("memory", "unknown", text)])
    architecture, source = found
    findings.append(Finding("model", "ok", f"{architecture.parameters / 1e9:.3g} billion parameters ({source})"))
    lengths = sizes.lengths(profile, rows, control)
    needs = memory.needs(profile, architecture, lengths, machine.kind, machine.width)
    room = [_memory(need, memory.shared_by(profile, machine), machine) for need in needs]
    room += _vllm_gpus(profile, machine)
    findings += room
    try:
        made = plan.make(profile, seed)
        predicted = forecast.hours(made, machine, architecture, lengths)
    except (ModelError, RowError, SettingsError) as error:
        findings.append(Finding("plan", "refused", str(error)))
        full = any(finding.state == "refused" for finding in room)
        return Report(profile.name, machine.name, "does not fit" if full else "unknown", findings)
    findings += [Finding("left out", "note", reason) for reason in plan.left_out(profile).splitlines()]
    findings += _judge(made) + _entry(profile)
    room.append(_disk(memory.disk(made, architecture, lengths), machine))
    findings += [room[-1], _hours(made, predicted, machine, lengths)]
    full = any(finding.state == "refused" for finding in room)
    return Report(profile.name, machine.name, "does not fit" if full else "fits", findings)


def entry_test(heldout: pd.DataFrame) -> tuple[bool, str]:
    """Whether the first iteration learnt to tell real responses from generated ones, on held-out pairs.

    If it did not, the opponent may already match the data, and there self-play stops (Theorem 5.2). The loss it reaches
    gives a lower bound on their divergence (Lemma C.2).

    Args:
        heldout: from `results.load_heldout`, with `spin-0`.

    Returns:
        Whether the 95 % interval of the accuracy, clustered by prompt and over pairs that differ, lies above 1/2; and
        a sentence that says so.
    """
    first = heldout[heldout["model"] == "spin-0"]
    margin = first["real_drift"] - first["generated_drift"]  # exactly 0 if the two responses are the same
    prompts = pd.DataFrame({"id": first["id"], "right": margin > 0, "differ": margin != 0}).groupby("id").sum()
    differ = prompts["differ"].sum()
    if not differ:
        return False, "all held-out responses equal the real ones: nothing to learn (Theorem 5.2)"
    accuracy = prompts["right"].sum() / differ
    spread = 1.96 * float(((prompts["right"] - accuracy * prompts["differ"]) ** 2).sum()) ** 0.5 / differ
    bound = max(0.0, generations.jsd_bounds(first)["jsd_bound"].mean())
    text = (
        f"real and generated responses are told apart in {accuracy:.1%} of the {differ} held-out pairs that differ "
        f"[{accuracy - spread:.1%}, {accuracy + spread:.1%}]; the divergence between data and opponent (JSD) is at "
        f"least {bound:.4f} nats"
    )
    learnable = bool(accuracy - spread > 0.5)
    return learnable, text if learnable else f"{text}: nothing to learn (Theorem 5.2)"


def _entry(profile: Profile) -> list[Finding]:
    try:
        heldout = results.load_heldout(paths.results(profile.name))
    except results.ResultsError:
        return []  # drawing will report the damaged file
    if heldout.empty or "spin-0" not in set(heldout["model"]):
        return []
    learnable, text = entry_test(heldout)
    return [Finding("entry test", "ok" if learnable else "note", text)]


def _memory(need: Any, devices: int, machine: Machine) -> Finding:
    """Whether a stage's `memory.Need` fits on a device, alone or sharded over several."""
    alone, shared = need.total(), need.total(devices)
    parts = sorted({**need.sharded, **need.own}.items(), key=lambda part: -part[1])[:3]
    largest = ", ".join(f"{name} {_gb(size)}" for name, size in parts)
    text = f"{_gb(alone)} of {_gb(machine.memory)} ({largest})"
    if alone <= machine.memory:
        return Finding(f"memory: {need.stage}", "ok", text)
    if shared <= machine.memory:
        return Finding(
            f"memory: {need.stage}", "note", f"{text}; {_gb(shared)} each when sharded over {devices} devices"
        )
    return Finding(f"memory: {need.stage}", "refused", f"{text}; {need.lower}")


def _vllm_gpus(profile: Profile, machine: Machine) -> Iterator[Finding]:
    settings = profile.generation.vllm
    asked = max(1, settings.processes) * settings.tensor_parallel_size
    if profile.generation.backend == "vllm" and asked > machine.devices:
        text = f"{asked} GPUs of {machine.devices}; lower generation.vllm.processes or tensor_parallel_size"
        yield Finding("vLLM", "refused", text)


def _disk(need: float, machine: Machine) -> Finding:
    if machine.disk == float("inf"):
        return Finding("disk", "note", f"{_gb(need)} for one seed")
    text = f"{_gb(need)} of {_gb(machine.disk)} for one seed"
    if need <= machine.disk:
        return Finding("disk", "ok", text)
    more = "set SPIN_HOME to a larger disk, or lower spin.epochs_shown or spin.subsets"
    return Finding("disk", "refused", f"{text}; {more}")


def _hours(made: Plan, predicted: Mapping[str, float], machine: Machine, lengths: Lengths) -> Finding:
    by_stage: dict[str, float] = {}
    for name, value in predicted.items():
        stage = made.steps[name].stage
        by_stage[stage] = by_stage.get(stage, 0) + value
    parts = ", ".join(f"{stage} {_time(value)}" for stage, value in by_stage.items() if value)
    source = "counted from the rows" if lengths.known else "assumed"
    counted = f"{lengths.prompt} + {lengths.real} + {lengths.generated} tokens of prompt and responses {source}"
    text = (
        f"about {_time(sum(predicted.values()))} for {len(predicted)} unfinished steps ({parts}); cost model at "
        f"{machine.flops / 1e12:.3g} TFLOP/s and {machine.bandwidth / 1e9:.3g} GB/s per device at "
        f"{Workload().utilisation:.0%} utilisation; {counted}"
    )
    measured = clock.expected_seconds(made.profile.name)
    if measured:
        known = sum(measured.get(name, 0) for name in predicted) / 3600
        text += f"; for the existing results these steps took {_time(known)} on {clock.measured_on(made.profile.name)}"
    return Finding("time", "ok", text)


def _hub(asked: Mapping[Wanted, Access]) -> list[Finding]:
    """The hub's answers, one finding for all repositories with the same answer."""
    alike: dict[Access, list[str]] = {}
    for repository, access in asked.items():
        alike.setdefault(access, []).append(repository.name)
    return [Finding("hub", access.state, f"{', '.join(names)}: {access.text}") for access, names in alike.items()]


def _judge(made: Plan) -> list[Finding]:
    """The number of requests to MT-Bench's judge, and whose account pays for them."""
    settings = made.profile.mt_bench
    missing = [step for step in made if step.stage == "mt_bench" and not artifacts.is_complete(step.directory)]
    if settings is None or not missing:
        return []
    each = forecast.judge_requests(settings)
    text = (
        f"{len(missing) * each} requests to {settings.judge} at {settings.base_url}, {each} for each of {len(missing)} "
        f"models, on the account of {judge.KEY}"
    )
    return [Finding("judge", "note", text)]


def _rows(what: str, settings: DemonstrationSettings | None) -> tuple[dict[str, Any] | None, list[Finding]]:
    """Demonstrations by split, None if they cannot be read now, and findings about them."""
    if settings is None:
        return None, []
    expected = settings.expected_rows
    try:
        made = load_demonstrations(settings)
    except RowError as error:
        away = settings.source == "hub" and bool(settings.revision) and "expected_rows" not in str(error)
        return None, [Finding(what, "unknown" if away else "refused", str(error))]
    splits = vars(made)
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items() if rows)
    return splits, [Finding(what, "ok", sizes + (f"; {expected:,} as expected" if expected else ""))]


def _tasks(profile: Profile, rows: Mapping[str, Any] | None) -> list[Finding]:
    """Further lm-eval tasks, loaded and scored on one item as at the start of a run."""
    if not profile.evaluation.tasks:
        return []
    from spin_utils.evaluation import harness  # takes seconds

    try:
        harness.check_tasks(profile.evaluation, {row["family"] for split in (rows or {}).values() for row in split})
    except KitError as error:
        return [Finding("tasks", "refused", str(error))]
    return [Finding("tasks", "ok", ", ".join(profile.evaluation.tasks))]


def _versions() -> Finding:
    """Installed versions compared with the lock; builds like 2.13.0+cpu count as 2.13.0."""
    lock = paths.REPOSITORY / "requirements.lock"
    if not lock.is_file():
        return Finding("versions", "unknown", "no requirements.lock next to the package; run from a checkout")
    wanted = [line.split("==") for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
    other = []
    for name, version in wanted:
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "missing"
        if installed.partition("+")[0] != version.partition("+")[0]:
            other.append(f"{name} {installed} instead of {version}")
    if not other:
        return Finding("versions", "ok", f"all {len(wanted)} packages as in requirements.lock")
    more = f" and {len(other) - 5} more" if len(other) > 5 else ""
    return Finding("versions", "note", f"{', '.join(other[:5])}{more}; make setup installs the lock")


def _gb(size: float) -> str:
    if size < 1e9:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:.1f} GB" if size < 1e11 else f"{size / 1e9:.0f} GB"


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


Kind = Literal["model", "dataset"]
TIMEOUT = 10.0
"""Seconds to wait for the hub's answer."""


class Wanted(NamedTuple):
    """A hub repository that a profile reads."""

    kind: Kind
    name: str
    revision: str | None
    """Commit; None if lm-eval uses the latest."""
    setting: str
    """Setting that names the commit."""


class Access(NamedTuple):
    """Whether a repository can be read."""

    state: Literal["ok", "refused", "unknown"]
    text: str


def wanted(profile: Profile) -> list[Wanted]:
    """Every hub repository that a run of the profile reads."""
    found = [
        Wanted("model", model.name, model.revision, f"{where}.revision")
        for where, model in {
            "model": profile.model,
            **{f"released.{k}": v for k, v in profile.released.items()},
        }.items()
        if model.source == "hub"
    ]
    for where, data in (
        ("", profile.demonstrations if needs_data(profile) else None),
        ("sft_control.", control_demonstrations(profile)),
    ):
        if data is not None and data.source == "hub":
            found.append(Wanted("dataset", data.name, data.revision, f"{where}demonstrations.revision"))
    if profile.dpo and profile.dpo.preferences.source == "hub" and not profile.released:
        pairs = profile.dpo.preferences
        found.append(Wanted("dataset", pairs.name, pairs.revision, "dpo.preferences.revision"))
    if profile.evaluation.suite != "local":
        scored = ("paper", "paper_others") if profile.evaluation.suite == "paper" else (profile.evaluation.suite,)
        names = dict.fromkeys(b.dataset for suite in scored for b in suites.SUITES[suite].values())
        found += [Wanted("dataset", name, None, "") for name in names]
    return found


def look(repository: Wanted) -> Access:
    """Ask the hub whether a repository can be read, with the user's token if there is one. Nothing is downloaded."""
    from huggingface_hub import HfApi, constants, errors

    kind, name, revision, setting = repository
    if revision == "":
        return Access("refused", f"no revision; pin the commit with --set {setting}=COMMIT")
    if constants.HF_HUB_OFFLINE:
        return Access("unknown", "not checked: HF_HUB_OFFLINE is set; only what is already downloaded can be used")
    api = HfApi()
    try:
        api.repo_info(name, revision=revision, repo_type=kind, timeout=TIMEOUT)
        api.auth_check(name, repo_type=kind)
    except errors.GatedRepoError:
        page = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        return Access("refused", f"its licence must be accepted at {page}; then log in: hf auth login")
    except errors.RevisionNotFoundError:
        return Access("refused", f"has no revision {revision}; correct {setting}")
    except errors.RepositoryNotFoundError:
        return Access("refused", "no such repository, or a private one; check the name, or log in: hf auth login")
    except Exception as error:  # a dozen kinds of network error, all meaning the same here
        reason = (str(error).splitlines() or [""])[0]
        return Access("unknown", f"the hub does not answer ({type(error).__name__}: {reason[:120]})")
    return Access("ok", "reachable" if revision is None else f"reachable at {revision[:8]}")
