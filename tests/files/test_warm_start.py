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

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="forks on Linux only")

MODULE = """\
import json, os, sys, time
import torch
said = {"warm": "lm_eval" in sys.modules, "name": __name__, "arguments": sys.argv[1:], "folder": os.getcwd(),
        "threads": torch.get_num_threads(), "value": os.environ.get("VALUE"), "pid": os.getpid(),
        "streams": [[s.encoding, s.errors, s.line_buffering, s.seekable()] for s in (sys.stdout, sys.stderr)]}
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
    print(environment[warm_start.ADDRESS], flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A process that keeps a server, its address, and a folder with the module `said`."""
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


Holder = tuple[subprocess.Popen[str], str, Path]


def test_a_fork_is_what_a_new_process_would_be(holder: Holder) -> None:
    _, address, folder = holder
    results = {}
    for name, place in (("warm", address), ("cold", str(folder / "nobody"))):
        process = start(place, folder, "a word", "3", VALUE="äöü", OMP_NUM_THREADS="1")
        output, errors = process.communicate()
        assert process.returncode == 3
        assert "an error" in errors
        results[name] = json.loads(output)
        assert results[name].pop("warm") == (name == "warm")
        results[name].pop("pid")
    assert results["warm"] == results["cold"]
    assert results["warm"]["arguments"] == ["a word", "3"]
    assert results["warm"]["threads"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_the_fork(number: signal.Signals, holder: Holder) -> None:
    _, address, folder = holder
    process = start(address, folder, "wait", "0")
    assert process.stdout
    fork = psutil.Process(json.loads(process.stdout.readline())["pid"])
    process.send_signal(number)
    _, errors = process.communicate()
    expected = {signal.SIGINT: 7, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}
    assert process.returncode == expected[number], errors
    wait_until(lambda: not fork.is_running())


def test_server_and_forks_end_with_the_process_that_needs_them(holder: Holder) -> None:  # the last: it ends the server
    process, address, folder = holder
    waiting = start(address, folder, "wait", "0")
    assert waiting.stdout
    fork = psutil.Process(json.loads(waiting.stdout.readline())["pid"])
    server = psutil.Process(process.pid).children()[0]
    process.kill()
    psutil.wait_procs([server, fork], timeout=60)
    assert not server.is_running()
    assert not fork.is_running()
    waiting.communicate()
    assert waiting.returncode == 128 + signal.SIGKILL
