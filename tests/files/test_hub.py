"""One fetch, then no network: everything is read from the hub's cache at the revision that was pinned."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import hub_rows
import pytest
import yaml
from huggingface_hub import constants
from stand_in_hub import StandInHub
from tiny_models import trainable_folder

from spin_utils.cli import main
from spin_utils.data.rows import RowError, hub_records
from spin_utils.evaluation import harness, suites
from spin_utils.experiment import estimate, plan, preflight, run
from spin_utils.files import hub as cache
from spin_utils.files import paths
from spin_utils.model import base
from spin_utils.settings import profiles
from spin_utils.settings.inputs import DemonstrationSettings

COMMIT = "5" * 40
SMALL: dict[str, Any] = {
    "name": "away",
    "model": {"source": "hub", "name": "someone/tiny", "revision": COMMIT},
    "demonstrations.revision": COMMIT,
    "demonstrations.expected_rows": 4,
    "demonstrations.test_rows": 0,
    "evaluation.suite": "paper_others",
    "sft_more": 0,
    "sft_control": None,
    "dpo": None,
}


@pytest.fixture(autouse=True)
def own_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")


def repository(rows: hub_rows.Hub, name: str, *configs: str | None) -> dict[str, bytes]:
    """The files of a dataset: Parquet, and a card that says which files are which split of which configuration."""
    files, card = {}, []
    for config in configs:
        splits = []
        for split, made in rows(name, config).items():
            content = io.BytesIO()
            made.to_parquet(content)
            path = f"{config or 'data'}/{split}-00000-of-00001.parquet"
            files[path] = content.getvalue()
            splits.append({"split": split, "path": path})
        card.append({"config_name": config or "default", "data_files": splits})
    return files | {"README.md": f"---\n{yaml.safe_dump({'configs': card})}---\n".encode()}


def fill(hub: StandInHub, tmp_path: Path) -> None:
    """A model, the rows of SPIN's iteration 0 and the benchmarks of Table 6, as the hub has them."""
    rows, model = hub_rows.Hub(items=4), trainable_folder(tmp_path / "tiny")
    bbh = ("causal_judgement", "formal_fallacies", "sports_understanding")
    hub.files = {
        "models/someone/tiny": {p.name: p.read_bytes() for p in model.iterdir()} | {"pytorch_model.bin": b"a pickle"},
        "datasets/UCLA-AGI/SPIN_iter0": repository(rows, "UCLA-AGI/SPIN_iter0", None),
        "datasets/allenai/openbookqa": repository(rows, "allenai/openbookqa", "main"),
        "datasets/SaylorTwift/bbh": repository(rows, "SaylorTwift/bbh", *bbh),
    }
    hub.repositories = {place: suites.REVISIONS.get(place.removeprefix("datasets/"), COMMIT) for place in hub.files}


@pytest.mark.parametrize("told", [True, False], ids=["HF_HUB_OFFLINE", "cut"])
def test_after_one_fetch_a_run_reads_everything_without_network_at_the_pinned_revisions(
    told: bool, hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(hub, tmp_path)
    profile = profiles.load("paper", SMALL)
    names = [each.name for each in preflight.wanted(profile)]
    assert names == ["someone/tiny", "UCLA-AGI/SPIN_iter0", "SaylorTwift/bbh", "allenai/openbookqa"]
    assert len(list(preflight.fetch(profile))) == 4
    assert preflight.missing(profile) == []
    assert not any("pytorch_model.bin" in path for path in hub.requests), "only what is read"
    asked = len(hub.requests)
    list(preflight.fetch(profile))
    assert len(hub.requests) == asked, "what is there is not asked for again"

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", told)
    hub.reachable = False
    preflight.check_fetched(profile)
    made = plan.make(profile, 0)
    assert base.load_tokenizer(run.make(made, "base")).eos_token
    assert {row["prompt"] for row in run.rows(made, "spin")} == {f"Say {i}." for i in range(100, 104)}
    loaded = harness._load(harness._paper_columns("paper_others"))
    assert [len(task.eval_docs) for leaves in loaded.values() for task in leaves.values()] == [4, 4, 4, 4]
    column = harness._paper_columns("paper_others")[-1]
    counts = dict.fromkeys(loaded["openbookqa"], 4)
    found = harness._rows_of(column, loaded["openbookqa"], counts)
    assert found["source"] == f"allenai/openbookqa@{suites.REVISIONS['allenai/openbookqa']}"
    report = preflight.check(profile, estimate.machine(1, 80))
    assert "ok   hub" in "\n".join(report.lines())
    assert not any(finding.what == "offline" for finding in report.findings)
    assert len(hub.requests) == asked


def test_without_a_fetch_it_is_said_before_the_first_job_what_would_be_missing(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(hub, tmp_path)
    cache.fetch("model", "someone/tiny", COMMIT)
    profile = profiles.load("paper", SMALL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = (
        r"not fetched: UCLA-AGI/SPIN_iter0 \(demonstrations\), SaylorTwift/bbh \(evaluation.suite\), "
        r"allenai/openbookqa \(evaluation.suite\); run `spin-repro fetch`"
    )
    with pytest.raises(cache.HubError, match=f"HF_HUB_OFFLINE is set, but {message}"):
        preflight.check_fetched(profile)
    file = profiles.dump(profile, tmp_path / "away.yaml")
    assert main.main(["reproduce", "--profile", str(file), "--dry-run"]) == 2
    assert "HF_HUB_OFFLINE is set, but not fetched: UCLA-AGI/SPIN_iter0 (demonstrations), " in capsys.readouterr().out
    assert not paths.artifacts("away").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    preflight.check_fetched(profile)
    assert not capsys.readouterr().out
    preflight.check_fetched(profile, elsewhere=True)
    assert re.match(f"steps on nodes without network would fail: {message}", capsys.readouterr().out)


def test_what_cannot_be_fetched_is_named_and_an_incomplete_snapshot_is_not_taken_for_whole(
    hub: StandInHub, tmp_path: Path
) -> None:
    fill(hub, tmp_path)
    unpinned = profiles.load("paper", SMALL | {"demonstrations.revision": ""})
    with pytest.raises(cache.HubError, match=r"SPIN_iter0: no revision; pin the commit with --set demonstrations\.rev"):
        next(preflight.fetch(unpinned))
    with pytest.raises(cache.HubError, match="nobody/nothing @ 55555555: cannot be fetched .*check the network"):
        cache.fetch("dataset", "nobody/nothing", COMMIT)
    del hub.files["datasets/allenai/openbookqa"]["README.md"]
    listed = hub.files["datasets/allenai/openbookqa"]
    hub.files["datasets/allenai/openbookqa"] = type("Late", (dict,), {"get": lambda self, path: None})(listed)
    with pytest.raises(cache.HubError, match="allenai/openbookqa"):
        cache.fetch("dataset", "allenai/openbookqa", suites.REVISIONS["allenai/openbookqa"])
    assert cache.fetched("dataset", "allenai/openbookqa", suites.REVISIONS["allenai/openbookqa"]) is None


def test_another_revision_in_the_cache_is_not_taken_for_the_pinned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "x", "response": "y"}])
    rows.info.download_checksums = {f"hf://datasets/a/b@{'1' * 40}/x.parquet": {}}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **given: rows)
    asked = DemonstrationSettings(source="hub", name="a/b", revision="1" * 40, train="train")
    assert list(hub_records(asked, "train")) == [(1, {"prompt": "x", "response": "y"})]
    with pytest.raises(RowError, match="the cache has revision 11111111 instead of 22222222; run `spin-repro fetch`"):
        hub_records(replace(asked, revision="2" * 40), "train")
