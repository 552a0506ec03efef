"""Shared fixtures: every test works in a temporary home, headless, and never reaches the network."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# A slow or busy machine must not fail a property; the same examples on every run.
hypothesis.settings.register_profile(
    "kit", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("kit")
os.environ.update({"SPIN_HEADLESS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for artifacts, results and figures."""
    monkeypatch.setenv("SPIN_HOME", str(tmp_path))
    return tmp_path
