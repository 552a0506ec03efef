"""Shared fixtures: every test works in a temporary home, headless, and never reaches the network."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import hypothesis
import judge_endpoint
import pandas as pd
import pytest
import smoke_chain
import synthetic_results as synthetic
from filelock import FileLock
from stand_in_hub import StandInHub

from spin_utils.files import runtime
from spin_utils.paper import results

# A slow or busy machine must not fail a property; the same examples on every run.
hypothesis.settings.register_profile(
    "kit", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("kit")
collect_ignore = ["stand_ins"]  # for other processes than the tests' own
os.environ.update({"SPIN_HEADLESS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in a shell's background ignore Ctrl-C


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the other tests are about a CPU, on every machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole chains come first, because they take longest, and before all others the one that makes `finished`; in each
    folder files that use it come last. So workers neither wait for it nor for each other."""
    uses = {item.path for item in items if "finished" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: str(item.path))
    items.sort(key=lambda item: (item.path.parent, item.path not in uses), reverse=True)
    items.sort(key=lambda item: item.path.name != "test_chain.py")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for artifacts, results and figures."""
    monkeypatch.setenv("SPIN_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same for all tests of a file, which find what the ones before them made."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIN_HOME", str(home))
        yield home


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that `spin-repro dpo` would otherwise start itself again for, in place of the tests."""
    for name, value in runtime.ENVIRONMENT.items():
        monkeypatch.setenv(name, os.environ.get(name, value))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> judge_endpoint.Endpoint:
    """A judge's endpoint in place of the network, and its key in the environment."""
    import openai  # takes a second

    endpoint = judge_endpoint.Endpoint()
    client = httpx2.Client(transport=httpx2.MockTransport(endpoint.answer))
    monkeypatch.setattr(openai, "OpenAI", partial(openai.OpenAI, http_client=client))
    monkeypatch.setenv("OPENAI_API_KEY", judge_endpoint.KEY)
    return endpoint


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> StandInHub:
    """A hub that is asked instead of the real one."""
    from huggingface_hub import constants  # reads the environment that is set above
    from huggingface_hub.utils import _http

    hub = StandInHub()
    client: dict[str, Any] = {"transport": httpx2.MockTransport(hub.answer), "follow_redirects": True}
    client["event_hooks"] = {"request": [_http.hf_request_event_hook]}  # refuses if HF_HUB_OFFLINE is set
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", lambda: httpx2.Client(**client))
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hub


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few pixels in report and summary, for tests of what stands around them."""
    from spin_utils.drawing.style import png

    monkeypatch.setattr("spin_utils.drawing.report.png", lambda figure, *_: png(figure, dpi=40))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic results of all kinds and models, two seeds and 40 items a task; to be read only."""
    models = synthetic.ABILITIES | synthetic.OTHER_ABILITIES
    root = synthetic.write(tmp_path_factory.mktemp("synthetic"), seeds=(0, 1), models=models, items=40)
    synthetic.write_generations(root, seeds=(0, 1), items=30)
    return root


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished smoke reproduction, made once for all workers of pytest; to be read only."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(home.with_suffix(".lock")):
        if not (home / "output.log").is_file():
            result = smoke_chain.reproduce(home, "--profile", "smoke")
            assert result.returncode == 0, result.stdout
            (home / "output.log").write_text(result.stdout)
    return home


@pytest.fixture
def after_smoke(finished: Path, home: Path) -> Path:
    """A home with a copy of that reproduction, to work on."""
    return shutil.copytree(finished, home, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def scores(root: Path) -> pd.DataFrame:
    """All per-item scores below `root`."""
    return synthetic.benchmarked(results.load_evaluations(root))


@pytest.fixture(scope="session")
def transfer(root: Path) -> pd.DataFrame:
    """The same on tasks that nothing was trained on."""
    return synthetic.benchmarked(results.load_evaluations(root, kind_folder="transfer"))
