"""The command line: `spin-repro`, or `python -m spin_utils`. Its words are in `cli_parser`; here is what they do.

Commands that read results are in `cli_results`.

Exit status: 0 done, 1 a step failed, 2 bad input (nothing was started), 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from spin_utils.cli import cli_parser, cli_results
from spin_utils.cli.notebooks import StageError
from spin_utils.experiment.launching import LaunchError
from spin_utils.files import artifacts, paths, processes, runtime, seals, storage, warm_start
from spin_utils.files.storage import StorageError
from spin_utils.settings import profiles
from spin_utils.settings.inputs import LARGEST_SEED, SettingsError
from spin_utils.settings.run import Profile

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one clear line and exit status 2."""
    arguments = cli_parser.parse(argv)
    runtime.configure_logging()
    try:
        paths.settle_home()
        if "profile" in arguments:
            arguments.profile = cli_parser.profile(arguments.profile)
        if processes.launched():
            os.environ[runtime.HEADLESS] = "1"  # no bars of several processes in one terminal
        elif hasattr(signal, "SIGPIPE"):  # a worker saves its state though no one listens
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `spin-repro plan | head` ends quietly
        with storage.explained(paths.home()):
            return COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        log.error("Interrupted. Finished steps are kept; the same command goes on from there.")
        return 130
    except (StageError, StorageError, LaunchError, processes.LostProcessError) as error:
        log.error("Failed: %s", error)
        return 1
    except Exception as error:
        if not type(error).__module__.startswith("spin_utils"):
            raise  # a fault of the kit: the traceback is what helps
        log.error("Error: %s", error)
        return 2


def parse_seeds(text: str) -> list[int]:
    """Seeds as people write them.

    >>> parse_seeds("0,1,2")
    [0, 1, 2]
    """
    parts = [part for part in text.replace(" ", ",").split(",") if part]
    if not all(re.fullmatch(r"-?[0-9]{1,20}", part) for part in parts):
        raise SettingsError(f"seeds: {text[:80]!r}; write whole numbers separated by commas, such as 0,1,2")
    seeds = [int(part) for part in parts]
    if not seeds or len(set(seeds)) != len(seeds):
        raise SettingsError(f"seeds: {text[:80]!r}; write each seed once, at least one")
    if not all(0 <= seed < LARGEST_SEED for seed in seeds):
        raise SettingsError(f"seeds: {text[:80]!r}; write numbers from 0 to {LARGEST_SEED - 1}")
    return seeds


def step_command(profile: str, seed: int, step: str) -> str:
    """Shell command that makes one step; the Snakefile's rules run it.

    It takes the shell's place: at SIGTERM a shell would end before the step has saved.
    """
    python = [sys.executable, "-m", "spin_utils", "step", step, "--profile", profile, "--seed", str(seed)]
    return "exec " + shlex.join(warm_start.command(python))


def tables_command(profile: str, seeds: Sequence[int], name: str = "tables") -> str:
    """Shell command that makes the tables and figures: `tables`, or `first-tables` of the main chain alone."""
    text = ",".join(map(str, seeds))
    python = [sys.executable, "-m", "spin_utils", "step", name, "--profile", profile, "--seeds", text]
    return shlex.join(warm_start.command(python))


def _reproduce(arguments: argparse.Namespace) -> int:
    name, profile = _resolve(arguments)
    seeds = parse_seeds(arguments.seeds)
    if arguments.jobs < 0:
        raise SettingsError(f"jobs: {arguments.jobs} is negative; 0 takes one for each GPU, or 1")
    from spin_utils.cli import reproduction, scheduling
    from spin_utils.experiment import clock, mt_bench, plan, stages

    how = {"cluster": arguments.cluster, "jobs": arguments.jobs, "dry_run": arguments.dry_run}
    command = scheduling.command(name, profile, seeds, **how)
    stages.check_inputs(profile)
    for folder in (
        paths.home() / ".snakemake",
        *(f(profile.name) for f in (paths.artifacts, paths.results, paths.figures)),
    ):
        storage.check_writable(folder)
    if plan.left_out(profile):
        log.warning(plan.left_out(profile))
    plans = plan.make_all(profile, seeds)
    if not arguments.dry_run:
        mt_bench.check_judge(plans)
        clock.remember(profile.name)
    log.info("profile %s, seeds %s: results go to %s", profile.name, seeds, paths.relative(paths.results(profile.name)))
    for step in [] if arguments.dry_run else chain.from_iterable(plans):
        artifacts.adopt(step.directory)
    log.info(clock.outlook(plans))
    # Steps of a cluster start elsewhere.
    warm = arguments.cluster == scheduling.NODE and bool(clock.missing(plans))
    if reproduction.run(command, paths.artifacts(profile.name), warm=warm, dry_run=arguments.dry_run):
        log.error(
            "A step failed; its message stands above. Mend the cause and run the same command: it goes on from there."
        )
        return 1
    if arguments.dry_run:
        return 0
    log.info(clock.account(plans))
    for kind, folder in (("tables", paths.results(profile.name)), ("figures", paths.figures(profile.name))):
        log.info("%s: %s", kind, paths.relative(folder))
    return 0


def _step(arguments: argparse.Namespace) -> int:
    from spin_utils.cli import notebooks
    from spin_utils.experiment import plan
    from spin_utils.files import gpus

    profile = profiles.load(arguments.profile)
    if arguments.name == "tables":
        parse_seeds(arguments.seeds)
        output = paths.executed_notebooks(profile.name) / "05_tables_and_figures.ipynb"
        given: dict[str, Any] = {"profile": arguments.profile, "seeds": arguments.seeds}
        notebooks.run("05_tables_and_figures", given, output)
        return 0
    if arguments.name == "first-tables":
        from spin_utils.drawing import drawing
        from spin_utils.experiment import publishing, stages

        plans = plan.make_all(profile, parse_seeds(arguments.seeds))
        written = publishing.publish(plans) + drawing.draw(profile)
        stages.record_drawing(plan.first_tables(plans), plans[:1], written)
        log.info("tables and figures of the main chain: %s", paths.relative(paths.results(profile.name)))
        return 0
    steps = plan.make(profile, *parse_seeds(str(arguments.seed)))
    if arguments.name not in steps.steps:
        raise SettingsError(f"step {arguments.name!r}: unknown{profiles.nearest(arguments.name, steps.steps)}")
    if arguments.gpus < 0:
        raise SettingsError(f"gpus: {arguments.gpus} is negative; 0 takes whatever is there")
    step = steps.steps[arguments.name]
    with gpus.claim(arguments.gpus):
        if not step.notebook or processes.launched():
            from spin_utils.experiment import stages

            runtime.configure()
            with processes.group(profile.processes.sharding):
                return _training(lambda: stages.run(steps, step.name))
        output = paths.executed_notebooks(profile.name) / f"{step.notebook}-{step.name}-seed{arguments.seed}.ipynb"
        given = {"profile": arguments.profile, "seed": arguments.seed, **step.parameters}
        notebooks.run(step.notebook, given, output)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from spin_utils.cli import notebooks

    given = profiles.parse_overrides(arguments.parameter)
    name = cli_parser.profile(str(given.get("profile", "cpu")))
    profile = profiles.load(name)  # before a kernel starts
    if isinstance(given.get("profile"), str):
        given["profile"] = name
    if isinstance(given.get("seed"), int):
        parse_seeds(str(given["seed"]))
    if type(given.get("seeds")) is int:  # `-p seeds=1` reads as a number, and the notebook takes a list as text
        given["seeds"] = str(given["seeds"])
    _check_parameters(arguments.name, profile, given)
    own = paths.executed_notebooks(profile.name) / f"{arguments.name}.ipynb"
    output = paths.given(arguments.output) if arguments.output else own
    log.info("executed copy: %s", paths.relative(notebooks.run(arguments.name, given, output)))
    return 0


def _check_parameters(name: str, profile: Profile, given: dict[str, Any]) -> None:
    """Refuse parameters that lead to no step: a kernel would end in a KeyError, some after a training."""
    from spin_utils.cli import notebooks
    from spin_utils.experiment import plan

    path = paths.notebook(name)
    if not path.is_file():  # `notebooks.run` names the nearest
        return
    defaults = notebooks.parameters(path)
    asked = defaults | notebooks.check(path, given)
    made = [step.parameters for step in plan.make(profile, asked.get("seed", 0)) if step.notebook == name]
    chosen = {key: asked[key] for parameters in made[:1] for key in parameters}
    if chosen not in made and any(asked[key] != defaults[key] for key in chosen):
        mine, *known = (", ".join(f"{key}={value}" for key, value in each.items()) for each in (chosen, *made))
        raise SettingsError(f"{name}: {mine} is no step of profile {profile.name}{profiles.nearest(mine, known)}")


def _dpo(arguments: argparse.Namespace) -> int:
    runtime.ensure_environment()
    from spin_utils.experiment.dpo import dpo, read_settings

    runtime.configure()
    settings = read_settings(profiles.parse_overrides(arguments.set))
    model, pairs, out = map(paths.given, (arguments.model, arguments.pairs, arguments.out))
    with processes.group(settings.processes.sharding):
        status = _training(lambda: dpo(model, pairs, out, settings))
    if not status and not processes.launched():
        log.info("checkpoint, tokenizer and training.json: %s", paths.relative(out))
    return status


def _training(work: Callable[[], Any]) -> int:
    """Do what may train a model; returns the exit status."""
    try:
        work()
    except Exception as error:
        from spin_utils.training.training import Interrupted, NoMemoryError, NonFiniteLossError  # these need torch

        if isinstance(error, Interrupted):
            log.error("%s", error)
            return 130
        if isinstance(error, NoMemoryError | NonFiniteLossError):
            raise StageError(str(error)) from None
        raise
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from spin_utils.experiment import plan

    _, profile = _resolve(arguments)
    steps = [
        {
            "done": artifacts.is_complete(step.directory),
            "seed": made.seed,
            "step": step.name,
            "stage": step.stage,
            "inputs": step.inputs,
            "directory": paths.relative(step.directory),
        }
        for made in plan.make_all(profile, parse_seeds(arguments.seeds))
        for step in made
    ]
    if arguments.json:
        log.info(_indented(steps))
        return 0
    for row in steps:
        state = "done" if row["done"] else "to do"
        log.info("%-6s seed %d  %-12s %s", state, row["seed"], row["step"], row["directory"])
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    environment = runtime.child_environment(headless=runtime.is_headless())
    command = [sys.executable, "-m", "benchmarks", *arguments.rest]
    status = subprocess.run(command, cwd=paths.REPOSITORY, env=environment).returncode
    if status not in (0, 2):
        raise StageError(f"the benchmarks ended with exit status {status}; their message stands above")
    return status


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    log.info("%s", shtab.complete(cli_parser.build(), arguments.shell))
    return 0


def _indented(document: Any) -> str:
    return json.dumps(document, indent=1)


def _check(arguments: argparse.Namespace) -> int:
    from spin_utils.experiment import check, machine

    logging.getLogger("spin_utils").setLevel(logging.ERROR if arguments.json else logging.INFO)
    report = check.check(_resolve(arguments)[1], machine.chosen(arguments.gpus, arguments.gpu_memory))
    logging.getLogger("spin_utils").setLevel(logging.INFO)
    log.info("%s", _indented(report.document()) if arguments.json else "\n".join(report.lines()))
    return int(not report.ready())


def _resolve(arguments: argparse.Namespace) -> tuple[str, Profile]:
    """The profile with the command line's changes, and the name or file that other processes load it by.

    The file is named by its content: that of a run in progress stays, whatever is asked under the same name meanwhile.
    """
    changes: dict[str, Any] = {}
    if arguments.model is not None:
        changes["model"] = {"source": "directory", "path": str(paths.given(arguments.model))}
    if arguments.data is not None:
        changes["demonstrations"] = {"source": "file", "train": str(paths.given(arguments.data))}
    changes |= profiles.parse_overrides(arguments.set)  # last: they refine a section given above
    if not changes and not arguments.name:
        return arguments.profile, profiles.load(arguments.profile)
    if arguments.name:
        changes["name"] = arguments.name
    profile = profiles.load(arguments.profile, changes)  # refuses what the next line could not write
    lasting = {name: value for name, value in changes.items() if not name.startswith(("processes.", "resources."))}
    if "name" not in changes and lasting:
        name = f"{profile.name[:57]}-{_digest([arguments.profile, lasting])[:6]}"
        profile = dataclasses.replace(profile, name=name)
    file = paths.artifacts(profile.name) / f"profile-{_digest(profiles.as_dict(profile))[:12]}.yaml"
    return str(profiles.dump(profile, file)), profile


def _digest(data: Any) -> str:
    return hashlib.sha256(seals.canonical(data).encode()).hexdigest()


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "reproduce": _reproduce,
    "check": _check,
    "plan": _plan,
    "run": _run,
    "dpo": _dpo,
    "step": _step,
    "report": cli_results.report,
    "crate": cli_results.crate,
    "verdicts": cli_results.verdicts,
    "compare": cli_results.compare,
    "provenance": cli_results.provenance,
    "figures": cli_results.figures,
    "card": cli_results.card,
    "push": cli_results.push,
    "bench": _bench,
    "completion": _completion,
}
"""What does the work of each command of `cli_parser`."""
