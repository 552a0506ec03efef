"""What can be typed after `spin-repro`: commands, options, and an example for each. What they do stands in `cli`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import shtab

from spin_utils.files import paths

DESCRIPTION = """\
Re-measure the paper Self-Play Fine-Tuning (SPIN) at the scale of this machine.

    spin-repro reproduce                              the whole paper at the cpu profile
    spin-repro reproduce --model DIR --data FILE      the same on your model and demonstrations
    spin-repro check --profile paper                  does it fit here, and how long will it take
    spin-repro run 03_spin_training -p model=spin-1   one notebook, with checked parameters
    spin-repro dpo --model DIR --pairs FILE --out DIR DPO on your chosen and rejected answers
    spin-repro figures                                tables and figures again, from the results
    spin-repro report                                 one HTML page of them, with verdicts and provenance
    spin-repro crate                                  all of it with its provenance as one RO-Crate, for an archive
    spin-repro compare spin-3 sft                     two models on the same items, with intervals
    spin-repro provenance spin-3                      what a number was made from, back to model and data

`spin-repro COMMAND --help` shows examples of a command."""

EXIT_STATUS = """\
exit status:
  0    done
  1    a step failed; its message says where, and the same command goes on from there
       (check: the run would not fit or not start)
  2    bad input; nothing was started
  130  interrupted; finished steps are kept"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `command` is the command's name, `rest` what `bench` passes on."""
    parser = build()
    arguments, arguments_left = parser.parse_known_args(argv)
    if arguments_left and arguments.command != "bench":
        parser.error(f"unrecognized arguments: {' '.join(arguments_left)}")
    arguments.rest = arguments_left
    return arguments


def profile(text: str) -> str:
    """A profile as it was typed; of a YAML file the whole path, because kernels run in another folder.

    Raises:
        PathError: the file's path is none.
    """
    return str(paths.given(text)) if paths.is_yaml(text) else text


def build() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="spin-repro",
        description=DESCRIPTION,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
        lines = "\n".join(f"  spin-repro {name} {example}".rstrip() for example in examples)
        return commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    sub = command(
        "reproduce",
        "run every step that is missing, then draw tables and figures",
        "--profile smoke",
        "--seeds 0,1,2",
        "--model path/to/model --data rows.jsonl --set 'template={kind: chat}' --name mine",
        "--set spin.betas=[0.5] --name half-beta",
    )
    _with_changes(sub)
    _with_seeds(sub)
    sub.add_argument("--jobs", type=int, default=0, help="steps at the same time (default: one for each GPU, or 1)")
    sub.add_argument("--cluster", default="node", help="slurm, or a folder with a Snakemake profile (default: node)")
    sub.add_argument("--dry-run", action="store_true", help="say what would be done")
    sub = command(
        "check",
        "say before a run whether it fits here, and how long it will take",
        "--profile cpu",
        "--profile paper --gpus 8 --gpu-memory 80",
    )
    _with_changes(sub)
    sub.add_argument("--gpus", type=int, default=0, help="check for another machine: its number of GPUs")
    sub.add_argument("--gpu-memory", type=float, default=0, metavar="GB", help="free memory of each of them")
    _with_json(sub)
    sub = command("plan", "list the steps and which of them are done", "--profile smoke", "--seeds 0,1,2 --json")
    _with_changes(sub)
    _with_seeds(sub)
    _with_json(sub)
    sub = command(
        "run",
        "run one notebook through papermill, with checked parameters",
        "01_sft_baseline -p profile=smoke",
        "03_spin_training -p profile=smoke -p model=spin-1 -o executed.ipynb",
    )
    sub.add_argument("name", help="such as 03_spin_training")
    sub.add_argument("-p", "--parameter", metavar="NAME=VALUE", action="append", default=[], help="a parameter")
    _file(sub.add_argument("-o", "--output", help="where the executed copy goes"))
    sub = command(
        "dpo",
        "DPO on a file of pairs; a stopped run goes on when called again",
        "--model path/to/model --pairs pairs.jsonl --out path/to/result --set training.beta=0.1",
    )
    _folder(
        sub.add_argument("--model", metavar="DIR", required=True, help="folder of safetensors: start and reference")
    )
    _file(
        sub.add_argument(
            "--pairs", metavar="FILE", required=True, help=".json, .jsonl or .parquet with prompt, chosen and rejected"
        )
    )
    _folder(
        sub.add_argument("--out", metavar="DIR", required=True, help="folder for the result; nothing is overwritten")
    )
    sub.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change one setting: training.beta=0.5, template.kind=text, template.too_long=truncate, seed=1, ...",
    )
    sub = command("step", "make one step of the plan, as the Snakefile does", "spin-0 --profile smoke --seed 1")
    sub.add_argument("name", help="such as spin-0; `spin-repro plan` lists them")
    _with_profile(sub)
    _with_seed(sub)
    sub.add_argument("--seeds", default="0", help="seeds of the tables")
    sub.add_argument("--gpus", type=int, default=0, help="GPUs to take for it alone (default: 0, whatever is there)")
    sub = command("report", "one HTML page of a run: verdicts, figures, tables, provenance", "--profile smoke")
    _with_profile(sub)
    sub = command("crate", "the whole of a run as one RO-Crate (Process Run Crate), for an archive", "--profile smoke")
    _with_profile(sub)
    sub = command(
        "verdicts",
        "print how every table, figure and claim of the paper came out",
        "--profile smoke",
        "--verdict reproduced --json",
    )
    _with_profile(sub)
    sub.add_argument("--verdict", default="", help="only these, such as 'not reproduced'")
    _with_json(sub)
    sub = command(
        "compare",
        "compare two models of a run, or of two, on the same items, with intervals",
        "spin-3 sft",
        "spin-1 sft --profile smoke --json",
        "hinge/spin-3 cpu/spin-3",
    )
    sub.add_argument("model", help="such as spin-3, or PROFILE/spin-3 of another run")
    sub.add_argument("other", help="such as sft")
    _with_profile(sub)
    _with_json(sub)
    sub = command(
        "provenance",
        "print what a number was made from, back to model and data",
        "spin-3",
        "spin-1 --profile smoke --kind training --json",
    )
    sub.add_argument("model", help="row of a table, such as sft or spin-3")
    _with_profile(sub)
    _with_seed(sub)
    kinds = ("evaluations", "transfer", "training", "generations", "heldout", "mt_bench")
    sub.add_argument("--kind", choices=kinds, default="evaluations", help="which measurement (default: evaluations)")
    _with_json(sub)
    sub = command("figures", "redraw tables and figures from the results, without a model", "", "--profile smoke")
    _with_profile(sub)
    sub.add_argument("--readme", action="store_true", help="also write the README's results table")
    sub = command("card", "write a model card with a run's settings and numbers", "--model spin-3")
    _with_trained_model(sub)
    sub = command(
        "push",
        "upload a checkpoint and its card to the hub, with the token in HF_TOKEN",
        "--model spin-3 --repo owner/name",
    )
    _with_trained_model(sub)
    sub.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where on the hub; made if it is not there")
    sub.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    command(
        "bench",
        "time the kit against its peers; options are those of `python -m benchmarks`",
        "",
        "--runs 3 --only sample_vs_generate",
    )
    sub = command(
        "completion",
        "print the shell's completion of these commands",
        "bash > ~/.local/share/bash-completion/completions/spin-repro",
        "zsh > ~/.zfunc/_spin-repro",
    )
    sub.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def _with_profile(sub: argparse.ArgumentParser) -> None:
    option = sub.add_argument(
        "--profile",
        default="cpu",
        help="smoke, laptop, cpu, gpu, paper, paper-released or a .yaml file (default: cpu)",
    )
    _file(option)


def _with_seeds(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--seeds", default="0", help="training seeds, such as 0,1,2 (default: 0)")


def _with_seed(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--seed", type=int, default=0, help="training seed")


def _with_trained_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", required=True, help="row of a table, such as spin-3")
    _with_profile(sub)
    _with_seed(sub)


def _with_changes(sub: argparse.ArgumentParser) -> None:
    _with_profile(sub)
    _folder(sub.add_argument("--model", metavar="DIR", help="your model: a folder of safetensors"))
    _file(sub.add_argument("--data", metavar="FILE", help="your demonstrations: .json, .jsonl or .parquet"))
    sub.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change one setting, such as spin.iterations=2; may be given several times",
    )
    sub.add_argument("--name", default="", help="name of the results folder for a changed profile")


def _with_json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="for programs")


def _file(option: argparse.Action) -> None:
    option.complete = shtab.FILE  # type: ignore[attr-defined]


def _folder(option: argparse.Action) -> None:
    option.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
