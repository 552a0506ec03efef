"""What a reproduction shows: every step once, in words, with its outcome; warnings once; the log always kept."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from spin_utils.cli import live
from spin_utils.cli.live import Display
from spin_utils.experiment import plan, run
from spin_utils.files import artifacts, paths, runtime
from spin_utils.settings import profiles


class Run:
    """A reproduction of `smoke` whose steps are played by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
        self.patch, self.made = monkeypatch, plan.make(profiles.load("smoke"), 0)
        self.file = io.StringIO()
        size: dict = {"width": 100, "height": 16, "get_time": lambda: time.time()}
        console = Console(file=self.file, force_terminal=terminal, highlight=False, **size)
        self.shown = Display([self.made], console=console)

    def tell(self, name: str, **event: object) -> None:
        """As a step does it, in a process of its own."""
        with self.patch.context() as patch:
            patch.setenv(runtime.EVENTS, str(self.shown.events))
            patch.setenv(runtime.STEP, self.made.directory(name).name)
            runtime.tell(**event)

    def finish(self, name: str, **files: object) -> None:
        step = self.made.steps[name]
        with artifacts.building(step.directory, stage=step.stage, settings={}, inputs={}, seed=0) as work:
            for file, content in files.items():
                artifacts.write_json(work / f"{file}.json", content)

    def said(self) -> str:
        """All that was written since the last call, without the codes that move the cursor and colour."""
        text = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_elsewhere_than_on_a_terminal_each_step_is_one_line_and_each_warning_another(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = Run(monkeypatch, terminal=False), time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # artifacts take the time, and steps none
    monkeypatch.setattr(type(run.shown.profile), "aside", frozenset({"beside"}))
    with run.shown as output:
        output.write(b"a line of the scheduler\n")
        run.tell("sft")
        run.tell("sft", what="sft", done=3, total=6, unit="steps", note="loss 4.5")
        run.tell("sft", share=0.41)
        for _ in range(2):
            run.tell("sft", level="WARNING", text="7 rows left out")
        run.shown.update()
        run.shown.update()
        run.finish("sft")
        run.finish("eval-sft", evaluation={"tasks": {"sum": {"value": 0.515}, "beside": {"value": 1}}})
    of = len(run.shown.lines)
    assert run.said().splitlines() == [
        "SFT: the model learns from the demonstrations: 7 rows left out",
        f"✓  1/{of} SFT: the model learns from the demonstrations  loss 4.5, 41 % of the machine's matrix rate  0 s",
        f"✓  2/{of} SFT is tested  average 51.5",
    ]
    assert "a line of the scheduler" in (paths.artifacts("smoke") / "reproduce.log").read_text()
    assert not run.shown.events.exists()


def test_the_running_average_leaves_out_a_task_that_was_at_chance_before_any_training(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(monkeypatch, terminal=False)
    choice = {"stderr": 0.02, "chance": 0.25}
    with run.shown:
        for name, value in (("eval-sft", 0.26), ("eval-spin-0", 0.4)):
            run.finish(name, evaluation={"tasks": {"sum": {"value": 0.5}, "choice": {"value": value, **choice}}})
    assert [line.split("  ")[-1] for line in run.said().splitlines()] == ["average 50.0"] * 2


def test_a_terminal_shows_the_step_at_work_and_the_time_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = Run(monkeypatch, terminal=True), time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    with run.shown:
        now += 3
        run.tell("sft")
        for done in (0, 20, 40):
            now += 10
            run.tell("sft", what="sft", done=done, total=60, unit="steps", note="loss 4.5")
            run.shown.update()
        picture = run.said()
    assert re.search(r"\nSFT: the model learns .*40 of 60 steps, loss 4.5 +0:00:10", picture)
    assert re.search(rf"\sWhole run .*0 of {len(run.shown.lines)} steps, 33 s so far", picture)


def test_a_notebook_that_goes_on_after_its_artifact_is_there_changes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(monkeypatch, terminal=True)
    progress = {"what": "eval-sft", "total": 2, "unit": "answers", "note": ""}
    with run.shown:
        run.tell("eval-sft", done=1, **progress)
        run.shown.update()
        run.finish("eval-sft", evaluation={"tasks": {"sum": {"value": 0.5}}})
        run.shown.update()
        run.tell("eval-sft", done=2, **progress)
        run.shown.update()
    assert run.said().count("SFT is tested  average 50.0") == 1


def test_half_a_line_of_an_event_waits_for_its_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, terminal=False)
    with run.shown:
        with run.shown.events.open("a") as file:
            file.write('{"step": "", "time": 1, "level": "WARNING", ')
        run.shown.update()
        with run.shown.events.open("a") as file:
            file.write('"text": "whole"}\n')
            file.write('{"step": "", "time": {"step": "", "time": 1}\n')  # the disk was full for a moment
            file.write('{"step": "", "time": 1, "level": "WARNING", "text": "and on"}\n')
    assert run.said() == "whole\nand on\n"


def test_a_failure_that_no_step_explained_shows_the_end_of_the_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, terminal=False)
    with run.shown as output:
        output.write(b"first\n" + b"line\n" * 30 + b"the disk is gone\n")
    run.shown.failed()
    said = run.said()
    assert "the disk is gone" in said
    assert "first" not in said
    assert said.endswith("log: artifacts/smoke/reproduce.log\n")


def test_every_step_of_every_profile_has_words() -> None:
    arms = {"arms": {"twice": {"spin.betas": [0.7]}}}
    for name, changes in (("smoke", {}), ("cpu", {}), ("smoke", arms)):
        words = [plan.in_words(step) for step in plan.make(profiles.load(name, changes), 0)]
        assert len(set(words)) == len(words)


def test_table_4_fits_a_terminal_of_80_columns() -> None:
    file = io.StringIO()
    live.sum_up(profiles.load("cpu"), Console(file=file, width=80, highlight=False))
    lines = file.getvalue().splitlines()
    assert not any("…" in line for line in lines)
    assert [line.split("  ")[0].strip() for line in lines[3:4]] == ["SFT"], "a heading of two lines"
    live.sum_up(profiles.load("cpu"), Console(file=file, width=200, highlight=False))
    assert "(aside)" in file.getvalue()


def test_a_step_that_another_one_makes_on_its_way_has_its_own_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Run(monkeypatch, terminal=False)
    with shown.shown, monkeypatch.context() as patch:
        patch.setenv(runtime.EVENTS, str(shown.shown.events))
        patch.setenv(runtime.STEP, shown.made.directory("sft").name)
        run.make(shown.made, "data")
        runtime.tell(what="sft", done=1, total=6, unit="steps", note="")
        shown.shown.update()
        data, sft = (shown.shown.lines[shown.made.directory(name).name] for name in ("data", "sft"))
        assert data.done
        assert data.started
        assert not sft.done
        assert sft.bar is not None
