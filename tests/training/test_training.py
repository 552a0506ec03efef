"""Promises of the training loop."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from decoders import pairs
from disturbed import after_step
from oracle import gradients, obvious_logps
from safetensors.torch import load_file
from tiny_models import tiny_model

from spin_utils.files import processes, runtime
from spin_utils.files.paths import KitError
from spin_utils.model import lora, sharding
from spin_utils.model.logprobs import score, sequence_logps
from spin_utils.model.packing import Group, PairsError, pack
from spin_utils.settings.run import LoraSettings, TrainingSettings
from spin_utils.training import loop, step
from spin_utils.training.loop import Interrupted, train
from spin_utils.training.optimizer import MasterOptimizer
from spin_utils.training.step import TrainingError


def _settings(**changes):
    base = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, "precision": "float32", "micro_batch_tokens": 60}
    return TrainingSettings(**(base | changes))


_pairs = partial(pairs, longest=8)


def _scores(pairs):
    return score(tiny_model("llama"), pairs, micro_batch_tokens=100)


def _run(work, pairs=None, model=None, opponent_logps=None, **changes):
    pairs = _pairs(10) if pairs is None else pairs
    model = model or tiny_model("llama")
    opponent_logps = _scores(pairs) if opponent_logps is None else opponent_logps
    options = {k: changes.pop(k) for k in ("stops", "seed", "describe") if k in changes}
    result = train(
        model, pairs, _settings(**changes), opponent_logps=opponent_logps, work=work, **({"seed": 1} | options)
    )
    return model, result


def _same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("changes", [{}, {"skip_identical": False}, {"nll": 0.1}, {"epochs": 1}])
def test_the_micro_batches_for_the_opponent_are_those_in_which_the_policy_first_sees_a_pair(
    tmp_path, monkeypatch, changes
):
    """The rounding of products depends on their number of rows on some processors (AMX)."""
    pairs, seen, changes = _pairs(23, identical=(3, 8)), [], {"batch_size": 5, **changes}
    batches = loop.first_micro_batches(pairs, _settings(**changes), seed=1)
    assert sorted(index for batch in batches for index in batch) == list(range(23))
    monkeypatch.setattr(step, "pack", lambda groups, _: seen.append([pairs.index(g) for g in groups]) or pack(groups))
    _run(tmp_path, pairs, **changes)
    skipped = {3, 8} if changes.get("skip_identical", True) and "nll" not in changes else set()
    planned = [batch for batch in batches if not skipped & set(batch)]
    assert len(planned) > 5  # more than one in a step
    assert seen[: len(planned)] == planned


def _formula(policy, opponent, lengths, settings):
    """Mean loss of a batch, one group and one term at a time; rows hold the log-probabilities of a group's answers."""

    def reward(group, place):
        reference = 0.0 if settings.reference_free else opponent[group][place]
        return settings.beta * (policy[group][place] - reference)

    def logistic(margin):
        return torch.log(1 + torch.exp(-margin))

    total = torch.zeros(())
    for group in range(len(policy)):
        places = [1] if settings.historical else range(1, len(policy[group]))
        shortfall = (opponent[group][0] - policy[group][0]).clamp(min=0)
        for place in places:
            margin = reward(group, 0) - reward(group, place) - settings.beta * settings.positive * shortfall
            total = total + logistic(margin) / len(places)
        if settings.historical:
            total = total + settings.historical * logistic(reward(group, 1) - reward(group, 2))
    nll = -sum(row[0] for row in policy) / sum(lengths)
    return total / len(policy) + settings.nll * nll


@pytest.mark.parametrize(
    ("answers", "changes"),
    [
        (1, {"nll": 0.5}),
        (1, {"positive": 5.0}),
        (1, {"reference_free": True}),
        (2, {"reference_free": True, "historical": 0.3}),
        (3, {}),
        (3, {"nll": 0.2, "positive": 2.0}),
    ],
)
def test_every_term_that_follow_up_work_adds_is_its_plain_formula(tmp_path, answers, changes):
    draws = [_pairs(8, seed=seed, identical=(1,)) for seed in range(answers)]
    groups = [
        Group(first.prompt_ids, (first.response_ids[0], *(pairs[place].response_ids[1] for pairs in draws)))
        for place, first in enumerate(draws[0])
    ]
    opponent = torch.tensor(score(tiny_model("llama"), groups, micro_batch_tokens=100))
    opponent += torch.randn(opponent.shape, generator=torch.Generator().manual_seed(0))  # or nothing would fall short
    settings = {"batch_size": 8, "epochs": 1, "beta": 0.3, **changes}
    _, result = _run(tmp_path, groups, opponent_logps=opponent.tolist(), **settings)
    oracle = tiny_model("llama")
    policy = obvious_logps(oracle, groups).view(8, -1)
    lengths = [len(group.response_ids[0]) for group in groups]
    loss = _formula(policy, opponent, lengths, _settings(**settings))
    norm = torch.stack([g.square().sum() for g in gradients(oracle, loss).values()]).sum().sqrt()
    assert result.rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert result.rows[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_tokens": 1},
        {"micro_batch_tokens": 10_000},
        {"skip_identical": False},
        {"gradient_checkpointing": True},
    ],
)
def test_what_saves_memory_or_time_does_not_change_the_result(tmp_path, changes):
    pairs = _pairs(10, identical=(1, 4, 7))
    _, usual = _run(tmp_path / "a", pairs, learning_rate=1e-4)
    _, other = _run(tmp_path / "b", pairs, learning_rate=1e-4, **changes)
    for a, b in zip(usual.rows, other.rows, strict=True):
        for name in ("loss", "margin", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6)
    assert sum(row["skipped"] for row in usual.rows) == 6
    assert sum(row["skipped"] for row in other.rows) == (0 if "skip_identical" in changes else 6)


@pytest.mark.parametrize(
    ("stop_after", "how"),
    [(1, {"precision": "float32"}), (3, {"optimizer": "adamw"}), (5, {"precision": "bfloat16"})],
)
def test_a_stopped_run_ends_with_the_same_bytes(tmp_path, stop_after, how):
    whole, result = _run(tmp_path / "whole", **how)
    with after_step(stop_after), pytest.raises(Interrupted, match=rf"step {stop_after} of 6.*continues"):
        _run(tmp_path / "stopped", **how)
    resumed, again = _run(tmp_path / "stopped", **how)
    assert _same(whole, resumed)
    lasting = ("step", "loss", "margin", "grad_norm", "learning_rate")
    assert [[row[k] for k in lasting] for row in again.rows] == [[row[k] for k in lasting] for row in result.rows]


def test_a_killed_run_goes_on_from_its_last_saved_state(tmp_path):
    work, (whole, _) = tmp_path / "killed", _run(tmp_path / "whole")

    def die():
        raise KeyboardInterrupt

    with after_step(5, die), pytest.raises(KeyboardInterrupt):
        _run(work, save_minutes=0)
    with (work / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert [path.name for path in work.glob("state-*")] == ["state-00000004"]
    resumed, result = _run(work, save_minutes=0)
    assert _same(whole, resumed)
    assert [row["step"] for row in result.rows] == [1, 2, 3, 4, 5, 6]
    assert [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()] == result.rows


def test_a_state_of_another_run_is_refused_with_the_difference(tmp_path):
    _run(tmp_path, save_minutes=0)
    with pytest.raises(KitError, match=r"beta: 0\.1 then, 5\.0 now"):
        _run(tmp_path, save_minutes=0, beta=5.0)


def test_a_loss_that_is_not_finite_stops_and_names_the_pair(tmp_path):
    pairs = _pairs(10)
    opponent = _scores(pairs)
    opponent[6][0] = float("nan")
    model = tiny_model("llama")
    with pytest.raises(TrainingError, match="the loss of group 6 is not finite"):
        _run(tmp_path, pairs, model, opponent_logps=opponent, batch_size=10)
    assert _same(model, tiny_model("llama"))


def test_a_gradient_that_overflows_stops_before_the_step_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    step = MasterOptimizer.grad_norm

    def overflowing(self):
        if self.steps == 2:
            self.gradients[0].view(-1)[3] = float("inf")
        return step(self)

    monkeypatch.setattr(MasterOptimizer, "grad_norm", overflowing)
    with pytest.raises(TrainingError, match=r"the gradient of row 1?\d, .* is not finite; the last saved state"):
        _run(tmp_path, save_minutes=0, describe="row {}".format)
    monkeypatch.undo()
    kept = load_file(tmp_path / "state-00000002" / "state.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())
    resumed, _ = _run(tmp_path, save_minutes=0)
    assert _same(resumed, _run(tmp_path / "whole")[0])


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """Between logged steps nobody looks at the gradient."""
    step = MasterOptimizer.step

    def overflowing(self, *arguments):
        step(self, *arguments)
        if self.steps == 2:
            self.masters[1].view(-1)[3] = float("nan")

    monkeypatch.setattr(MasterOptimizer, "step", overflowing)
    for folder, minutes in (("saving", 0), ("at the end", 9)):
        with pytest.raises(TrainingError, match=r"(\.weight|loss of group \d+.*) is not finite"):
            _run(tmp_path / folder, save_minutes=minutes, log_every=10)
        assert [path.name for path in (tmp_path / folder).glob("state-*")] == ["state-00000001"][: minutes == 0]


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_row_that_does_not_fit_is_named_with_the_remedy(message, tmp_path, monkeypatch):
    def cramped(model, batch):
        raise RuntimeError(message)

    monkeypatch.setattr("spin_utils.training.step.sequence_logps", cramped)
    longest = max(range(4), key=lambda i: _pairs(4)[i].tokens)
    with pytest.raises(TrainingError, match=rf"with group {longest} alone, \d+ tokens; set gradient_checkpointing"):
        _run(tmp_path, _pairs(4), opponent_logps=[[0.0, 0.0]] * 4)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(tmp_path, monkeypatch, caplog):
    def cramped(model, batch):
        if batch.input_ids.numel() > 30:
            raise torch.OutOfMemoryError("out of memory")
        return sequence_logps(model, batch)

    whole, _ = _run(tmp_path / "a", micro_batch_tokens=30)
    monkeypatch.setattr("spin_utils.training.step.sequence_logps", cramped)
    short, _ = _run(tmp_path / "b", micro_batch_tokens=60)
    assert caplog.text.count("micro-batches of 30 tokens") == 1
    assert _same(whole, short)


def test_memory_that_nobody_uses_goes_back_to_the_kernel():
    program = (
        "import psutil; from spin_utils.files import runtime; rss = lambda: psutil.Process().memory_info().rss\n"
        "blocks = [(bytearray(b'x') * 2**20, bytearray(2**10)) for _ in range(200)]\n"
        "kept = [small for _, small in blocks]; del blocks; before = rss(); runtime.trim_memory()\n"
        "print(before - rss())"
    )
    environment = {**runtime.child_environment(), **runtime.ENVIRONMENT}
    given_back = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert int(given_back.stdout) > 150 * 2**20, given_back.stderr


def test_an_epoch_ends_with_the_exact_weights_and_goes_on_as_if_nothing_was_looked_at(tmp_path):
    seen = []

    def look(model):
        seen.append([p.detach().clone() for p in model.parameters()])

    alone, _ = _run(tmp_path / "alone", precision="bfloat16")
    looked_at, _ = _run(tmp_path / "looked at", precision="bfloat16", stops={3: look, 6: look})
    assert _same(alone, looked_at)
    assert [weights[0].dtype for weights in seen] == [torch.float32] * 2
    assert all(torch.equal(a, b) for a, b in zip(seen[1], alone.parameters(), strict=True))


def test_the_share_of_the_machine_is_that_of_the_work_done_also_with_adapters_and_with_shards(tmp_path, monkeypatch):
    asked, runs = [], []
    monkeypatch.setattr(loop, "WORTH_MEASURING", 0.0)
    monkeypatch.setattr(runtime, "matrix_rate", lambda device, dtype: asked.append(dtype) or 1e9)
    monkeypatch.setattr(loop, "StepRunner", lambda *given: runs.append(step.StepRunner(*given)) or runs[-1])
    pairs, model = _pairs(4), tiny_model("llama")
    tokens, responses = sum(g.tokens for g in pairs), sum(len(ids) for g in pairs for ids in g.response_ids)
    body, head = step.matrix_weights(model)
    assert head == model.get_input_embeddings().weight.numel()
    assert body + head == sum(p.numel() for p in model.parameters()), "the head is the table of embeddings"
    _, result = _run(tmp_path / "all", pairs, epochs=1)
    assert runs[-1].flops == 6 * (body * tokens + head * responses)
    assert result.rows[-1]["matrix_share"] == runs[-1].flops / runs[-1].seconds / 1e9
    adapters = LoraSettings(rank=2)
    lora.attach(model, adapters, seed=0)
    _run(tmp_path / "adapters", pairs, model, epochs=1, lora=adapters)
    body, head = step.matrix_weights(model)
    assert runs[-1].flops == 4 * (body * tokens + head * responses), "no gradient of a weight"
    monkeypatch.setattr(processes, "sharded", lambda: True)
    monkeypatch.setattr(sharding, "shard", lambda model, dtype: torch.float32)  # FSDP2's shards
    _run(tmp_path / "shards", pairs, precision="bfloat16", epochs=1)
    assert asked == [torch.float32, torch.float32, torch.bfloat16]
    for parameter in model.parameters():  # as DeepSpeed leaves it
        parameter.ds_numel, parameter.data = parameter.numel(), torch.empty(0)
    assert step.matrix_weights(model) == (body, head)


def test_every_epoch_has_every_pair_once_in_another_order():
    plan = loop.Schedule(10, _settings(), seed=5)
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in plan.indices(step)] for e in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert plan.indices(1) == epochs[0][4:8]


def test_wrong_groups_are_refused_before_any_work(tmp_path):
    with pytest.raises(PairsError, match="group 0: 2 responses; expected 1"):
        train(tiny_model("llama"), _pairs(2), _settings(), seed=0, work=tmp_path)
    with pytest.raises(PairsError, match="group 0: 2 responses; expected 3"):
        _run(tmp_path, _pairs(2), opponent_logps=[[0.0] * 3] * 2)
