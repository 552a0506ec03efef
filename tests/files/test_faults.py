"""Full and unwritable disks, clocks that jump and requests to stop: a clear message, and no finished work is lost."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
import torch
from safetensors.torch import save_file

from spin_utils.cli import main as cli
from spin_utils.files import artifacts, paths, runtime
from spin_utils.files.disk import write_text
from spin_utils.files.runtime import progress
from spin_utils.training.state import StopRequest


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to make a file larger than this, in the middle of a write, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "model.safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
    "rows.jsonl": lambda path: write_text(path, "x" * 400_000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_and_the_step_goes_on_when_there_is_room(name: str, home: Path) -> None:
    directory = home / "artifacts" / "thing-abc"

    def build() -> None:
        with artifacts.building(directory, stage="test", settings={}, inputs={}, seed=0) as work:
            shard = artifacts.scratch(work) / "shard"
            if not shard.is_file():
                write_text(shard, "sampled for hours")
                made.append("shard")
            WRITERS[name](work / name)

    made: list[str] = []
    with (
        files_up_to(100_000),
        pytest.raises(paths.WorkError, match=r": file too large; make room.*SPIN_HOME"),
    ):
        build()
    assert not directory.exists()
    build()
    assert made == ["shard"]
    artifacts.verify(directory)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A file in the way: permissions would not stop a test that root runs.
    (home / "results").write_text("in the way")
    assert cli.main(["reproduce", "--profile", "smoke"]) == 2
    out = capsys.readouterr().out
    assert re.search(rf"Error: {home}/results.*: (file exists|not a directory); .*SPIN_HOME", out)
    assert not list(home.glob("artifacts/smoke/*/*"))


def test_a_file_system_without_locks_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "")))
    with pytest.raises(paths.WorkError, match=r"\.locks: no locks available; .*SPIN_HOME"):
        artifacts.lock(tmp_path / "sft").__enter__()


def test_headless_progress_is_a_line_per_interval_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(runtime.HEADLESS, "1")
    with caplog.at_level(logging.INFO), progress(8, "training", "steps", done=2, interval=0) as bar:
        for _ in range(6):
            time.sleep(0.002)
            bar.advance(note="loss 0.5")
    assert re.fullmatch(r"training: 3 of 8 steps, \d\d:\d\d elapsed, .*left, loss 0.5", caplog.messages[0])
    assert caplog.messages[-1].startswith("training: 8 of 8 steps")


def test_a_scheduler_may_ask_often_and_only_a_second_ctrl_c_stops_at_once() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
KERNEL = """
from pathlib import Path
from spin_utils.training.state import StopRequest
with StopRequest() as stop:
    Path("started").touch()
    while not stop.asked: pass
import time
time.sleep(0.3)
Path("saved").touch()
raise RuntimeError("stopped")
"""
WRAPPER = """
import sys
from pathlib import Path
from spin_utils.cli import notebooks; from spin_utils.files import paths, runtime
paths.notebook = lambda name: Path("n.ipynb").resolve()
with runtime.sigterm_as_ctrl_c():
    notebooks.run("n", {}, Path("out/n.ipynb"))
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_asked_to_stop_waits_until_the_kernel_has_saved(first: signal.Signals, tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in ("a = 1", KERNEL)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PYTHON), tmp_path / "n.ipynb")
    environment = {**os.environ, "PYTHONPATH": str(paths.REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRAPPER], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.02)
    for number in (first, signal.SIGTERM):
        os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert (tmp_path / "saved").exists()
    assert b"KeyboardInterrupt" in error


def test_the_scheduler_never_deletes_a_finished_artifact(home: Path) -> None:
    # As after a kill between the end of a step's work and the scheduler's note of it: the rule runs again.
    assert cli.main(["step", "data", "--profile", "smoke"]) == 0
    (manifest,) = home.glob("artifacts/smoke/shared/data-*/manifest.json")
    before = manifest.read_bytes()
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.REPOSITORY / "Snakefile"), "--nolock"]
    command += ["--directory", str(home), "--cores", "1", "--force", str(manifest), "--config", "profile=smoke"]
    subprocess.run(command, check=True, capture_output=True)
    assert manifest.read_bytes() == before
