"""Files that were changed, cut or lost on disk are refused or made again, never used silently."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import smoke_chain
import synthetic_results as synthetic

from spin_utils.experiment import plan, play, publish, run
from spin_utils.files import artifacts
from spin_utils.paper import results
from spin_utils.settings import profiles

Damage = Callable[[Path], None]


def flip(path: Path) -> None:
    """One bit in the middle: the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = [flip, cut, Path.unlink]


@pytest.fixture(scope="module")
def made(module_home: Path) -> Path:
    """A home with the smoke chain up to the first iteration."""
    smoke_chain.make(module_home, "eval-sft", "pairs-0", "spin-0")
    return module_home


@pytest.fixture
def steps(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> plan.Plan:
    """The plan over a copy of that home."""
    shutil.copytree(made / "artifacts", tmp_path / "artifacts")
    monkeypatch.setenv("SPIN_HOME", str(tmp_path))
    return plan.make(profiles.load("smoke"), 0)


@pytest.mark.parametrize(
    ("step", "input_step", "file"),
    [
        ("pairs-0", "data", "spin.jsonl"),
        ("pairs-0", "sft", "model.safetensors"),
        ("spin-0", "pairs-0", "pairs.arrow"),
        ("spin-0-more", "spin-0", "opponent_logps.npy"),
        ("spin-0-more", "spin-0", "state/state-00000006/state.safetensors"),
        ("eval-sft", "sft", "tokenizer.json"),
    ],
)
def test_a_bit_flipped_in_an_input_stops_the_step_that_reads_it(
    step: str, input_step: str, file: str, steps: plan.Plan
) -> None:
    shutil.rmtree(steps.directory(step), ignore_errors=True)
    flip(steps.directory(input_step) / file)
    with pytest.raises(
        artifacts.ArtifactError, match=f"{re.escape(file)}: changed since it was written.*; delete .* run again"
    ):
        run.make(steps, step)
    assert not steps.directory(step).exists()


def test_an_input_with_a_file_missing_or_cut_is_made_again(steps: plan.Plan) -> None:
    before = smoke_chain.contents(steps.directory("sft").parents[3])
    shutil.rmtree(steps.directory("pairs-0"))
    cut(steps.directory("sft") / "model.safetensors")
    (steps.directory("data") / "spin.jsonl").unlink()
    run.make(steps, "pairs-0")
    assert smoke_chain.contents(steps.directory("sft").parents[3]) == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("step", "file"), [("eval-sft", "evaluation.json"), ("spin-0", "training.json"), ("pairs-0", "pairs.arrow")]
)
def test_a_damaged_measurement_is_not_published(damage: Damage, step: str, file: str, steps: plan.Plan) -> None:
    damage(steps.directory(step) / file)
    with pytest.raises(artifacts.ArtifactError, match=re.escape(file)):
        publish.publish([steps])


def stop_after(count: int, function: Callable) -> Callable:
    """The function, interrupted before it is called once more than `count` times."""
    calls = iter(range(count))

    def limited(*arguments, **options):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return limited


SHARD, LOGPS, PRECISION = "scratch/00000000.json", "opponent_logps.npy", "scratch/precision.json"


@pytest.mark.parametrize(
    ("step", "room", "name", "count", "piece", "damage"),
    [
        *(("pairs-0", play, "sample", 1, SHARD, damage) for damage in (None, *DAMAGES)),
        *(("spin-0", play, "train", 0, piece, damage) for piece, damage in ((LOGPS, flip), (PRECISION, cut))),
    ],
)
def test_a_damaged_piece_of_a_stopped_step_is_made_again(
    step: str,
    room: object,
    name: str,
    count: int,
    piece: str,
    damage: Damage | None,
    steps: plan.Plan,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    home = steps.directory("sft").parents[3]
    before = smoke_chain.contents(home)
    shutil.rmtree(steps.directory(step))
    honest = getattr(room, name)
    monkeypatch.setattr(room, name, stop_after(count, honest))
    with pytest.raises(KeyboardInterrupt):
        run.make(steps, step)
    path = steps.directory(step).with_name(steps.directory(step).name + ".partial") / piece
    if damage is not None:
        damage(path)
    monkeypatch.setattr(room, name, honest)
    with caplog.at_level(logging.WARNING):
        run.make(steps, step)
    assert (f"{path.name}: changed since it was written (hash); it is made again" in caplog.text) is (
        damage in (flip, cut)
    )
    assert smoke_chain.contents(home) == before


def test_a_piece_that_changes_after_it_was_finished_keeps_the_artifact_from_completion(home: Path) -> None:
    directory = home / "artifacts" / "thing-abc"

    def build(change: bool) -> None:
        with artifacts.building(directory, stage="test", settings={}, inputs={}, seed=0) as work:
            (work / "epoch-1").mkdir(exist_ok=True)
            (work / "epoch-1" / "model").write_text("weights")
            artifacts.keep(work, work / "epoch-1" / "model")
            if change:
                flip(work / "epoch-1" / "model")

    with pytest.raises(artifacts.ArtifactError, match="epoch-1/model: changed since it was written"):
        build(True)
    assert not directory.exists()
    build(False)
    artifacts.verify(directory)


def every_flip(path: Path, step: int) -> Iterator[None]:
    """The file with one bit flipped in every few bytes, one at a time, the bits going round."""
    data = path.read_bytes()
    for place in range(0, len(data), step):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        yield
    path.write_bytes(data)


def test_every_flipped_bit_of_a_manifest_is_refused(made: Path) -> None:
    (path,) = made.glob("artifacts/smoke/seed-0/sft-*/manifest.json")
    for _ in every_flip(path, 5):
        with pytest.raises(artifacts.ArtifactError, match=r"sft-.*; (delete|run)"):
            artifacts.read_manifest(path.parent)
    artifacts.read_manifest(path.parent)


def test_every_flipped_bit_of_a_results_file_is_refused(tmp_path: Path) -> None:
    root = synthetic.write(tmp_path, seeds=(0,), models={"sft": 0.5}, items=3)
    path = results.path_of(root, 0, "evaluations", "sft")
    for _ in every_flip(path, 5):
        with pytest.raises(results.ResultsError, match="sft.json"):
            results.read_json(path)
    results.read_json(path)
