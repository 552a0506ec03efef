"""A run that is killed anywhere goes on where it stopped and ends with the same bytes: the long tests."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import smoke_chain

from spin_utils.paper import results

log = logging.getLogger(__name__)

KILLS = int(os.environ.get("SPIN_KILLS", "120"))
"""Of the long test, in the chain; and a tenth as many in the real command."""
SHORTER = ("spin.iterations=1", "sft_more=0", "dpo=null", "spin.subsets=[]")
"""Leaves of the plan of the real command what has a kind of its own: half an hour is enough for its kills."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """What a chain that nobody disturbs leaves, and its seconds."""
    home = tmp_path_factory.mktemp("undisturbed")
    smoke_chain.start(home, "data").join()  # starts the server
    begin = time.monotonic()
    process = smoke_chain.start(home)
    process.join()
    assert process.exitcode == 0
    return smoke_chain.contents(home), time.monotonic() - begin


@pytest.mark.slow
def test_a_chain_killed_at_a_hundred_moments_ends_with_the_same_bytes(
    undisturbed: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    moments, landed, runs = random.Random(1), Counter[str](), 0
    while landed.total() < KILLS:
        smoke_chain.make_with_kills(tmp_path / f"{runs}", moments, 0.15 * seconds, landed, KILLS)
        assert smoke_chain.contents(tmp_path / f"{runs}") == expected, f"run {runs}"
        runs += 1
    log.warning("%d kills in %d runs: %s", landed.total(), runs, dict(landed.most_common()))
    assert {name.split("-")[0] for name in landed} >= {"sft", "pairs", "spin", "eval"}
    assert len(landed) >= 10


@pytest.mark.slow
def test_the_command_killed_as_a_whole_or_in_one_process_ends_with_the_same_bytes(
    undisturbed: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "spin_utils", "reproduce", "--profile", "smoke", "--jobs", "2", "--name", "killed"]
    for change in SHORTER:
        command += ["--set", change]
    environment = {**os.environ, "SPIN_HOME": str(tmp_path)}
    moments, kills = random.Random(2), 0
    while True:
        with (tmp_path / "log").open("a") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            process.wait(moments.uniform(5, 30) if kills < KILLS // 10 else None)
        except subprocess.TimeoutExpired:
            kills += 1
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            if moments.random() < 0.5:
                tree = [moments.choice(tree)]
            for victim in tree:
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
                    victim.kill()
        if process.wait() == 0:
            break
    assert kills >= KILLS // 20, (tmp_path / "log").read_text()
    made = smoke_chain.contents(tmp_path, "killed")
    assert {name.split("/")[0].rpartition("-")[0] for name in made} >= {"sft", "spin-0", "spin-0-more", "eval-spin-0"}
    assert made == {name: digest for name, digest in undisturbed[0].items() if name in made}
    assert {*results.load_evaluations(tmp_path / "results" / "killed")["model"]} >= {"sft", "spin-0"}
    assert (tmp_path / "results" / "killed" / "tables" / "table4.md").is_file()
