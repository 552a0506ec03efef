"""What each step asks of a machine, and how many processes make it: one number follows from the other."""

from __future__ import annotations

from dataclasses import replace

from spin_utils.experiment.plan import Step
from spin_utils.files import runtime
from spin_utils.settings.machine import StepResources
from spin_utils.settings.run import ProcessSettings, Profile


def resources(profile: Profile, step: Step) -> StepResources:
    """What a step asks of the scheduler."""
    if step.stage in ("sft", "spin", "epochs", "subset", "dpo"):
        return profile.resources.training
    if step.stage in ("pairs", "mt_answers") or _is_sampled(profile, step):
        return profile.resources.generation
    measured = step.stage in ("evaluation", "heldout", "transfer")
    return profile.resources.evaluation if measured else profile.resources.other


def processes(profile: Profile, step: Step) -> ProcessSettings:
    """Processes that share the work of a step: as many as `processes.count` says, else one for each GPU that the step
    asks for and that is there, and at least one."""
    settings, asked = profile.processes, resources(profile, step).gpus
    if settings.count or not asked:
        return replace(settings, count=settings.count or 1)
    return replace(settings, count=max(1, min(asked, len(runtime.visible_gpus()))))


def stays_here(profile: Profile, step: Step) -> bool:
    """Whether a step runs where Snakemake does: it needs the network, and a cluster's nodes often have none."""
    return step.stage in ("data", "base", "mt_bench") or (
        step.stage == "preferences" and not _is_sampled(profile, step)
    )


def _is_sampled(profile: Profile, step: Step) -> bool:
    return step.stage == "preferences" and profile.dpo is not None and profile.dpo.preferences.source == "samples"
