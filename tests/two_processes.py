"""What `process_runs.in_two` starts with torchrun; it leaves its findings in the folder it is given."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from disturbed import after_step
from process_runs import SPIN, ask, chain, each_run, pairs, settings
from safetensors.torch import save_file
from tiny_models import tiny_model

from spin_utils.files import processes
from spin_utils.model import sharding
from spin_utils.model.logprobs import score
from spin_utils.training.loop import Interrupted, train
from spin_utils.training.optimizer import MasterOptimizer


def main(folder: Path, kinds: Sequence[str]) -> None:
    with processes.group("ddp"):
        for kind in kinds:
            processes._place = dataclasses.replace(processes._place, sharding=kind)  # one group for both
            train_all(folder / kind, folder / "one-stopped")
        if "ddp" not in kinds:
            return
        processes._place = dataclasses.replace(processes._place, sharding="ddp")
        answered = ask()
        if processes.rank() == 0:
            (folder / "likelihoods.json").write_text(json.dumps(answered))
        chain(folder / "home")


def train_all(folder: Path, one_stopped: Path) -> None:
    """The runs of one process, one that is stopped, and one that was stopped in one process."""
    scored = tiny_model("llama")
    if processes.sharded():
        sharding.shard(scored, torch.float32)
    logps = score(scored, pairs(), micro_batch_tokens=40)
    found: dict[str, Any] = {"logps": logps}
    shapes: list[dict[str, int]] = []
    with watched(shapes):
        for name, model, rows in each_run(folder, logps):
            found[name] = rows
            keep(model, folder / f"{name}.safetensors")
    found["parts"] = processes.gather(shapes[0])

    try:
        with after_step(3, rank=1):
            train(tiny_model("llama"), pairs(), settings(SPIN), opponent_logps=logps, seed=1, work=folder / "stopped")
        found["stopped"] = "no"
    except Interrupted as request:
        found["stopped"] = str(request)

    model, work = tiny_model("llama"), one_stopped.with_name(f"{one_stopped.name}-{folder.name}")
    train(model, pairs(), settings(SPIN), opponent_logps=logps, seed=1, work=work)
    keep(model, folder / "resumed.safetensors")
    if processes.rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))


def keep(model: Any, path: Path) -> None:
    weights = sharding.whole_weights(model) or dict(model.named_parameters())
    if processes.rank() == 0:
        save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, path)


@contextmanager
def watched(shapes: list[dict[str, int]]) -> Iterator[None]:
    """Notes how many numbers this process holds of the weights and what belongs to them, and of all there are."""
    before = MasterOptimizer.add_up

    def noting(optimizer: Any) -> None:
        before(optimizer)
        own = {"weights": map(sharding.local, optimizer.parameters), "masters": optimizer.masters}
        own |= {"gradients": optimizer.gradients, **optimizer.moments}
        counts = {name: sum(tensor.numel() for tensor in tensors) for name, tensors in own.items()}
        if optimizer.steps == 0:
            shapes.append({"all": sum(getattr(p, "ds_numel", p.numel()) for p in optimizer.parameters), **counts})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MasterOptimizer, "add_up", noting)
        yield


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    processes.leave(0)
