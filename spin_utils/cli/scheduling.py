"""How Snakemake is called, on this machine's cores and GPUs or on a cluster."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from spin_utils.files import gpus, paths
from spin_utils.settings.inputs import SettingsError
from spin_utils.settings.profiles import nearest
from spin_utils.settings.run import Profile

CLUSTERS = paths.REPOSITORY / "cluster"
"""Snakemake's profiles of the kit, a folder each."""
NODE = "node"
"""The one for this machine."""


def command(
    name: str, profile: Profile, seeds: Sequence[int], *, cluster: str = NODE, jobs: int = 0, dry_run: bool
) -> list[str]:
    """The command that makes every step that is missing.

    Args:
        name: by which other processes load the profile, or its file.
        profile: the same, loaded.
        seeds: training seeds.
        cluster: a folder of cluster/, or any folder with a Snakemake profile.
        jobs: steps at the same time; 0: one for each GPU of this machine if the profile asks for GPUs and else one,
            or what the cluster's profile says.
        dry_run: only say what would be done.

    Raises:
        SettingsError: no such cluster, or a path that Snakemake takes for a pattern.
    """
    for what, text in (("SPIN_HOME", str(paths.home())), ("profile", name)):
        if re.search("[{}]", text):
            raise SettingsError(f"{what}: {text}: Snakemake takes braces for wildcards; use a folder without them")
    if re.search(r": | #|['\"\n]", name):
        raise SettingsError(
            f"profile: {name!r}: Snakemake reads it as YAML, where quotes, ': ' and ' #' are no part of a path; use a "
            "folder without them"
        )
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.REPOSITORY / "Snakefile")]
    words += ["--directory", str(paths.home()), "--workflow-profile", str(_folder(cluster))]
    words += ["--dry-run"] if dry_run else []
    config = [f"profile={name}", f"seeds={','.join(map(str, seeds))}"]
    if cluster == NODE:
        kinds = (profile.resources.training, profile.resources.generation, profile.resources.evaluation)
        devices = len(gpus.visible()) if any(kind.gpus for kind in kinds) else 0
        words += ["--resources", f"gpu={devices}"] if devices else []
        config.append(f"jobs={jobs or max(1, devices)}")
    elif jobs:
        words += ["--jobs", str(jobs)]
    return [*words, "--config", *config]


def _folder(cluster: str) -> Path:
    known = sorted(path.name for path in CLUSTERS.iterdir() if path.is_dir())
    folder = CLUSTERS / cluster if cluster in known else paths.given(cluster)
    config = folder / "config.yaml"
    if not config.is_file():
        raise SettingsError(f"cluster {cluster!r}: no folder with a config.yaml{nearest(cluster, known)}")
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise SettingsError(f"{config}: not readable as YAML ({' '.join(str(error).split())})") from None
    executor = settings.get("executor", "local") if isinstance(settings, dict) else None
    if not isinstance(executor, str) or re.fullmatch("[a-z0-9-]+", executor) is None:
        raise SettingsError(f"{config}: names no executor of Snakemake; write one, such as executor: slurm")
    package = f"snakemake-executor-plugin-{executor}"
    if executor != "local" and importlib.util.find_spec(package.replace("-", "_")) is None:
        raise SettingsError(
            f"cluster {cluster!r}: not installed: {package}; run `{sys.executable} -m pip install {package}`"
        )
    return folder
