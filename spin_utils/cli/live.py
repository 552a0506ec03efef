"""What a reproduction shows while it runs: the finished steps, progress bars of those at work, and how it ended.

The steps run in other processes, whose output goes to a log file. They tell what they are doing in a file of events
(`runtime.tell`), and a step is finished when its artifact is complete.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import IO, Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from spin_utils.experiment import clock, plan
from spin_utils.files import artifacts, paths
from spin_utils.paper import claims, results
from spin_utils.settings.run import Profile

log = logging.getLogger(__name__)

_LAST_LINES = 20
"""Lines of the log shown if the scheduler fails and no step has reported why."""


@dataclass
class _Line:
    """A step, as the display knows it."""

    step: plan.Step
    words: str
    expected: float
    """Seconds it took in an earlier run; 0 if there was none."""
    done: bool
    bar: TaskID | None = None
    started: float = 0.0
    note: str = ""
    """Of its latest report of progress, such as the loss."""
    share: float = 0.0
    """Of the machine's matrix rate, if it says what it reached."""


class Display:
    """The display of one reproduction; as a context manager it gives the file that the scheduler and steps write to.

    The finished steps are printed one after the other. On a terminal there are below them a bar for each step at work
    and one for the whole run.
    """

    def __init__(self, plans: Sequence[plan.Plan], console: Console | None = None) -> None:
        self.profile = plans[0].profile
        expected = clock.known_seconds(self.profile.name)
        steps = [(f"seed {made.seed}: " * (len(plans) > 1), step) for made in plans for step in made]
        steps += [("", plan.first_tables(plans)), ("", plan.tables(plans))]
        self.lines: dict[str, _Line] = {}
        for whose, step in steps:
            name = step.name if step.stage == "tables" else step.directory.name
            words = whose * (step.stage not in ("data", "base")) + plan.in_words(step)
            done = artifacts.is_complete(step.directory)
            self.lines[name] = _Line(step, words[:1].upper() + words[1:], expected.get(step.name, 0.0), done)
        self.console = console or _console()
        self.log = paths.artifacts(self.profile.name) / "reproduce.log"
        self.events = self.log.with_suffix(".events")
        self._told, self._rest = set[str](), b""
        self._begin = time.time()
        described = Column(no_wrap=True, max_width=self.console.width // 2 - 6)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=described),
            BarColumn(12),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stderr=False,
            disable=not self.console.is_terminal,
            speed_estimate_period=600,
        )
        total = sum(line.expected or 1 for line in self.lines.values())
        self._whole = self._bars.add_task("Whole run", total=total, text="the scheduler starts")

    def __enter__(self) -> IO[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.events.write_bytes(b"")
        self._reader = self.events.open("rb")
        self._output = self.log.open("ab")
        self._output.write(f"\n{datetime.now():%Y-%m-%d %H:%M:%S} {' '.join(sys.argv)}\n".encode())
        self._output.flush()
        self._bars.start()
        return self._output

    def __exit__(self, *_: object) -> None:
        self.update()
        self._bars.stop()
        self._output.close()
        self._reader.close()
        self.events.unlink(missing_ok=True)

    def say(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        self.console.print(Text(text, style), soft_wrap=True)

    def update(self) -> None:
        """Show what has happened since the last call."""
        *events, self._rest = (self._rest + self._reader.read()).split(b"\n")  # the last line may be incomplete
        for event in events:
            with suppress(json.JSONDecodeError):  # written in part, as on a full disk
                self._take(json.loads(event))
        for line in self.lines.values():
            if not line.done and artifacts.is_complete(line.step.directory):
                self._finish(line)
        done = [line.expected or 1 for line in self.lines.values() if line.done]
        at_work = [line for line in self.lines.values() if line.started and not line.done]
        behind = sum(done) + sum(min(time.time() - line.started, line.expected) for line in at_work)
        doing = f"{len(done)} of {len(self.lines)} steps" if len(done) < len(self.lines) else "the report is written"
        text = f"{doing}, {clock.duration(time.time() - self._begin)} so far"
        self._bars.update(self._whole, completed=behind, text=text)
        self._bars.refresh()

    def failed(self) -> None:
        """Show the end of the log, unless a step has reported why it failed."""
        if not self._told:
            for text in self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]:
                self.say(text)
        self.say(f"log: {paths.relative(self.log)}")

    def _take(self, event: dict[str, Any]) -> None:
        line = self.lines.get(event["step"])
        if "text" in event and (text := f"{line.words}: {event['text']}" if line else event["text"]) not in self._told:
            self._told.add(text)
            self.say(text, "bold red" if event["level"] == "ERROR" else "yellow")
        if line is None or line.done:  # a notebook goes on after its artifact is there
            return
        if line.bar is None:
            line.started = event["time"]
            line.bar = self._bars.add_task(line.words, total=None, text="")
        line.share = event.get("share", line.share)
        if "what" in event:
            line.note = event["note"]
            text = f"{event['done']:,} of {event['total']:,} {event['unit']}" if event["total"] else ""
            text = ", ".join(filter(None, [text, line.note]))
            self._bars.update(line.bar, completed=event["done"], total=event["total"] or None, text=text)

    def _finish(self, line: _Line) -> None:
        line.done = True
        if line.bar is not None:
            self._bars.remove_task(line.bar)
        count, of = sum(other.done for other in self.lines.values()), len(self.lines)
        text = Text.assemble(("✓ ", "green"), (f"{count:{len(str(of))}}/{of} ", "dim"), line.words)
        outcome = _outcome(line, self.lines.values(), self.profile.aside)
        text.append(f"  {outcome}" if outcome else "", "cyan")
        text.append(f"  {clock.duration(time.time() - line.started)}" if line.started else "", "dim")
        self.console.print(text, soft_wrap=True)


def sum_up(profile: Profile, console: Console | None = None) -> None:
    """Print Table 4, the verdicts, whether the run agrees with the committed results, and where everything is."""
    from spin_utils.drawing import draw, tables  # matplotlib need not be there while the steps run

    folder, console = paths.results(profile.name), console or _console()
    scores = draw.scores(profile)
    drawn = tables.table4(scores)
    header, rows = tables.compact(drawn)
    if console.width < 77 + sum(max(map(len, name.split("\n"))) + 1 for name in header[1:-5]):
        header, rows = tables.compact(drawn, with_tasks=False)
    table = Table(title="Table 4. SPIN by iteration, in points, with 95 % intervals", title_justify="left", box=None)
    table.padding = (0, 1, 0, 0)
    for name in header:
        table.add_column(name, justify="left" if name in ("", "direction") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    log.info("%s", claims.tally(claims.read(folder)["verdict"]))
    if compared := draw.compared(profile, scores):
        log.info("%s", compared.statement)
    log.info("report: %s", paths.relative(folder / "report.html"))
    log.info("tables: %s", paths.relative(folder))
    log.info("figures: %s", paths.relative(paths.figures(profile.name)))


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)


def _outcome(line: _Line, lines: Collection[_Line], aside: Collection[str]) -> str:
    """The outcome of a finished step: an evaluation's average over the tasks that count, where the finished ones among
    `lines` tell which are at chance, or the last loss of a training run."""
    stage = line.step.stage
    if stage in ("evaluation", "transfer", "instructions"):
        finished = [each.step for each in lines if each.done and each.step.stage == stage]
        models = [(step, step.parameters["model"]) for step in finished if step.parameters["model"] in ("base", "sft")]
        rows = [{"model": model, "task": name, **task} for step, model in models for name, task in _tasks(step).items()]
        outside = results.at_chance(pd.DataFrame(rows, columns=["model", "task", "value", "stderr", "chance"]))
        outside |= set() if stage == "transfer" else set(aside)
        values = [task["value"] for name, task in _tasks(line.step).items() if name not in outside]
        return f"average {100 * fmean(values):.1f}" if values else ""
    reached = f"{100 * line.share:.0f} % of the machine's matrix rate" if line.share else ""
    return ", ".join(filter(None, [line.note, reached]))


def _tasks(step: plan.Step) -> dict[str, Any]:
    return json.loads((step.directory / "evaluation.json").read_text(encoding="utf-8"))["tasks"]
