"""The command line: `spin-repro`, or `python -m spin_utils`.

    spin-repro reproduce                              the whole paper at the cpu profile
    spin-repro reproduce --model DIR --data FILE      the same on your model and demonstrations
    spin-repro check --profile paper                  does it fit here, and how long will it take
    spin-repro run 03_spin_training -p model=spin-1   one notebook, with checked parameters
    spin-repro dpo --model DIR --pairs FILE --out DIR DPO on your chosen and rejected answers
    spin-repro figures                                tables and figures again, from the results
    spin-repro report                                 one HTML page of them, with verdicts and provenance
    spin-repro compare spin-3 sft                     two models on the same items, with intervals
    spin-repro provenance spin-3                      what a number was made from, back to model and data

Exit status: 0 done, 1 a stage failed, 2 bad input (nothing was started), 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin_utils import artifacts, paths, profiles, runtime
from spin_utils.input_settings import SettingsError
from spin_utils.notebooks import StageError
from spin_utils.settings import Profile

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one clear line and exit status 2."""
    arguments = _parser().parse_args(argv)
    runtime.configure_logging()
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `spin-repro plan | head` ends quietly
    try:
        return int(arguments.command(arguments) or 0)
    except KeyboardInterrupt:
        log.error("Interrupted. Finished steps are kept; the same command goes on from there.")
        return 130
    except StageError as error:
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
    try:
        seeds = [int(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        raise SettingsError(f"seeds: {text!r}; write whole numbers separated by commas, such as 0,1,2") from None
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise SettingsError(f"seeds: {text!r}; write each seed once, at least one, none negative")
    return seeds


def step_command(profile: str, seed: int, step: str) -> str:
    """Shell command that makes one step; the Snakefile's rules run it."""
    return shlex.join([sys.executable, "-m", "spin_utils", "step", step, "--profile", profile, "--seed", str(seed)])


def tables_command(profile: str, seeds: Sequence[int], name: str = "tables") -> str:
    """Shell command that makes the tables and figures: `tables`, or `first-tables` of the main chain alone."""
    text = ",".join(map(str, seeds))
    return shlex.join([sys.executable, "-m", "spin_utils", "step", name, "--profile", profile, "--seeds", text])


def _reproduce(arguments: argparse.Namespace) -> int:
    name, profile = _resolve(arguments)
    seeds = parse_seeds(arguments.seeds)
    from spin_utils import clock, plan, stages

    stages.check_inputs(profile)
    if plan.left_out(profile):
        log.warning(plan.left_out(profile))
    plans = plan.make_all(profile, seeds)
    log.info("profile %s, seeds %s: results go to %s", profile.name, seeds, paths.relative(paths.results(profile.name)))
    log.info(clock.outlook(plans))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.REPOSITORY / "Snakefile")]
    command += ["--directory", str(paths.home()), "--cores", str(os.cpu_count() or 1), "--nolock", "--rerun-incomplete"]
    command += ["--rerun-triggers", "input", "--quiet", "rules", "host", "reason"]
    command += ["--dry-run"] if arguments.dry_run else []
    command += ["--config", f"profile={name}", f"seeds={','.join(map(str, seeds))}", f"jobs={arguments.jobs}"]
    process = subprocess.Popen(command, env=runtime.child_environment(headless=True))
    try:
        status = process.wait()
    except KeyboardInterrupt:
        log.error("Stopping: the running step saves its state (Ctrl-C again stops at once).")
        process.wait()
        raise
    if status:
        log.error(
            "A step failed; its message stands above. Mend the cause and run the same command: it goes on from there."
        )
        return 1
    log.info(clock.account(plans))
    for kind, folder in (("tables", paths.results(profile.name)), ("figures", paths.figures(profile.name))):
        log.info("%s: %s", kind, paths.relative(folder))
    return 0


def _step(arguments: argparse.Namespace) -> int:
    from spin_utils import notebooks, plan

    profile = profiles.load(arguments.profile)
    if arguments.name == "tables":
        output = paths.executed_notebooks(profile.name) / "05_tables_and_figures.ipynb"
        given: dict[str, Any] = {"profile": arguments.profile, "seeds": arguments.seeds}
        notebooks.run("05_tables_and_figures", given, output)
        return 0
    if arguments.name == "first-tables":
        from spin_utils import drawing, publishing, stages

        plans = plan.make_all(profile, parse_seeds(arguments.seeds))
        written = publishing.publish(plans) + drawing.draw(profile)
        stages.record_drawing(plan.first_tables(plans), plans[:1], written)
        log.info("tables and figures of the main chain: %s", paths.relative(paths.results(profile.name)))
        return 0
    steps = plan.make(profile, arguments.seed)
    if arguments.name not in steps.steps:
        raise SettingsError(f"step {arguments.name!r}: unknown{profiles.nearest(arguments.name, steps.steps)}")
    step = steps.steps[arguments.name]
    if not step.notebook:
        from spin_utils import stages

        runtime.configure()
        stages.run(steps, step.name)
        return 0
    output = paths.executed_notebooks(profile.name) / f"{step.notebook}-{step.name}-seed{arguments.seed}.ipynb"
    given = {"profile": arguments.profile, "seed": arguments.seed, **step.parameters}
    notebooks.run(step.notebook, given, output)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from spin_utils import notebooks

    given = dict(profiles.parse_override(text) for text in arguments.parameter)
    output = Path(
        arguments.output or paths.executed_notebooks(str(given.get("profile", "cpu"))) / f"{arguments.name}.ipynb"
    )
    log.info("executed copy: %s", paths.relative(notebooks.run(arguments.name, given, output)))
    return 0


def _dpo(arguments: argparse.Namespace) -> int:
    runtime.ensure_environment()
    from spin_utils.dpo import dpo, read_settings
    from spin_utils.training import Interrupted, NonFiniteLossError

    runtime.configure()
    settings = read_settings(dict(profiles.parse_override(text) for text in arguments.set))
    model, pairs, out = (Path(p).expanduser().resolve() for p in (arguments.model, arguments.pairs, arguments.out))
    try:
        log.info("checkpoint, tokenizer and training.json: %s", paths.relative(dpo(model, pairs, out, settings)))
    except Interrupted as request:
        log.error("%s", request)
        return 130
    except NonFiniteLossError as error:
        raise StageError(str(error)) from None
    return 0


def _figures(arguments: argparse.Namespace) -> int:
    from spin_utils import drawing, readme

    profile = profiles.load(arguments.profile)
    for path in drawing.draw(profile):
        log.info("%s", paths.relative(path))
    if arguments.readme:
        readme.update(profile, paths.REPOSITORY / "README.md")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from spin_utils import report

    log.info("%s", paths.relative(report.write(profiles.load(arguments.profile))))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from spin_utils.compare import compare

    table = compare(arguments.profile, arguments.model, arguments.other)
    shown = table.to_json(orient="records", indent=1) if arguments.json else table.round(3).to_string(index=False)
    log.info("%s", shown)
    return 0


def _provenance(arguments: argparse.Namespace) -> int:
    from spin_utils import provenance

    log.info(provenance.describe(arguments.profile, arguments.seed, arguments.model, arguments.kind))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from spin_utils import plan

    _, profile = _resolve(arguments)
    for made in plan.make_all(profile, parse_seeds(arguments.seeds)):
        for step in made:
            state = "done" if artifacts.is_complete(step.directory) else "to do"
            log.info("%-6s seed %d  %-12s %s", state, made.seed, step.name, paths.relative(step.directory))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from spin_utils import check, machine

    _, profile = _resolve(arguments)
    gpus, gigabytes = arguments.gpus, arguments.gpu_memory
    if bool(gpus) != bool(gigabytes) or gpus < 0 or gigabytes < 0:
        raise SettingsError("check: --gpus and --gpu-memory describe another machine together, such as 8 and 80")
    logging.getLogger("spin_utils").setLevel(logging.ERROR if arguments.json else logging.INFO)
    report = check.check(profile, machine.described(gpus, gigabytes) if gpus else machine.here())
    logging.getLogger("spin_utils").setLevel(logging.INFO)
    if arguments.json:
        log.info("%s", json.dumps({**dataclasses.asdict(report), "ready": report.ready()}, indent=1))
    else:
        log.info("%s", "\n".join(report.lines()))
    return 0 if report.ready() else 1


def _card(arguments: argparse.Namespace) -> int:
    from spin_utils import cards

    path = cards.write(profiles.load(arguments.profile), arguments.model, arguments.seed)
    log.info("%s", paths.relative(path))
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from spin_utils import cards

    profile = profiles.load(arguments.profile)
    log.info("%s", cards.push(profile, arguments.model, arguments.repo, arguments.seed, public=arguments.public))
    return 0


def _resolve(arguments: argparse.Namespace) -> tuple[str, Profile]:
    """The profile with the command line's changes, and the name or file that other processes load it by."""
    changes: dict[str, Any] = dict(profiles.parse_override(text) for text in arguments.set)
    if arguments.model:
        changes["model"] = {"source": "directory", "path": str(Path(arguments.model).expanduser().resolve())}
    if arguments.data:
        changes["demonstrations"] = {"source": "file", "train": str(Path(arguments.data).expanduser().resolve())}
    if not changes:
        return arguments.profile, profiles.load(arguments.profile)
    digest = hashlib.sha256(artifacts.canonical([arguments.profile, changes]).encode()).hexdigest()[:6]
    changes["name"] = arguments.name or f"{Path(arguments.profile).stem}-{digest}"
    profile = profiles.load(arguments.profile, changes)
    return str(profiles.dump(profile, paths.artifacts(profile.name) / "profile.yaml")), profile


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spin-repro", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: Any, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=function)
        return sub

    def with_profile(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--profile", default="cpu", help="smoke, cpu, gpu, paper or a .yaml file (default: cpu)")

    def with_changes(sub: argparse.ArgumentParser) -> None:
        with_profile(sub)
        sub.add_argument("--seeds", default="0", help="training seeds, such as 0,1,2 (default: 0)")
        sub.add_argument("--model", metavar="DIR", help="your model: a folder of safetensors")
        sub.add_argument("--data", metavar="FILE", help="your demonstrations: .json, .jsonl or .parquet")
        sub.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="change one setting")
        sub.add_argument("--name", default="", help="name of the results folder for a changed profile")

    sub = command("reproduce", _reproduce, "run every step that is missing, then draw tables and figures")
    with_changes(sub)
    sub.add_argument("--jobs", type=int, default=1, help="steps run at the same time, sharing the cores (default: 1)")
    sub.add_argument("--dry-run", action="store_true", help="say what would be done")
    with_changes(command("plan", _plan, "list the steps and which of them are done"))
    sub = command("check", _check, "say before a run whether it fits here, and how long it will take")
    with_changes(sub)
    sub.add_argument("--gpus", type=int, default=0, help="check for another machine: its number of GPUs")
    sub.add_argument("--gpu-memory", type=float, default=0, metavar="GB", help="free memory of each of them")
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = command("run", _run, "run one notebook through papermill, with checked parameters")
    sub.add_argument("name", help="such as 03_spin_training")
    sub.add_argument("-p", "--parameter", metavar="NAME=VALUE", action="append", default=[], help="a parameter")
    sub.add_argument("-o", "--output", help="where the executed copy goes")
    sub = command("dpo", _dpo, "DPO on a file of pairs; a stopped run goes on when called again")
    sub.add_argument("--model", metavar="DIR", required=True, help="folder of safetensors: start and reference")
    sub.add_argument(
        "--pairs", metavar="FILE", required=True, help=".json, .jsonl or .parquet with prompt, chosen and rejected"
    )
    sub.add_argument("--out", metavar="DIR", required=True, help="folder for the result; nothing is overwritten")
    sub.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change one setting: training.beta=0.5, template.kind=text, template.too_long=truncate, seed=1, ...",
    )
    sub = command("step", _step, "make one step of the plan, as the Snakefile does")
    sub.add_argument("name", help="such as spin-0; `spin-repro plan` lists them")
    with_profile(sub)
    sub.add_argument("--seed", type=int, default=0, help="training seed")
    sub.add_argument("--seeds", default="0", help="seeds of the tables")
    with_profile(command("report", _report, "one HTML page of a run: verdicts, figures, tables, provenance"))
    sub = command("compare", _compare, "compare two models of a run on the same items, with intervals")
    sub.add_argument("model", help="such as spin-3")
    sub.add_argument("other", help="such as sft")
    with_profile(sub)
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = command("provenance", _provenance, "print what a number was made from, back to model and data")
    sub.add_argument("model", help="row of a table, such as sft or spin-3")
    with_profile(sub)
    sub.add_argument("--seed", type=int, default=0, help="training seed")
    kinds = ("evaluations", "transfer", "training", "generations", "heldout")
    sub.add_argument("--kind", choices=kinds, default="evaluations", help="which measurement (default: evaluations)")
    for name, function, summary in (
        ("card", _card, "write a model card with the run's settings and numbers"),
        ("push", _push, "upload a checkpoint and its card to the hub, with the token in HF_TOKEN"),
    ):
        sub = command(name, function, summary)
        sub.add_argument("--model", required=True, help="row of a table, such as spin-3")
        with_profile(sub)
        sub.add_argument("--seed", type=int, default=0, help="training seed")
    sub.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where on the hub; made if it is not there")
    sub.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    sub = command("figures", _figures, "redraw tables and figures from the results, without a model")
    with_profile(sub)
    sub.add_argument("--readme", action="store_true", help="also write the README's results table")
    return parser
