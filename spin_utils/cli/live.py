"""What a reproduction shows while it runs: its plan, the running steps with their progress bars, and how it ended.

The steps run in other processes, whose output goes to a log file. They tell what they are doing in a file of events
(`runtime.tell`), and a step is finished when its artifact is complete.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spin_utils.experiment import clock, plan
from spin_utils.files import artifacts, paths
from spin_utils.paper import claims, results
from spin_utils.settings.run import Profile

log = logging.getLogger(__name__)

_LAST_LINES = 20
"""Lines of the log shown if the scheduler fails and no step has reported why."""
_BAR = 24


@dataclass
class _Line:
    """A step, as the display knows it."""

    step: plan.Step
    words: str
    expected: float
    """Seconds it took in an earlier run; 0 if there was none."""
    done: bool
    started: float = 0.0
    seconds: float = 0.0
    """From its first event to its end."""
    at: dict[str, Any] = field(default_factory=dict)
    """Its latest report of progress."""
    since: dict[str, Any] = field(default_factory=dict)
    """Its first report of the same work."""
    share: float = 0.0
    """Of the machine's matrix rate, if it says what it reached."""


class Display:
    """The display of one reproduction; as a context manager it gives the file that the scheduler and steps write to.

    On a terminal the finished steps are printed one after the other, and below them stay the steps at work, those to
    come and the time left. Elsewhere there is one line for each finished step.

    Args:
        plans: of all seeds.
        verbose: show the log itself instead.
        console: where to; None: standard output.
    """

    def __init__(self, plans: Sequence[plan.Plan], *, verbose: bool = False, console: Console | None = None) -> None:
        profile = plans[0].profile.name
        expected = clock.known_seconds(profile)
        steps = [(f"seed {made.seed}: " * (len(plans) > 1), step) for made in plans for step in made]
        steps += [("", plan.first_tables(list(plans))), ("", plan.tables(list(plans)))]
        self.lines: dict[str, _Line] = {}
        for whose, step in steps:
            name = step.name if step.stage == "tables" else step.directory.name
            words = whose * (step.stage not in ("data", "base")) + plan.in_words(step)
            done = artifacts.is_complete(step.directory)
            self.lines[name] = _Line(step, words[:1].upper() + words[1:], expected.get(step.name, 0.0), done)
        self.console = console or _console()
        self.log = paths.artifacts(profile) / "reproduce.log"
        self.events = self.log.with_suffix(".events")
        self._verbose, self._told = verbose, set[str]()
        self._begin = self._ended = time.time()
        self._live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stderr=False)

    def __enter__(self) -> IO[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.events.write_bytes(b"")
        self._reader = self.events.open("rb")
        self._output = self.log.open("ab")
        self._copied = self._output.tell()
        self._output.write(f"\n{datetime.now():%Y-%m-%d %H:%M:%S} {' '.join(sys.argv)}\n".encode())
        self._output.flush()
        if self.console.is_terminal and not self._verbose:
            self._live.start()
        return self._output

    def __exit__(self, *_: object) -> None:
        self.update()
        self._live.stop()
        for file in (self._output, self._reader):
            file.close()
        self.events.unlink(missing_ok=True)

    def say(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        self.console.print(Text(text, style), soft_wrap=True)

    def update(self) -> None:
        """Show what has happened since the last call."""
        for event in map(json.loads, self._new_events()):
            self._take(event)
        for line in self.lines.values():
            if not line.done and artifacts.is_complete(line.step.directory):
                line.done = True
                self._ended = time.time()
                line.seconds = self._ended - line.started if line.started else 0.0
                self._say_finished(line)
        if self._verbose:
            with self.log.open("rb") as file:
                file.seek(self._copied)
                new = file.read()
            self._copied += len(new)
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()
        elif self._live.is_started:
            self._live.update(self._picture(), refresh=True)

    def failed(self) -> None:
        """Show the end of the log, unless a step has reported why it failed or the log is on the screen."""
        if not self._told and not self._verbose:
            for text in self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]:
                self.say(text)
        self.say(f"log: {paths.relative(self.log)}")

    def _new_events(self) -> list[bytes]:
        """Whole lines only: the last one may be incomplete."""
        new = self._reader.read()
        whole = new.rfind(b"\n") + 1
        self._reader.seek(whole - len(new), 1)
        return [line for line in new[:whole].splitlines() if line.startswith(b"{") and line.endswith(b"}")]

    def _take(self, event: dict[str, Any]) -> None:
        line = self.lines.get(event["step"])
        if line is not None and not line.started:
            line.started = event["time"]
        if "text" in event and (text := f"{line.words}: {event['text']}" if line else event["text"]) not in self._told:
            self._told.add(text)
            if not self._verbose:
                self.say(text, "bold red" if event["level"] == "ERROR" else "yellow")
        if "what" in event and line is not None:
            if event["what"] != line.at.get("what") or event["done"] < line.at["done"]:
                line.since = event
            line.at = event
        if "share" in event and line is not None:
            line.share = event["share"]

    def _say_finished(self, line: _Line) -> None:
        if self._verbose:
            return
        count, of = sum(other.done for other in self.lines.values()), len(self.lines)
        text = Text.assemble(("✓ ", "green"), (f"{count:{len(str(of))}}/{of} ", "dim"), line.words)
        for part in filter(None, (_outcome(line), _time(line.seconds) if line.seconds else "")):
            text.append(f"  {part}", "cyan" if part == _outcome(line) else "dim")
        self.console.print(text, soft_wrap=True)

    def _picture(self) -> Group:
        """The running steps, as many upcoming ones as there is room for, and overall progress."""
        working = [line for line in self.lines.values() if line.started and not line.done]
        coming = [line for line in self.lines.values() if not line.started and not line.done]
        shown: list[RenderableType] = [Text()]
        for line in working:
            shown += [Text(f"▸ {line.words}", "bold", no_wrap=True, overflow="ellipsis"), _progress(line)]
        if not working and coming:
            begun = any(line.seconds for line in self.lines.values())
            shown.append(Text(f"▸ the {'next step' if begun else 'scheduler'} starts", "dim"))
        room = max(0, min(self.console.height - 2 * len(working) - 6, len(coming)))
        for line in coming[:room]:
            about = f"  about {_time(line.expected)}" * (line.expected > 0)
            shown.append(Text(f"  {line.words}{about}", "dim", no_wrap=True, overflow="ellipsis"))
        if len(coming) > room:
            shown.append(Text(f"  … {len(coming) - room} more", "dim"))
        done, spent, (left, known) = sum(x.done for x in self.lines.values()), time.time() - self._begin, self._left()
        share = spent / (spent + left) if left and known else done / len(self.lines)
        text = f"{done} of {len(self.lines)} steps, {_time(spent)} so far"
        text += f", {'about' if known else 'at least'} {_time(left)} left" if left else ""
        return Group(*shown, Text(), _bar("Whole run ", share, text))

    def _left(self) -> tuple[float, bool]:
        """Seconds left, and whether every step has an estimate: from an earlier run, at the speed of this one, or from
        steps of the same kind. Time between steps, and parallelism, are extrapolated from the run so far."""
        made = [line for line in self.lines.values() if line.seconds]
        before, now = sum(line.expected for line in made), sum(line.seconds for line in made if line.expected)
        speed = now / before if before else 1.0
        left, known = 0.0, True
        for line in self.lines.values():
            if line.done:
                continue
            alike = [other.seconds for other in made if other.step.stage == line.step.stage]
            estimate = line.expected * speed or (sum(alike) / len(alike) if alike else 0.0)
            if line.started:
                estimate = max(estimate - (time.time() - line.started), _block_left(line))
            known &= bool(estimate or line.started) or line.step.stage == "tables"
            left += estimate
        spent = sum(line.seconds for line in made)
        return left * ((self._ended - self._begin) / spent if spent else 1.0), known


def sum_up(profile: Profile, console: Console | None = None) -> None:
    """Print Table 4, how the claims came out, whether the run agrees with the committed results, and where the rest is.

    Args:
        profile: whose run has ended.
        console: where to; None: standard output.
    """
    from spin_utils.drawing import draw, tables  # matplotlib need not be there while the steps run

    folder, console = paths.results(profile.name), console or _console()
    if not (folder / "tables" / "table4.csv").is_file():
        return  # deleted since they were drawn
    frame = pd.read_csv(folder / "tables" / "table4.csv")
    names = [name for name in frame["column"].unique() if name != "average"]
    header, rows = tables.compact(
        frame, with_tasks=console.width >= 77 + sum(max(map(len, name.split("_"))) + 1 for name in names)
    )
    table = Table(title="Table 4. SPIN by iteration, in points, with 95 % intervals", title_justify="left", box=None)
    table.padding = (0, 1, 0, 0)
    for name in header:
        table.add_column(name, justify="left" if name in ("", "direction") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    log.info("%s", claims.tally(claims.read(folder)["verdict"]))
    if compared := draw.compared(profile, results.load_evaluations(folder)):
        log.info("%s", compared.statement)
    if (folder / "report.html").is_file():
        log.info("report: %s", paths.relative(folder / "report.html"))


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)


def _progress(line: _Line) -> RenderableType:
    """A bar and text for a running step."""
    if not line.at or not line.at["total"]:
        return Text(f"  {_time(time.time() - line.started)}")
    at, left = line.at, _block_left(line)
    text = f"{at['done']:,} of {at['total']:,} {at['unit']}"
    text += f", {at['note']}" if at["note"] else ""
    return _bar("  ", at["done"] / at["total"], text + (f", {_time(left)} left" if left else ""))


def _bar(before: str, share: float, text: str) -> RenderableType:
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(Text(before), ProgressBar(1.0, share, _BAR), Text(text, no_wrap=True, overflow="ellipsis"))
    return row


def _block_left(line: _Line) -> float:
    """Seconds left of the work that a step reports, at its own speed; 0 if that is not known yet."""
    at, since = line.at, line.since
    if not at or at["done"] <= since["done"]:
        return 0.0
    speed = (at["done"] - since["done"]) / (at["time"] - since["time"])
    return max(0.0, (at["total"] - at["done"]) / speed - (time.time() - at["time"]))


def _outcome(line: _Line) -> str:
    """The outcome of a finished step: the average of an evaluation, the last loss of a training run."""
    if line.step.stage in ("evaluation", "transfer"):
        found = json.loads((line.step.directory / "evaluation.json").read_text(encoding="utf-8"))
        return f"average {100 * found['average']:.1f}"
    reached = f"{100 * line.share:.0f} % of the machine's matrix rate" if line.share else ""
    return ", ".join(filter(None, [line.at.get("note", ""), reached]))


def _time(seconds: float) -> str:
    """
    >>> _time(42), _time(100), _time(7200)
    ('42 s', '1.7 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
