"""One training run on pairs: SPIN against the opponent it starts from, or DPO against its reference.

The two differ only in where the pairs come from (sec. 4.2), so they share everything here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spin_utils import artifacts, models, processes, sharding
from spin_utils.logprobs import score
from spin_utils.optimizer import choose_precision
from spin_utils.packing import Group
from spin_utils.progress import progress
from spin_utils.settings import Precision, TrainingSettings
from spin_utils.trackers import TENSORBOARD
from spin_utils.training import TrainingResult, train
from spin_utils.writing import replacing


def train_on_pairs(
    start: Path,
    groups: Sequence[Group],
    settings: TrainingSettings,
    *,
    seed: int,
    work: Path,
    what: str,
    model_epoch: int = 0,
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
        model_epoch: the epoch whose weights are the model when the run is longer; the other epochs are then kept
            in `epoch-N`. 0: the last one, and nothing else is kept.
    """
    settings = replace(settings, precision=_precision(settings, work))
    opponent_logps = _opponent_logps(start, groups, settings, work)
    model = models.load(start)

    def keep_epoch(epoch: int, model: Any) -> None:
        keep_checkpoint(model, start, work if epoch == model_epoch else work / f"epoch-{epoch}")

    result = train(
        model,
        groups,
        settings,
        opponent_logps=opponent_logps,
        seed=seed,
        work=artifacts.scratch(work),
        on_epoch_end=keep_epoch if model_epoch else None,
        what=what,
    )
    if not model_epoch:
        keep_checkpoint(model, start, work)
    keep_metrics(result, work)


def keep_checkpoint(model: Any, start: Path, folder: Path) -> None:
    """Write a model and the tokenizer of the checkpoint it started from; all processes together, the first writes."""
    weights = sharding.whole_weights(model)
    if processes.rank():
        return
    model.save_pretrained(folder, safe_serialization=True, state_dict=weights)
    models.copy_tokenizer(models.resolve(start), folder)


def keep_metrics(result: TrainingResult, work: Path) -> None:
    """Write `training.json`, the precision that was used and the metric rows, and keep what TensorBoard shows."""
    artifacts.write_json(work / "training.json", {"precision": result.precision, "rows": result.rows})
    shown = artifacts.scratch(work) / TENSORBOARD
    if shown.is_dir() and processes.rank() == 0:
        shutil.copytree(shown, work / TENSORBOARD, dirs_exist_ok=True)


def _precision(settings: TrainingSettings, work: Path) -> Precision:
    # Chosen once for a run, also when it is resumed: opponent and policy compute alike.
    def choose() -> Precision:
        path = artifacts.scratch(work) / "precision.json"
        if not path.is_file():
            chosen = choose_precision(settings.precision, models.device())
            artifacts.write_json(path, str(chosen).removeprefix("torch."))
        return json.loads(path.read_text())

    return processes.from_first(choose)


def _opponent_logps(start: Path, groups: Sequence[Group], settings: TrainingSettings, work: Path) -> list[list[float]]:
    """Both log-probabilities of every pair under the opponent, computed once and kept with the artifact.

    Pairs of t-1 are scored by theta_t too: the opponent of an iteration is one model, whoever generated the pairs.
    The opponent computes in the precision of the policy, so that the two start equal.
    """
    path = work / "opponent_logps.npy"
    if processes.from_first(path.is_file):
        return np.load(path, allow_pickle=False).tolist()
    dtype = choose_precision(settings.precision)
    model = models.load(start, dtype)
    if processes.sharded():
        sharding.shard(model, dtype)
    with progress(len(groups), "opponent log-probabilities", "pairs") as bar:
        shown = processes.shown(bar.advance)
        values = score(model, groups, micro_batch_tokens=settings.micro_batch_tokens, progress=shown)
    logps = np.asarray(values, dtype=np.float32)
    if processes.rank() == 0:
        with replacing(path) as partial, partial.open("wb") as file:
            np.save(file, logps, allow_pickle=False)
    return logps.tolist()
