"""Snakemake: the command that walks the plan, on this machine or on a cluster, and the process that runs it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from spin_utils.cli.live import Display
from spin_utils.files import artifacts, paths, runtime, warm_start
from spin_utils.settings.inputs import SettingsError, require
from spin_utils.settings.profiles import nearest
from spin_utils.settings.run import Profile

CLUSTERS = paths.REPOSITORY / "cluster"
"""Snakemake's profiles of the kit, a folder each."""
NODE = "node"
"""The one for this machine."""
_LOOK_S = 0.5  # between two looks at what the steps are doing


def command(
    name: str, profile: Profile, seeds: Sequence[int], *, cluster: str = NODE, jobs: int = 0, dry_run: bool
) -> list[str]:
    """The command that makes every step that is missing.

    Args:
        name: by which other processes load the profile, or its file.
        cluster: a folder of cluster/, or any folder with a Snakemake profile.
        jobs: steps at the same time; 0: one for each GPU of this machine if the profile asks for GPUs, two of a tiny
            model, which has no use for a second thread, and else one, or what the cluster's profile says.

    Raises:
        SettingsError: no such cluster, or its plugin is not installed.
    """
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.REPOSITORY / "Snakefile")]
    words += ["--directory", str(paths.home()), "--workflow-profile", str(_folder(cluster))]
    words += ["--dry-run"] if dry_run else []
    config = [f"profile={name}", f"seeds={','.join(map(str, seeds))}"]
    if cluster == NODE:
        kinds = (profile.resources.training, profile.resources.generation, profile.resources.evaluation)
        devices = len(runtime.visible_gpus()) if any(kind.gpus for kind in kinds) else 0
        words += ["--resources", f"gpu={devices}"] if devices else []
        config.append(f"jobs={jobs or max(1 + (profile.model.source == 'tiny'), devices)}")
    elif jobs:
        words += ["--jobs", str(jobs)]
    return [*words, "--config", *config]


def step_command(profile: str, step: str, *options: str) -> str:
    """Shell command that makes one step; the Snakefile's rules run it.

    It takes the shell's place: at SIGTERM a shell would end before the step has saved.
    """
    python = [sys.executable, "-m", "spin_utils", "step", step, "--profile", profile, *options]
    return "exec " + shlex.join(warm_start.command(python))


def run(command: Sequence[str], folder: Path, shown: Display | None, *, warm: bool = False) -> int:
    """Run the scheduler for the artifacts in a folder; returns its exit status.

    What it writes goes to the log of `shown`; None leaves it where it is, for a dry run. With `warm`, steps and their
    kernels are forks of one process (`warm_start`).

    Of two reproductions in one folder the second waits: each would delete, as not its own, what the
    other has just made. A request to stop is passed on.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM arrived; the running step has saved its state.
    """
    environment = runtime.child_environment()
    environment.pop("SNAKEMAKE_PROFILE", None)  # the folder in the command is the whole profile
    if shown is None:
        return subprocess.call(command, env=environment)
    environment[runtime.EVENTS] = str(shown.events)
    waiting = "another one is running; waiting for it to finish"
    with artifacts.lock(folder / "reproduction", waiting) as held, shown as output:
        steps = warm_start.server(environment, output) if warm else contextlib.nullcontext(environment)
        with steps as environment:
            # The scheduler holds the lock as well: it may outlive this process.
            process = subprocess.Popen(command, env=environment, pass_fds=(held,), stdout=output, stderr=output)
            try:
                return _ended(process, shown)
            except KeyboardInterrupt:
                shown.say("Stopping: the running step saves its state (Ctrl-C again stops at once).")
                _pass_on(process.pid)
                _ended(process, shown)
                raise


def _ended(process: subprocess.Popen[bytes], shown: Display) -> int:
    """The exit status of a process, with the display kept up to date until then."""
    while True:
        try:
            return process.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            shown.update()


def _pass_on(scheduler: int) -> None:
    """SIGTERM for the scheduler and its steps. `kill` reaches one process only; after Ctrl-C, which reaches all, a
    SIGTERM changes nothing."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(scheduler)
        for process in [parent, *parent.children(recursive=True)]:
            # A kernel has a session of its own, and is told by the process that runs its notebook.
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == os.getsid(0):
                    process.send_signal(signal.SIGTERM)


def _folder(cluster: str) -> Path:
    known = sorted(path.name for path in CLUSTERS.iterdir() if path.is_dir())
    folder = CLUSTERS / cluster if cluster in known else paths.given(cluster)
    config = folder / "config.yaml"
    require(config.is_file(), f"cluster {cluster!r}: no folder with a config.yaml{nearest(cluster, known)}")
    try:
        executor = yaml.safe_load(config.read_text(encoding="utf-8")).get("executor", "local")
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise SettingsError(f"{config}: not readable as YAML ({' '.join(str(error).split())})") from None
    package = f"snakemake-executor-plugin-{executor}"
    if executor != "local" and importlib.util.find_spec(package.replace("-", "_")) is None:
        raise SettingsError(
            f"cluster {cluster!r}: not installed: {package}; run `{sys.executable} -m pip install {package}`"
        )
    return folder
