"""No malformed input ends in a traceback, is accepted silently, or starts any work: the corpus in tests/malformed."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import broken_model, trainable_folder

from spin_utils.cli import main as cli

CORPUS = Path(__file__).parents[1] / "malformed"
CASES: list[dict[str, Any]] = yaml.safe_load((CORPUS / "index.yaml").read_text(encoding="utf-8"))


def name_of(case: dict[str, Any]) -> str:
    thing = case.get("file") or case.get("make") or case.get("name") or case.get("value")
    return f"{case['read']}-{thing or ' '.join(case['arguments'])}"[:80]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainable_folder(tmp_path_factory.mktemp("models") / "sound")


def arguments(case: dict[str, Any], home: Path, sound: Path) -> list[str]:
    """The command that a person would give with this input."""
    path = str(CORPUS / case["file"]) if "file" in case else ""
    reproduce = ["reproduce", "--dry-run", "--profile", "smoke"]
    if case["read"] == "profile":
        return ["plan", "--profile", path]
    if case["read"] == "set":
        return ["plan", "--profile", "smoke", "--set", case["value"]]
    if case["read"] == "demonstrations":
        folder = home / "rows.jsonl"
        folder.mkdir()
        return [*reproduce, "--data", path or str(folder)]
    if case["read"] == "pairs":
        return ["dpo", "--model", str(sound), "--pairs", path, "--out", str(home / "out")]
    if case["read"] == "model":
        model = broken_model(sound, case["change"], home / "model")
        return [*reproduce, "--model", str(model), "--set", "template.kind=chat", "--set", 'template.end=""']
    if case["read"] == "task":
        return [*reproduce, "--set", f"evaluation.tasks=[{path}]"]
    if case["read"] == "cluster":
        return [*reproduce, "--cluster", str(Path(path).parent)]
    if case["read"] == "results":
        place = home / "results" / "cpu" / "seed-0" / "evaluations" / "spin-0.json"
        place.parent.mkdir(parents=True)
        shutil.copyfile(path, place)
        return ["provenance", "spin-0", "--kind", "evaluations"]
    return list(case["arguments"])


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.usefixtures("settled")
def test_malformed_input_is_refused_with_its_message_before_any_work(
    case: dict[str, Any], home: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(arguments(case, home, sound))
    out = capsys.readouterr().out
    assert status == 2, out
    assert case["message"] in out
    assert len(out) < 2000, "a message is read by people"
    assert case["read"] not in ("command", "set") or len(out.splitlines()) == 1
    assert not list(home.glob("artifacts/*/*/*-*")), "nothing was started"
    assert not (home / "out").exists()


@pytest.mark.parametrize("case", [case for case in CASES if case.get("process")], ids=name_of)
def test_the_command_itself_says_it_in_a_line_and_ends_with_status_2(
    case: dict[str, Any], home: Path, sound: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "spin_utils", *arguments(case, home, sound)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SPIN_HOME": str(home)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 2, result.stderr
    assert case["message"] in result.stdout
    assert len(result.stdout.splitlines()) == 1, result.stdout
    assert not re.search("Traceback|LOAD REPORT", result.stderr), result.stderr
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 10, f"{used:.1f} s of processor time before a person hears of it"


def test_the_corpus_and_its_index_agree() -> None:
    files = {str(path.relative_to(CORPUS)) for path in CORPUS.rglob("*") if path.is_file()} - {"index.yaml"}
    assert {case["file"] for case in CASES if "file" in case} == files | {"tasks/nowhere.yaml"}
    texts = [json.dumps(case, sort_keys=True) for case in CASES]
    assert len(set(texts)) == len(texts) >= 60
