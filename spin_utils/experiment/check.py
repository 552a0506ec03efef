"""`spin-repro check`: whether a profile can run here, before anything long starts.

Versions, inputs and the hub are looked at; memory, disk and hours are predicted. Nothing is trained, and of models
only a config.json is fetched; demonstrations are read, because their number counts.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from spin_utils.data.demonstrations import load as load_demonstrations
from spin_utils.data.rows import RowError
from spin_utils.evaluation import judge
from spin_utils.experiment import architectures, clock, fitting, forecast, hub_access, memory_model, plan, stages
from spin_utils.experiment.forecast import Lengths
from spin_utils.experiment.machine import Machine
from spin_utils.experiment.memory_model import Need
from spin_utils.files import artifacts, paths
from spin_utils.model.base import ModelError
from spin_utils.paper.cost_model import Architecture, Run
from spin_utils.settings.inputs import DemonstrationSettings, SettingsError
from spin_utils.settings.run import Profile

State = Literal["ok", "note", "unknown", "refused"]
Verdict = Literal["fits", "does not fit", "unknown"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the check."""

    what: str
    state: State
    """`note`: worth knowing; `unknown`: cannot be said now; `refused`: the run would not start or not end."""
    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that the check found."""

    profile: str
    machine: str
    verdict: Verdict
    """About memory and disk."""
    findings: list[Finding]

    def ready(self) -> bool:
        """Whether nothing speaks against starting."""
        return self.verdict != "does not fit" and all(finding.state != "refused" for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {**dataclasses.asdict(self), "ready": self.ready()}

    def lines(self) -> list[str]:
        """The report as text."""
        marks = {"ok": "ok", "note": "note", "unknown": "?", "refused": "NO"}
        head = f"profile {self.profile} on {self.machine}: {self.verdict}"
        width = max(len(finding.what) for finding in self.findings)
        return [head, *(f"  {marks[f.state]:<5}{f.what:<{width}}  {f.text}" for f in self.findings)]


def check(profile: Profile, machine: Machine, seed: int = 0) -> Report:
    """Look at a profile and a machine.

    Args:
        profile: the validated profile.
        machine: where it is to run.
        seed: whose finished steps count as done.
    """
    findings = [_versions(), Finding("device", "ok", f"{machine.name}, {_gb(machine.memory)} free on each")]
    asked = {wanted: hub_access.look(wanted) for wanted in hub_access.wanted(profile)}
    findings += _hub(asked)
    rows, finding = _rows("demonstrations", profile.demonstrations if plan.needs_data(profile) else None)
    control, other = _rows("sft_control", plan.control_demonstrations(profile))
    findings += [*finding, *other]
    try:
        reachable = any(wanted.kind == "model" and access.state == "ok" for wanted, access in asked.items())
        found = architectures.find(profile.model, reachable=reachable)
    except ModelError as error:
        found = None
        findings.append(Finding("model", "refused", str(error)))
    if found is None:
        findings.append(
            Finding("memory", "unknown", "the model's sizes are not known until its config.json is reached")
        )
        return Report(profile.name, machine.name, "unknown", findings)
    architecture, source = found
    findings.append(Finding("model", "ok", f"{architecture.parameters / 1e9:.3g} billion parameters ({source})"))
    lengths = forecast.lengths(profile, rows, control)
    memory = [*_memory(profile, machine, architecture, lengths), *_vllm_gpus(profile, machine)]
    findings += memory
    try:
        made = plan.make(profile, seed)
        hours = _hours(made, machine, architecture, lengths)
    except (ModelError, RowError, SettingsError) as error:
        findings.append(Finding("plan", "refused", str(error)))
        fits: Verdict = "does not fit" if any(f.state == "refused" for f in memory) else "unknown"
        return Report(profile.name, machine.name, fits, findings)
    findings += [Finding("left out", "note", reason) for reason in plan.left_out(profile).splitlines()]
    findings += _judge(made)
    disk = _disk(made, machine, architecture, lengths)
    findings += [disk, hours]
    full = any(finding.state == "refused" for finding in [*memory, disk])
    return Report(profile.name, machine.name, "does not fit" if full else "fits", findings)


def _memory(profile: Profile, machine: Machine, a: Architecture, lengths: Lengths) -> Iterator[Finding]:
    devices = fitting.shared_by(profile, machine)
    for need in fitting.needs(profile, a, lengths, machine.kind, machine.width):
        alone, what = need.total(), f"memory: {need.stage}"
        parts = sorted({**need.sharded, **need.own}.items(), key=lambda part: -part[1])[:3]
        largest = ", ".join(f"{name} {_gb(size)}" for name, size in parts)
        text = f"{_gb(alone)} of {_gb(machine.memory)} ({largest})"
        if alone <= machine.memory:
            yield Finding(what, "ok", text)
        elif need.sharded and need.total(devices) <= machine.memory:
            shared = _gb(need.total(devices))
            yield Finding(what, "note", f"{text}; {shared} each when sharded over {devices} devices")
        else:
            changes = fitting.remedy(profile, need.stage, machine, a, lengths)
            yield Finding(what, "refused", f"{text}; {_fits_with(changes) if changes else _more_memory(need, machine)}")


def _fits_with(changes: Mapping[str, Any]) -> str:
    return f"fits with {' '.join(f'--set {name}={_yaml(value)}' for name, value in changes.items())}"


def _more_memory(need: Need, machine: Machine) -> str:
    """What helps a stage that no settings make fit as it is."""
    if not need.sharded or need.total(10**6) > machine.memory:
        return "take a smaller model or more memory"
    count = next(n for n in range(2, 10**6) if need.total(n) <= machine.memory)
    if count <= machine.devices:
        return _fits_with({"processes.sharding": "fsdp2", "resources.training.gpus": count})
    return f"shard it over {count} such devices or take a smaller model"


def _vllm_gpus(profile: Profile, machine: Machine) -> Iterator[Finding]:
    settings = profile.generation.vllm
    asked = max(1, settings.processes) * settings.tensor_parallel_size
    if profile.generation.backend == "vllm" and asked > machine.devices:
        text = f"{asked} GPUs of {machine.devices}; lower generation.vllm.processes or tensor_parallel_size"
        yield Finding("vLLM", "refused", text)


def _disk(made: plan.Plan, machine: Machine, a: Architecture, lengths: Lengths) -> Finding:
    need = disk_bytes(made, a, lengths)
    if machine.disk == float("inf"):
        return Finding("disk", "note", f"{_gb(need)} for one seed")
    state: State = "ok" if need <= machine.disk else "refused"
    hint = "" if state == "ok" else "; set SPIN_HOME to a larger disk, or lower spin.epochs_shown or spin.subsets"
    return Finding("disk", state, f"{_gb(need)} of {_gb(machine.disk)} for one seed{hint}")


def disk_bytes(made: plan.Plan, a: Architecture, lengths: Lengths) -> float:
    """Bytes of one seed's unfinished artifacts, and of the state that a running step keeps for resuming."""
    profile, one = made.profile, memory_model.checkpoint(a)
    spin, total = profile.spin, 0.0
    unfinished = [step for step in made if not artifacts.is_complete(step.directory)]
    for step in unfinished:
        if step.stage == "base":
            source = profile.released.get(step.name, profile.model).source
            # A folder stays where it is, and the hub's weights are bfloat16.
            total += {"directory": 0.0, "hub": one / 2}.get(source, one)
        if step.stage in ("sft", "spin", "subset", "dpo"):
            total += one
        if step.name == "spin-0" and spin.epochs_shown:
            total += one * (spin.training.epochs - 1)
        if step.stage == "epochs":
            total += one * (spin.epochs_shown - spin.training.epochs) + memory_model.optimizer_state(a, spin.training)
        if step.stage == "pairs":
            total += lengths.spin_rows * 4 * (lengths.prompt + lengths.real + lengths.generated)
    if any("training" in step.settings for step in unfinished):
        states = (memory_model.optimizer_state(a, settings) for settings in plan.trainings(profile).values())
        total += 2 * max(states)  # a new state is whole before the old goes
    return total


def _hours(made: plan.Plan, machine: Machine, a: Architecture, lengths: Lengths) -> Finding:
    predicted = forecast.hours(made, machine, a, lengths)
    by_stage: dict[str, float] = {}
    for name, value in predicted.items():
        stage = made.steps[name].stage
        by_stage[stage] = by_stage.get(stage, 0) + value
    parts = ", ".join(f"{stage} {_time(value)}" for stage, value in by_stage.items() if value)
    source = "counted from the rows" if lengths.known else "assumed"
    counted = f"{lengths.prompt} + {lengths.real} + {lengths.generated} tokens of prompt and responses {source}"
    text = (
        f"about {_time(sum(predicted.values()))} for {len(predicted)} unfinished steps ({parts}); cost model at "
        f"{machine.flops / 1e12:.3g} TFLOP/s and {machine.bandwidth / 1e9:.3g} GB/s a device, of which "
        f"{Run().utilisation:.0%} are reached; {counted}"
    )
    measured = clock.expected_seconds(made.profile.name)
    if measured:
        known = sum(measured.get(name, 0) for name in predicted) / 3600
        text += f"; these steps took {_time(known)} on {clock.measured_on(made.profile.name)}, which gave the results"
    return Finding("time", "ok", text)


def _hub(asked: Mapping[hub_access.Wanted, hub_access.Access]) -> list[Finding]:
    """What the hub says, repositories of the same answer together."""
    alike: dict[hub_access.Access, list[str]] = {}
    for repository, access in asked.items():
        alike.setdefault(access, []).append(repository.name)
    return [Finding("hub", access.state, f"{', '.join(names)}: {access.text}") for access, names in alike.items()]


def _judge(made: plan.Plan) -> list[Finding]:
    """What the judge of MT-Bench will be asked, and on whose account."""
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
    """Demonstrations by split, None if there are none or they cannot be read now, and what to say about them."""
    if settings is None:
        return None, []
    expected = settings.expected_rows
    try:
        made = load_demonstrations(settings)
    except RowError as error:
        away = settings.source == "hub" and bool(settings.revision) and "expected_rows" not in str(error)
        return None, [Finding(what, "unknown" if away else "refused", str(error))]
    splits = {split: getattr(made, split) for split in stages.SPLITS}
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items() if rows)
    return splits, [Finding(what, "ok", sizes + (f"; {expected:,} as expected" if expected else ""))]


def _versions() -> Finding:
    """Installed versions against the lock. A build such as 2.13.0+cpu counts as 2.13.0."""
    lock = paths.REPOSITORY / "requirements.lock"
    if not lock.is_file():
        return Finding("versions", "unknown", "no requirements.lock beside the package; run from a checkout")
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


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
