"""Hooks of pytest that hold `tests/skips.yaml` to the truth; `conftest.py` imports them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml


def pytest_configure(config: pytest.Config) -> None:
    text = (Path(config.rootpath) / "tests" / "skips.yaml").read_text(encoding="utf-8")
    config.stash[_LISTED] = yaml.safe_load(text) or {}


_LISTED = pytest.StashKey[dict[str, str]]()


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    listed = config.stash[_LISTED]
    for name, reason in listed.items():
        if not isinstance(reason, str) or not reason.strip():
            raise pytest.UsageError(f"tests/skips.yaml: {name} has no reason")
        file, _, test = name.partition("::")
        if not (Path(config.rootpath) / file).is_file():
            raise pytest.UsageError(f"tests/skips.yaml: {name} names no file; remove the entry")
        collected = {_plain(item.nodeid) for item in items if item.nodeid.startswith(f"{file}::")}
        whole = not any("::" in argument for argument in config.args)
        if test and whole and collected and name not in collected:
            raise pytest.UsageError(f"tests/skips.yaml: {name} names no test; remove the entry")
    for item in items:
        if item.get_closest_marker("slow") and not _is_listed(item.nodeid, listed):
            raise pytest.UsageError(f"{item.nodeid} is slow and not in tests/skips.yaml; add it with its reason")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    return _refuse_unlisted((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[Any]:
    return _refuse_unlisted((yield), collector.config)


def _refuse_unlisted(report: Any, config: pytest.Config) -> Any:
    """Turn a skip that is not in the list into a failure."""
    skipped = report.outcome == "skipped" and not hasattr(report, "wasxfail")
    if skipped and not _is_listed(report.nodeid, config.stash[_LISTED]):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped and is not in tests/skips.yaml: {report.longrepr}"
    return report


def _is_listed(name: str, listed: dict[str, str]) -> bool:
    return _plain(name) in listed or name.partition("::")[0] in listed


def _plain(name: str) -> str:
    return name.partition("[")[0]
