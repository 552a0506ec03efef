"""Processes forked from a server are what new ones would be, and end when they should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from spin_utils.files import warm_start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")

MODULE = """\
import json, os, sys, time
import torch
said = {"warm": "lm_eval" in sys.modules, "name": __name__, "arguments": sys.argv[1:], "folder": os.getcwd(),
        "threads": torch.get_num_threads(), "value": os.environ.get("VALUE"), "pid": os.getpid(),
        "streams": [[s.encoding.lower(), s.errors, s.seekable()] for s in (sys.stdout, sys.stderr)]}
try:
    print(json.dumps(said), flush=True)
    print("an error", file=sys.stderr)
    time.sleep(60 if "wait" in sys.argv else 0)
except KeyboardInterrupt:
    sys.exit(7)
sys.exit(int(sys.argv[-1]))
"""
HOLDER = """\
import os, signal, time
from spin_utils.files import warm_start
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and theirs with them
with warm_start.server(os.environ) as environment:
    while not os.path.exists(environment[warm_start.ADDRESS]):
        time.sleep(0.01)
    print(environment[warm_start.ADDRESS], flush=True)
    time.sleep(600)
"""
Holder = tuple[subprocess.Popen[str], str, Path]
"""A process that keeps a server, its address, and a folder with the module `said`."""


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    folder = tmp_path_factory.mktemp("warm")
    (folder / "said.py").write_text(MODULE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command, said = [sys.executable, "-c", HOLDER], folder / "said"
    # Its output is a file and that of the forks a pipe.
    with said.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, text=True) as process:
        wait_until(lambda: said.read_text().endswith("\n"))
        yield process, said.read_text().strip(), folder
        process.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.02)


def start(address: str, folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """The module `said` as the kit would start it in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), warm_start.ADDRESS: address, **variables}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(warm_start.ADDRESS, address)
        command = warm_start.command([sys.executable, "-m", "said", *arguments])
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def pid_of(process: subprocess.Popen[str]) -> psutil.Process:
    assert process.stdout
    return psutil.Process(json.loads(process.stdout.readline())["pid"])


def test_a_fork_is_what_a_new_process_would_be(holder: Holder) -> None:
    _, address, folder = holder
    results = {}
    for name, place in (("warm", address), ("cold", str(folder / "nobody"))):
        process = start(place, folder, "a word", "3", VALUE="äöü", OMP_NUM_THREADS="1", LONG="x" * 100_000)
        output, errors = process.communicate()
        assert process.returncode == 3
        assert "an error" in errors
        results[name] = json.loads(output)
        assert results[name].pop("warm") == (name == "warm")
        results[name].pop("pid")
    assert results["warm"] == results["cold"]
    assert results["warm"]["arguments"] == ["a word", "3"]
    assert results["warm"]["threads"] == 1


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 7), (signal.SIGTERM, 128 + signal.SIGKILL), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_signal_reaches_the_fork(number: signal.Signals, status: int, holder: Holder) -> None:
    _, address, folder = holder
    process = start(address, folder, "wait", "0")
    fork = pid_of(process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == status, errors
    wait_until(lambda: not fork.is_running() or fork.status() == psutil.STATUS_ZOMBIE)


def test_the_server_ends_with_the_process_that_needs_it(holder: Holder) -> None:  # the last: it ends the server
    process, *_ = holder
    (server,) = psutil.Process(process.pid).children()
    process.kill()
    server.wait(60)
