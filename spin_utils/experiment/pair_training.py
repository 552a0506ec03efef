"""One training run on pairs: SPIN against the opponent it starts from, or DPO against its reference.

The two differ only in where the pairs come from (sec. 4.2), so they share everything here.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spin_utils.files import artifacts, processes
from spin_utils.files.disk import replacing
from spin_utils.files.runtime import choose_precision, progress
from spin_utils.model import base, sharding
from spin_utils.model.logprobs import score
from spin_utils.model.packing import Group, Pairs
from spin_utils.settings.run import Precision, TrainingSettings
from spin_utils.training.loop import TrainingResult, train
from spin_utils.training.trackers import TENSORBOARD

LOGPS = "opponent_logps.npy"
_STATE = "state"
_PRECISION = "precision.json"
_STATE_FILES = ("state-*/*", _PRECISION)


def train_on_pairs(
    start: Path,
    groups: Pairs,
    settings: TrainingSettings,
    *,
    seed: int,
    work: Path,
    what: str,
    keep_epochs: Collection[int] = (),
    keep_state: bool = False,
    earlier: Path | None = None,
) -> None:
    """Train from a checkpoint that is also the opponent (or DPO's reference), and keep what comes out.

    Leaves the model and its tokenizer in `work`, its metrics in `training.json` and the opponent's
    log-probabilities in `opponent_logps.npy`. A run that was stopped goes on.

    Args:
        start: checkpoint to start from and to play against.
        groups: pairs (real, generated) or (chosen, rejected).
        settings: of the run.
        seed: of the order of the pairs.
        work: folder of the artifact that is being made.
        what: a few words for progress lines.
        keep_epochs: epochs whose checkpoints are kept in `epoch-N`, beside the last one, which is the model.
        keep_state: keep in `state` what another call needs to go on with more epochs.
        earlier: artifact of such a run of fewer epochs, from which this one goes on.
    """
    if earlier is not None:
        processes.from_first(lambda: _go_on_from(earlier, work))
    settings = replace(settings, precision=_precision(settings, work))
    opponent_logps = _opponent_logps(start, groups, settings, work)
    model = base.load(start)

    def keep_epoch(epoch: int, model: Any) -> None:
        if epoch in keep_epochs:
            keep_checkpoint(model, start, work / f"epoch-{epoch}")
            for file in sorted((work / f"epoch-{epoch}").glob("*")):
                artifacts.keep(work, file)  # the rest of the run may take hours, and more than one start

    result = train(
        model,
        groups,
        settings,
        opponent_logps=opponent_logps,
        seed=seed,
        work=artifacts.scratch(work),
        on_epoch_end=keep_epoch if keep_epochs else None,
        keep_state=keep_state,
        what=what,
        describe=groups.name,
    )
    keep_checkpoint(model, start, work)
    keep_metrics(result, work)
    if keep_state:
        processes.from_first(lambda: _link_state(artifacts.scratch(work), work / _STATE))


def keep_checkpoint(model: Any, start: Path, folder: Path) -> None:
    """Write a model and the tokenizer of the checkpoint it started from; all processes together, the first writes."""
    weights = sharding.whole_weights(model)
    if processes.rank():
        return
    model.save_pretrained(folder, safe_serialization=True, state_dict=weights)
    base.copy_tokenizer(base.resolve(start), folder)


def keep_metrics(result: TrainingResult, work: Path) -> None:
    """Write `training.json`, the precision that was used and the metric rows, and keep what TensorBoard shows."""
    artifacts.write_json(work / "training.json", {"precision": result.precision, "rows": result.rows})
    shown = artifacts.scratch(work) / TENSORBOARD
    if shown.is_dir() and processes.rank() == 0:
        shutil.copytree(shown, work / TENSORBOARD, dirs_exist_ok=True)


def _go_on_from(earlier: Path, work: Path) -> None:
    """Take over state, precision and opponent's log-probabilities of a run of fewer epochs, once."""
    path, precision = work / LOGPS, artifacts.scratch(work) / _PRECISION
    if not (artifacts.is_kept(work, path) and artifacts.is_kept(work, precision)):
        _link_state(earlier / _STATE, artifacts.scratch(work))
        with replacing(path) as partial:
            shutil.copyfile(earlier / LOGPS, partial)
        artifacts.keep(work, precision)
        artifacts.keep(work, path)


def _link_state(source: Path, target: Path) -> None:
    """Copy what a run goes on from, as links: these files are replaced, never changed, and as large as two models."""
    for path in (p for pattern in _STATE_FILES for p in source.glob(pattern)):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        artifacts.link(path, copy)


def _precision(settings: TrainingSettings, work: Path) -> Precision:
    # Chosen once for a run, also when it is resumed: opponent and policy compute alike.
    def choose() -> Precision:
        path = artifacts.scratch(work) / _PRECISION
        if not artifacts.is_kept(work, path):
            chosen = choose_precision(settings.precision, base.device())
            artifacts.write_json(path, str(chosen).removeprefix("torch."))
            artifacts.keep(work, path)
        return json.loads(path.read_text())

    return processes.from_first(choose)


def _opponent_logps(start: Path, groups: Sequence[Group], settings: TrainingSettings, work: Path) -> list[list[float]]:
    """Both log-probabilities of every pair under the opponent, computed once and kept with the artifact.

    Pairs of t-1 are scored by theta_t too: the opponent of an iteration is one model, whoever generated the pairs.
    The opponent computes in the precision of the policy, so that the two start equal.
    """
    path = work / LOGPS
    if processes.from_first(lambda: artifacts.is_kept(work, path)):
        return np.load(path, allow_pickle=False).tolist()
    dtype = choose_precision(settings.precision)
    model = base.load(start, dtype)
    if processes.sharded():
        sharding.shard(model, dtype)
    with progress(len(groups), "opponent log-probabilities", "pairs") as bar:
        shown = processes.shown(bar.advance)
        values = score(model, groups, micro_batch_tokens=settings.micro_batch_tokens, progress=shown)
    logps = np.asarray(values, dtype=np.float32)
    if processes.rank() == 0:
        whole = io.BytesIO()  # straight to a file, NumPy hides why it could not write
        np.save(whole, logps, allow_pickle=False)
        with replacing(path) as partial:
            partial.write_bytes(whole.getvalue())
        artifacts.keep(work, path)
    return logps.tolist()
