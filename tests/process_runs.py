"""Runs in one process and in two, and what must be alike, for every way of sharing; torchrun starts this file twice."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import decoders
import numpy as np
import pytest
import torch
from disturbed import after_step
from safetensors.torch import load_file, save_file
from smoke_chain import TIMES
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer
from transformers import PreTrainedModel

from spin_utils.evaluation.lm import PackedLM
from spin_utils.experiment import plan, run
from spin_utils.files import processes, runtime
from spin_utils.model import sharding
from spin_utils.model.logprobs import score
from spin_utils.model.packing import Group
from spin_utils.settings import profiles
from spin_utils.settings.run import TrainingSettings
from spin_utils.training.loop import Interrupted, train
from spin_utils.training.optimizer import MasterOptimizer

PAIRS = decoders.pairs(13, longest=11, identical=range(0, 13, 4))
"""The last batch has 3 of them, of which one has equal answers: the processes have unequal shares."""
KINDS = ("ddp", "fsdp2")
"""Ways of sharing that are always there; DeepSpeed's is not."""
SPIN = {"learning_rate": 1e-4, "micro_batch_tokens": 30}
ROUNDED = {"precision": "bfloat16", "learning_rate": 1e-6, "epochs": 1}
"""Steps that are lost in weights of bfloat16."""
SFT = {"optimizer": "adamw", "max_grad_norm": 0.5, "weight_decay": 0.1, "gradient_checkpointing": True}


def settings(changes: dict[str, Any]) -> TrainingSettings:
    base = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 5, "precision": "float32", "micro_batch_tokens": 60}
    return TrainingSettings(**(base | changes))


def ask() -> list[tuple[float, bool]]:
    """Log-likelihoods of many continuations, in shards of a few."""
    lm = PackedLM(tiny_model("llama"), byte_tokenizer(), micro_batch_tokens=10)
    return lm._loglikelihood_tokens(
        [("", list(g.prompt_ids), list(response)) for g in PAIRS for response in g.response_ids]
    )


def small_plan(**changes: Any) -> plan.Plan:
    """The smoke profile from a random base model: answers, one iteration and its evaluation."""
    chosen = {"sft": None, "sft_more": 0, "dpo": None, "spin.iterations": 1, "spin.subsets": [], "spin.epochs_shown": 0}
    chosen |= {"generation.shard_rows": 5, "generation.max_new_tokens": 8, "evaluation.batch_size": 1}
    return plan.make(profiles.load("smoke", chosen | changes), seed=0)


def chain(home: Path) -> plan.Plan:
    """Every step of the small plan, in a home of its own."""
    os.environ["SPIN_HOME"] = str(home)
    made = small_plan()
    for step in made:
        run.make(made, step.name)
    return made


def in_one(folder: Path) -> dict[str, Any]:
    """What one process makes of the runs: log-probabilities, metric rows and weights by name."""
    logps = score(tiny_model("llama"), PAIRS, micro_batch_tokens=40)
    made: dict[str, Any] = {"logps": logps}
    for name, model, rows in each_run(folder, logps):
        made[name], made[f"{name} weights"] = rows, {n: p.detach() for n, p in model.named_parameters()}
    return made


def each_run(folder: Path, logps: list[list[float]]) -> Iterator[tuple[str, PreTrainedModel, list[dict[str, Any]]]]:
    """Train SPIN, SFT, and SPIN in bfloat16: name, trained model and metric rows of each."""
    for name, family, groups, changes, opponent in (
        ("spin", "llama", PAIRS, SPIN, logps),
        ("sft", "mistral", [Group(group.prompt_ids, group.response_ids[:1]) for group in PAIRS], SFT, None),
        ("rounded", "llama", PAIRS, ROUNDED, logps),
    ):
        model = tiny_model(family)
        result = train(model, groups, settings(changes), opponent_logps=opponent, seed=1, work=folder / name)
        yield name, model, result.rows


def in_two(folder: Path, kinds: Sequence[str], logps: list[list[float]]) -> None:
    """Do them in two processes, started by torchrun, once for each kind of sharing."""
    for kind in kinds:
        (folder / kind).mkdir()
        work = folder / f"one-stopped-{kind}"
        with after_step(3), pytest.raises(Interrupted):
            train(tiny_model("llama"), PAIRS, settings(SPIN), opponent_logps=logps, seed=1, work=work)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    environment = runtime.child_environment() | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", __file__, str(folder), *kinds],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert run.returncode == 0, run.stdout


def main(folder: Path, kinds: Sequence[str]) -> None:
    """What each of two processes does; it leaves its findings in the folder."""
    with processes.group("ddp"):
        for kind in kinds:
            processes._place = dataclasses.replace(processes._place, sharding=kind)  # one group for both
            train_all(folder / kind)
        if "ddp" not in kinds:
            return
        processes._place = dataclasses.replace(processes._place, sharding="ddp")
        answered = ask()
        if processes.rank() == 0:
            (folder / "likelihoods.json").write_text(json.dumps(answered))
        chain(folder / "home")


def train_all(folder: Path) -> None:
    """The runs of one process, one that is stopped, and one that was stopped in one process."""
    scored = tiny_model("llama")
    if processes.sharded():
        sharding.shard(scored, torch.float32)
    logps = score(scored, PAIRS, micro_batch_tokens=40)
    found: dict[str, Any] = {"logps": logps}
    shapes: list[dict[str, int]] = []
    with watched(shapes):
        for name, model, rows in each_run(folder, logps):
            found[name] = rows
            keep(model, folder / f"{name}.safetensors")
    found["parts"] = processes.gather(shapes[0])

    try:
        with after_step(3, rank=1):
            train(tiny_model("llama"), PAIRS, settings(SPIN), opponent_logps=logps, seed=1, work=folder / "stopped")
        found["stopped"] = "no"
    except Interrupted as request:
        found["stopped"] = str(request)

    model, work = tiny_model("llama"), folder.with_name(f"one-stopped-{folder.name}")
    train(model, PAIRS, settings(SPIN), opponent_logps=logps, seed=1, work=work)
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


def assert_like_one(one: dict[str, Any], folder: Path, *, share: float, apart: float) -> None:
    """What two processes made, and hold, and leave behind when they are stopped, is what one process does.

    Args:
        one: from `in_one`.
        folder: of one kind of sharing, filled by `in_two`.
        share: of the weights, and all that belongs to them, that each of two processes may hold; padding aside.
        apart: how far log-probabilities of the opponent may be from those of one process.
    """
    found = json.loads((folder / "found.json").read_text())
    for name, family in (("spin", "llama"), ("sft", "mistral")):  # alike up to the rounding of sums in float32
        assert len(found[name]) == len(one[name]) == 6
        for row, wanted in zip(found[name], one[name], strict=True):
            assert row.keys() == wanted.keys()
            for key in wanted.keys() - TIMES:
                assert row[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-5), (name, key)
        assert _distance(load_file(folder / f"{name}.safetensors"), one[f"{name} weights"], family) < 0.01
    assert float(np.abs(np.array(found["logps"]) - np.array(one["logps"])).max()) <= apart

    start = {name: weight.detach() for name, weight in tiny_model("llama").named_parameters()}
    rounded = load_file(folder / "rounded.safetensors"), one["rounded weights"]
    ways = [torch.cat([(weights[name] - start[name]).flatten() for name in start]) for weights in rounded]
    assert (ways[0] != 0).float().mean() > 0.9, "steps too small for bfloat16 are not lost"
    assert torch.cosine_similarity(*ways, dim=0) > 0.95

    total = sum(weight.numel() for weight in start.values())
    assert [part["all"] for part in found["parts"]] == [total] * 2
    for name in ("weights", "masters", "gradients", "square_avg"):
        held = [part[name] for part in found["parts"]]
        assert sum(held) == 2 * share * total
        assert max(held) < share * total * 1.02 or share == 1

    assert "stopped after step 3 of 6" in found["stopped"], "a signal to one process stops both at the same step"
    model = tiny_model("llama")
    result = train(model, PAIRS, settings(SPIN), opponent_logps=one["logps"], seed=1, work=folder / "stopped")
    assert [row["step"] for row in result.rows] == [1, 2, 3, 4, 5, 6]
    assert _distance({n: p.detach() for n, p in model.named_parameters()}, one["spin weights"], "llama") < 0.01
    assert _distance(load_file(folder / "resumed.safetensors"), one["spin weights"], "llama") < 0.01


def _distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], family: str) -> float:
    """Largest difference of a weight, as a part of the largest way that a weight has gone in training."""
    start = {name: weight.detach() for name, weight in tiny_model(family).named_parameters()}
    assert found.keys() == wanted.keys()
    apart = max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
    return apart / max(float((wanted[name] - start[name]).abs().max()) for name in wanted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    processes.leave(0)
