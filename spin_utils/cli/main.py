"""The command line: `spin-repro`, or `python -m spin_utils`.

Each command imports what it needs when it is called, so that help and completion answer at once.

Exit status: 0 done, 1 a step failed, 2 bad input (nothing was started), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from spin_utils.cli import notebooks
from spin_utils.files import artifacts, disk, paths, processes, runtime
from spin_utils.files.paths import KitError
from spin_utils.settings import profiles
from spin_utils.settings.inputs import LARGEST_SEED, SettingsError
from spin_utils.settings.run import Profile

log = logging.getLogger(__name__)

NAME = "spin-repro"
HELP = """\b
Re-measure the paper Self-Play Fine-Tuning (SPIN) at the scale of this machine.

\b
  spin-repro reproduce                              the whole paper at the cpu profile
  spin-repro reproduce --model DIR --data FILE      the same on your model and demonstrations
  spin-repro check --profile paper                  does it fit here, and how long will it take

`spin-repro COMMAND --help` shows examples of a command."""
EXIT_STATUS = """\b
Exit status:
  0    done
  1    a step failed; its message says where, and the same command resumes there
       (check: the run would not fit or not start)
  2    bad input; nothing was started
  130  interrupted; finished steps are kept"""

app = typer.Typer(
    name=NAME,
    help=HELP,
    epilog=EXIT_STATUS,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 120},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (by default those of this process) spell out; returns the exit status."""
    runtime.configure_logging()
    try:
        return app(arguments, prog_name=NAME, standalone_mode=False) or 0
    except typer.TyperException as error:  # an unknown option, a missing argument
        log.error("Error: %s", error.format_message())
        return error.exit_code


@app.callback()
def _before(context: typer.Context) -> None:
    context.with_resource(_one_line_errors())
    paths.settle_home()
    if processes.launched():
        os.environ[runtime.HEADLESS] = "1"  # no bars of several processes in one terminal
    else:  # a worker saves its state even if its output is closed
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `spin-repro plan | head` ends quietly
        context.with_resource(runtime.sigterm_as_ctrl_c())


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Errors that the user can fix, which say their exit status, end in one line; a bug keeps its traceback."""
    try:
        with disk.explained(paths.REPOSITORY):
            yield
    except KeyboardInterrupt:
        log.error("Interrupted. Finished steps are kept; the same command resumes there.")
        raise typer.Exit(130) from None
    except Exception as error:
        if (status := getattr(error, "exit_status", None)) is None:
            raise
        log.error("%s%s", {1: "Failed: ", 2: "Error: "}.get(status, ""), error)
        raise typer.Exit(status) from None


def _whole_path(profile: str) -> str:
    """A profile as it was typed; of a YAML file the whole path, because kernels run in another folder."""
    return str(paths.given(profile)) if paths.is_yaml(profile) else profile


def _assignments(*names: str, help: str) -> Any:
    """An option that takes NAME=VALUE and may be given several times."""
    return Option(*names, metavar="NAME=VALUE", default_factory=list, show_default=False, help=help)


ProfileName = Annotated[
    str,
    Option(
        "--profile",
        callback=_whole_path,
        help="smoke, laptop, cpu, dialogue, gpu, gpu-7b, paper, paper-released or a .yaml file",
    ),
]
ModelFolder = Annotated[str, Option("--model", metavar="DIR", help="your model: a folder of safetensors")]
DataFile = Annotated[str, Option("--data", metavar="FILE", help="your demonstrations: .json, .jsonl or .parquet")]
Changes = Annotated[
    list[str], _assignments("--set", help="change one setting, such as spin.iterations=2; may be given several times")
]
ResultsName = Annotated[str, Option("--name", help="name of the results folder for a changed profile")]
Seeds = Annotated[str, Option(help="training seeds, such as 0,1,2")]
Seed = Annotated[int, Option(min=0, metavar="N", help="training seed")]
TableRow = Annotated[str, Option("--model", help="row of a table, such as spin-3")]
Json = Annotated[bool, Option("--json", help="for programs")]
Kind = Literal["evaluations", "transfer", "training", "generations", "heldout", "mt_bench", "instructions"]


def _command(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with the name and the docstring of its function, and examples below its help."""
    lines = "\n".join(f"  {NAME} {example}".rstrip() for example in examples)
    return app.command(epilog=f"\b\nExamples:\n{lines}")


@_command(
    "reproduce --profile smoke",
    "reproduce --seeds 0,1,2",
    "reproduce --model path/to/model --data rows.jsonl --set 'template={kind: chat}' --name mine",
    "reproduce --set spin.betas=[0.5] --name half-beta",
)
def reproduce(
    *,
    profile: ProfileName = "cpu",
    model: ModelFolder = "",
    data: DataFile = "",
    changes: Changes,
    name: ResultsName = "",
    seeds: Seeds = "0",
    jobs: Annotated[int, Option(min=0, metavar="N", help="steps at the same time (0: one per GPU, or as fits)")] = 0,
    cluster: Annotated[str, Option(help="slurm, or a folder with a Snakemake profile")] = "node",
    dry_run: Annotated[bool, Option("--dry-run", help="show what would be done")] = False,
) -> None:
    """Run every step that is missing, then draw tables and figures."""
    profile, loaded = _resolve(profile, model, data, changes, name)
    numbers = parse_seeds(seeds)
    from spin_utils.cli import live, scheduler
    from spin_utils.experiment import clock, plan

    command = scheduler.command(profile, loaded, numbers, cluster=cluster, jobs=jobs, dry_run=dry_run)
    done = False
    with contextlib.suppress(KitError):  # the checks below say better what is wrong
        plans = plan.make_all(loaded, numbers)
        drawn = plan.tables(plans).directory
        done = not dry_run and not clock.missing(plans) and artifacts.is_complete(drawn)
    if done and not (paths.results(loaded.name) / "tables").is_dir():
        log.info("%s was deleted: tables and figures are drawn again", paths.relative(paths.results(loaded.name)))
        shutil.rmtree(drawn)
        done = False
    if done:
        log.info("profile %s, seeds %s: every step is done.", loaded.name, numbers)
        live.sum_up(loaded)
        return
    from spin_utils.experiment import mt_bench, preflight

    preflight.check_fetched(loaded, elsewhere=cluster != scheduler.NODE)
    preflight.check_inputs(loaded)
    for folder in (paths.artifacts, paths.results, paths.figures):
        disk.check_writable(folder(loaded.name))
    disk.check_writable(paths.home() / ".snakemake")
    if plan.left_out(loaded):
        log.warning(plan.left_out(loaded))
    plans = plan.make_all(loaded, numbers)
    if not dry_run:
        mt_bench.check_judge(plans)
        clock.remember(loaded.name)
        if reused := sum(artifacts.adopt(step.directory) for step in clock.missing(plans)):
            log.info("steps taken from runs of other profiles with the same settings: %d", reused)
    log.info("profile %s, seeds %s: results go to %s", loaded.name, numbers, paths.relative(paths.results(loaded.name)))
    log.info(clock.outlook(plans))
    warm = cluster == scheduler.NODE and bool(clock.missing(plans))  # steps of a cluster start elsewhere
    shown = None if dry_run else live.Display(plans)
    if scheduler.run(command, paths.artifacts(loaded.name), shown, warm=warm):
        if shown:
            shown.failed()
        log.error("A step failed; see its message above. Fix the cause and run the same command: it resumes there.")
        raise typer.Exit(1)
    if shown:
        live.sum_up(loaded)


@_command("check --profile cpu", "check --profile paper --gpus 8 --gpu-memory 80")
def check(
    *,
    profile: ProfileName = "cpu",
    model: ModelFolder = "",
    data: DataFile = "",
    changes: Changes,
    name: ResultsName = "",
    gpus: Annotated[int, Option(help="check for another machine: its number of GPUs")] = 0,
    gpu_memory: Annotated[float, Option(metavar="GB", help="free memory of each of them")] = 0,
    as_json: Json = False,
) -> None:
    """Check before a run whether it fits this machine, and how long it will take."""
    from spin_utils.experiment import estimate, preflight

    logging.disable(logging.WARNING if as_json else logging.NOTSET)  # what the kit says and libraries warn of
    try:
        report = preflight.check(_resolve(profile, model, data, changes, name)[1], estimate.machine(gpus, gpu_memory))
    finally:
        logging.disable(logging.NOTSET)
    log.info("%s", json.dumps(report.document(), indent=1) if as_json else "\n".join(report.lines()))
    raise typer.Exit(int(not report.ready()))


@_command("fetch --profile gpu", "fetch --profile paper --set demonstrations.revision=COMMIT")
def fetch(*, profile: ProfileName = "cpu", model: ModelFolder = "", data: DataFile = "", changes: Changes) -> None:
    """Download a profile's models, rows and benchmarks into the hub's cache, for machines without network."""
    from spin_utils.experiment import preflight

    for line in preflight.fetch(_resolve(profile, model, data, changes, "")[1]):
        log.info("%s", line)


@_command("plan --profile smoke", "plan --seeds 0,1,2 --json")
def plan(
    *,
    profile: ProfileName = "cpu",
    model: ModelFolder = "",
    data: DataFile = "",
    changes: Changes,
    name: ResultsName = "",
    seeds: Seeds = "0",
    as_json: Json = False,
) -> None:
    """List the steps and which of them are done."""
    from spin_utils.experiment import plan

    loaded = _resolve(profile, model, data, changes, name)[1]
    steps = [
        {
            "done": artifacts.is_complete(step.directory),
            "seed": made.seed,
            "step": step.name,
            "stage": step.stage,
            "inputs": step.inputs,
            "directory": paths.relative(step.directory),
        }
        for made in plan.make_all(loaded, parse_seeds(seeds))
        for step in made
    ]
    if as_json:
        log.info(json.dumps(steps, indent=1))
        return
    for row in steps:
        state = "done" if row["done"] else "to do"
        log.info("%-6s seed %d  %-12s %s", state, row["seed"], row["step"], row["directory"])


@_command("show-row --profile smoke", "show-row --model path/to/model --data rows.jsonl --row rows-17")
def show_row(
    *,
    profile: ProfileName = "cpu",
    model: ModelFolder = "",
    data: DataFile = "",
    changes: Changes,
    row: Annotated[str, Option(metavar="N", help="number of the training row, from 1, or its id")] = "1",
) -> None:
    """Print a training row as the model sees it: special tokens, which tokens carry the loss, where answers end."""
    from spin_utils.drawing.views import explore
    from spin_utils.experiment import plan

    made = plan.make(_resolve(profile, model, data, changes, "")[1], 0)
    log.info("%s", explore.training_text(made, row))


@_command("run 01_sft_baseline -p profile=smoke", "run 03_spin_training -p profile=smoke -p model=spin-1")
def run(
    name: Annotated[str, Argument(help="such as 03_spin_training")],
    *,
    parameters: Annotated[list[str], _assignments("-p", "--parameter", help="a parameter")],
) -> None:
    """Run one notebook through papermill, with checked parameters."""
    given = profiles.parse_overrides(parameters)
    if "profile" in given:
        given["profile"] = _whole_path(str(given["profile"]))
    loaded = profiles.load(given.get("profile", "cpu"))  # before a kernel starts
    if type(given.get("seeds")) is int:  # `-p seeds=1` reads as a number, and the notebook takes a list as text
        given["seeds"] = str(given["seeds"])
    executed = paths.executed_notebooks(loaded.name) / f"{name}.ipynb"
    log.info("executed copy: %s", paths.relative(notebooks.run(name, given, executed)))


@_command("dpo --model path/to/model --pairs pairs.jsonl --out path/to/result --set training.beta=0.1")
def dpo(
    *,
    model: Annotated[str, Option(metavar="DIR", help="folder of safetensors: start and reference")],
    pairs: Annotated[str, Option(metavar="FILE", help=".json, .jsonl or .parquet with prompt, chosen and rejected")],
    out: Annotated[str, Option(metavar="DIR", help="folder for the result; nothing is overwritten")],
    changes: Annotated[
        list[str],
        _assignments("--set", help="training.beta=0.5, template.kind=text, template.too_long=truncate, seed=1, ..."),
    ],
) -> None:
    """DPO on a file of pairs; a stopped run resumes when called again."""
    runtime.ensure_environment()
    from spin_utils.experiment.dpo import dpo, read_settings

    runtime.configure()
    settings = read_settings(profiles.parse_overrides(changes))
    result = paths.given(out)
    with processes.group("ddp"):
        dpo(paths.given(model), paths.given(pairs), result, settings)
    if not processes.launched():
        log.info("checkpoint, tokenizer and training.json: %s", paths.relative(result))


@_command("step spin-0 --profile smoke --seed 1")
def step(
    name: Annotated[str, Argument(help="such as spin-0; `spin-repro plan` lists them")],
    *,
    profile: ProfileName = "cpu",
    seed: Seed = 0,
    seeds: Annotated[str, Option(help="seeds of the tables")] = "0",
    gpus: Annotated[int, Option(min=0, metavar="N", help="GPUs to reserve for it (0: all there are)")] = 0,
) -> None:
    """Make one step of the plan, as the Snakefile does."""
    from spin_utils.experiment import plan

    loaded = profiles.load(profile)
    if name in ("tables", "first-tables"):
        with runtime.telling_of(name):
            _draw(name, profile, loaded, seeds)
        return
    steps = plan.make(loaded, seed)
    made = steps.step(name)
    with runtime.claim_gpus(gpus), runtime.telling_of(made.directory.name):
        if made.notebook and not processes.launched():
            executed = paths.executed_notebooks(loaded.name) / f"{made.notebook}-{name}-seed{seed}.ipynb"
            notebooks.run(made.notebook, {"profile": profile, "seed": seed, **made.parameters}, executed)
            return
        from spin_utils.experiment import run

        runtime.configure()
        with processes.group(loaded.processes.sharding):
            run.make(steps, name)


@_command("report --profile smoke")
def report(*, profile: ProfileName = "cpu") -> None:
    """One HTML page of a run: verdicts, figures, tables, provenance."""
    from spin_utils.drawing.report import write

    log.info("%s", paths.relative(write(profiles.load(profile), figures=False)[-1]))


@_command("summary --profile smoke")
def summary(*, profile: ProfileName = "cpu") -> None:
    """A run on two pages of A4 (PDF), to print and to hand out."""
    from spin_utils.drawing.report import write_summary

    log.info("%s", paths.relative(write_summary(profiles.load(profile))))


@_command("crate --profile smoke")
def crate(*, profile: ProfileName = "cpu") -> None:
    """Pack a run as one RO-Crate (Process Run Crate), for an archive."""
    from spin_utils.drawing.crate import write

    log.info("%s", paths.relative(write(profiles.load(profile))))


@_command("verdicts --profile smoke", "verdicts --verdict reproduced --json")
def verdicts(
    *,
    profile: ProfileName = "cpu",
    verdict: Annotated[str, Option(help="only these, such as 'not reproduced'")] = "",
    as_json: Json = False,
) -> None:
    """Print the verdict on every table, figure and claim of the paper."""
    from spin_utils.paper.claims import read, tally

    table = read(paths.results(profiles.folder(profile)), verdict)
    if as_json:
        log.info(table.to_json(orient="records", indent=1))
        return
    for row in table.itertuples():
        log.info("%-16s %-28s %s", row.verdict, row.id, row.statement)
    log.info("%s", tally(table["verdict"]))


@_command(
    "compare spin-3 sft",
    "compare spin-1 sft --profile smoke --json",
    "compare hinge/spin-3 cpu/spin-3",
    "compare mine cpu --html mine-cpu.html",
)
def compare(
    model: Annotated[str, Argument(help="such as spin-3, or PROFILE/spin-3 of another run")],
    other: Annotated[str, Argument(help="such as sft")],
    *,
    profile: ProfileName = "cpu",
    html: Annotated[str, Option(metavar="FILE", help="also write a page with the answers that changed")] = "",
    as_json: Json = False,
) -> None:
    """Compare two models, of one run or of two, on the same items, with intervals."""
    from spin_utils.paper.compare import compare

    if html:
        from spin_utils.drawing.comparison import side_by_side

        disk.write_text(paths.given(html), side_by_side(model, other, profiles.folder(profile)).page)
    table = compare(profiles.folder(profile), model, other)
    log.info(table.to_json(orient="records", indent=1) if as_json else table.round(3).to_string(index=False))


@_command("power --items 2400 --seeds 8", "power --profile smoke --items 100 --seeds 1")
def power(
    *,
    profile: ProfileName = "cpu",
    items: Annotated[int, typer.Option(min=2, help="planned items, over all tasks")],
    seeds: Annotated[int, typer.Option(min=1, help="planned training seeds")],
) -> None:
    """Estimate which differences a run of this size could detect, from the spread of a finished one."""
    from spin_utils.drawing import draw
    from spin_utils.paper import power, results

    table = power.plan(results.counted(draw.scores(profiles.load(profile))), items, seeds)
    table = table.set_axis(
        ["contrast", "measured", "± today", f"± with {items} x {seeds}", "found in 4 of 5 runs"], axis="columns"
    )
    log.info("%s", table.round(2).to_string(index=False))


@_command("provenance spin-3", "provenance spin-1 --profile smoke --kind training --json")
def provenance(
    model: Annotated[str, Argument(help="row of a table, such as sft or spin-3")],
    *,
    profile: ProfileName = "cpu",
    seed: Seed = 0,
    kind: Annotated[Kind, Option(help="which measurement")] = "evaluations",
    as_json: Json = False,
) -> None:
    """Trace a number back to the model and data it was made from."""
    from spin_utils.experiment import publish

    of = (profiles.folder(profile), seed, model, kind)
    log.info("%s", json.dumps(publish.provenance(*of), indent=1) if as_json else publish.describe_provenance(*of))


@_command("figures", "figures --profile smoke")
def figures(
    *,
    profile: ProfileName = "cpu",
    readme: Annotated[
        bool, Option("--readme", help="commit these results: the README's table, and what runs agree with")
    ] = False,
) -> None:
    """Redraw tables and figures from the results, without a model."""
    from spin_utils.drawing import draw

    loaded = profiles.load(profile)
    for path in draw.write(draw.compose(loaded), loaded):
        log.info("%s", paths.relative(path))
    if readme:
        from spin_utils.drawing.report import update
        from spin_utils.paper import agreement

        update(loaded, paths.REPOSITORY / "README.md")
        agreement.write(loaded.name, draw.scores(loaded), paths.results(loaded.name))


@_command("card --model spin-3")
def card(*, model: TableRow, profile: ProfileName = "cpu", seed: Seed = 0) -> None:
    """Write a model card with a run's settings and numbers, for a checkpoint that you put on the hub (`hf upload`)."""
    from spin_utils.drawing import card

    log.info("%s", paths.relative(card.write(profiles.load(profile), model, seed)))


def parse_seeds(text: str) -> list[int]:
    """Seeds as a user writes them.

    >>> parse_seeds("0,1,2")
    [0, 1, 2]
    """
    try:
        seeds = [int(part) for part in str(text).replace(",", " ").split()]  # papermill makes a single one a number
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds) or not all(0 <= seed < LARGEST_SEED for seed in seeds):
        raise SettingsError(f"seeds: {str(text)[:80]!r}; write whole numbers from 0, each once, such as 0,1,2")
    return seeds


def _resolve(profile: str, model: str, data: str, changes: Sequence[str], name: str) -> tuple[str, Profile]:
    """The profile with the command line's changes, and the name or file from which other processes load it.

    The file is named by its content: that of a run in progress stays, whatever is asked under the same name meanwhile.
    """
    changed: dict[str, Any] = {}
    if model:
        changed["model"] = {"source": "directory", "path": str(paths.given(model))}
    if data:
        changed["demonstrations"] = {"source": "file", "train": str(paths.given(data))}
    changed |= profiles.parse_overrides(changes)  # last: they refine a section given above
    if name:
        changed["name"] = name
    loaded = profiles.load(profile, changed)
    if not changed:
        return profile, loaded
    lasting = {key: value for key, value in changed.items() if not key.startswith(("processes.", "resources."))}
    if "name" in changed and (profiles.PROFILES / f"{loaded.name}.yaml").is_file():
        raise KitError(
            f"--name {loaded.name}: a profile of the kit, whose results would be replaced; give another name"
        )
    if "name" not in changed and lasting:
        loaded = dataclasses.replace(loaded, name=f"{loaded.name[:57]}-{disk.digest([profile, lasting])[:6]}")
    file = paths.artifacts(loaded.name) / f"profile-{disk.digest(dataclasses.asdict(loaded))[:12]}.yaml"
    return str(profiles.dump(loaded, file)), loaded


def _draw(name: str, profile: str, loaded: Profile, seeds: str) -> None:
    """Make `tables` in their notebook, or `first-tables`, those of the main chain, right here."""
    numbers = parse_seeds(seeds)
    if name == "tables":
        executed = paths.executed_notebooks(loaded.name) / "05_tables_and_figures.ipynb"
        notebooks.run("05_tables_and_figures", {"profile": profile, "seeds": seeds}, executed)
        return
    from spin_utils.drawing import draw
    from spin_utils.experiment import plan, publish, run

    plans = plan.make_all(loaded, numbers)
    written = publish.publish(plans) + draw.write(draw.compose(loaded), loaded)
    run.record_drawing(plan.first_tables(plans), plans[:1], written)
    log.info("tables and figures of the main chain: %s", paths.relative(paths.results(loaded.name)))
