"""Whether the hub gives what a profile asks for: reachable, at that revision, licence accepted."""

from __future__ import annotations

from typing import Literal, NamedTuple

from spin_utils.evaluation import suites
from spin_utils.experiment.plan import control_demonstrations, needs_data
from spin_utils.settings.run import Profile

Kind = Literal["model", "dataset"]
TIMEOUT = 10.0
"""Seconds to wait for an answer."""


class Wanted(NamedTuple):
    """A repository of the hub that a profile reads."""

    kind: Kind
    name: str
    revision: str | None
    """Commit; None where lm-eval takes the newest."""
    setting: str
    """Setting that names the commit."""


class Access(NamedTuple):
    """What was found about a repository."""

    state: Literal["ok", "refused", "unknown"]
    text: str


def wanted(profile: Profile) -> list[Wanted]:
    """Every repository that a run of the profile reads."""
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
    """Ask the hub for a repository. Nothing is downloaded; the user's own token is used if there is one."""
    from huggingface_hub import HfApi, constants, errors

    kind, name, revision, setting = repository
    if revision == "":
        return Access("refused", f"no revision; pin the commit with --set {setting}=COMMIT")
    if constants.HF_HUB_OFFLINE:
        return Access("unknown", "not looked up: HF_HUB_OFFLINE is set; only what is already downloaded can be used")
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
    except Exception as error:  # a dozen kinds of network trouble, which mean the same here
        reason = (str(error).splitlines() or [""])[0]
        return Access("unknown", f"the hub does not answer ({type(error).__name__}: {reason[:120]})")
    return Access("ok", "reachable" if revision is None else f"reachable at {revision[:8]}")
