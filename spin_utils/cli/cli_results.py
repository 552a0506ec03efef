"""The commands that read results: tables, figures, report, comparisons, verdicts, provenance, and what goes out.

Each takes the arguments of its command in `cli_parser` and returns the exit status.
"""

from __future__ import annotations

import argparse
import json
import logging

from spin_utils.files import paths
from spin_utils.settings import profiles

log = logging.getLogger(__name__)


def figures(arguments: argparse.Namespace) -> int:
    from spin_utils.drawing import drawing, readme

    profile = profiles.load(arguments.profile)
    for path in drawing.draw(profile):
        log.info("%s", paths.relative(path))
    if arguments.readme:
        readme.update(profile, paths.REPOSITORY / "README.md")
    return 0


def report(arguments: argparse.Namespace) -> int:
    from spin_utils.drawing.report import write

    log.info("%s", paths.relative(write(profiles.load(arguments.profile))))
    return 0


def crate(arguments: argparse.Namespace) -> int:
    from spin_utils.drawing.crate import write

    log.info("%s", paths.relative(write(profiles.load(arguments.profile))))
    return 0


def compare(arguments: argparse.Namespace) -> int:
    from spin_utils.paper.compare import compare as compared

    table = compared(profiles.folder(arguments.profile), arguments.model, arguments.other)
    log.info(table.to_json(orient="records", indent=1) if arguments.json else table.round(3).to_string(index=False))
    return 0


def verdicts(arguments: argparse.Namespace) -> int:
    from spin_utils.paper.verdict_page import read, tally

    table = read(paths.results(profiles.folder(arguments.profile)), arguments.verdict)
    if arguments.json:
        log.info(table.to_json(orient="records", indent=1))
        return 0
    for row in table.itertuples():
        log.info("%-16s %-28s %s", row.verdict, row.id, row.statement)
    log.info("%s", tally(table["verdict"]))
    return 0


def provenance(arguments: argparse.Namespace) -> int:
    from spin_utils.experiment.provenance import describe, record

    of = (profiles.folder(arguments.profile), arguments.seed, arguments.model, arguments.kind)
    log.info(json.dumps(record(*of), indent=1) if arguments.json else describe(*of))
    return 0


def card(arguments: argparse.Namespace) -> int:
    from spin_utils.drawing import cards

    log.info("%s", paths.relative(cards.write(profiles.load(arguments.profile), arguments.model, arguments.seed)))
    return 0


def push(arguments: argparse.Namespace) -> int:
    from spin_utils.drawing import cards

    given = (profiles.load(arguments.profile), arguments.model, arguments.repo, arguments.seed)
    log.info("%s", cards.push(*given, public=arguments.public))
    return 0
