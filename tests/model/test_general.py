"""Any decoder of transformers is scored, trained and sampled as by its own forward pass, or refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoders import END, FAMILIES, SHAPE, model_of, pairs
from oracle import gradients, obvious_logps
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from spin_utils.experiment import play
from spin_utils.model import base, general, logprobs
from spin_utils.model.base import ModelError
from spin_utils.model.general import check_model, path_of
from spin_utils.model.logprobs import check_supported, greedy_logps, score, sequence_logps
from spin_utils.model.packing import Group, pack
from spin_utils.model.sampling import sample
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.run import GenerationSettings, TrainingSettings
from spin_utils.training.loop import Schedule, train


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_every_gradient_equal_the_models_own(family: str) -> None:
    several = Group([2, 9], ([4], [6, 7, END], [8] * 12, [4]))
    model, groups = model_of(family), [*pairs(4), Group([3], ([5],)), several]
    check_supported(model, 25)
    assert path_of(model) == FAMILIES[family][0]
    weights = torch.randn(13, generator=torch.Generator().manual_seed(1))
    logps, plain = sequence_logps(model, pack(groups)), obvious_logps(model, groups)
    torch.testing.assert_close(logps, plain, atol=2e-4, rtol=2e-5)
    ours, theirs = gradients(model, logps @ weights), gradients(model, plain @ weights)
    assert ours.keys() == theirs.keys()
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, atol=1e-4 * largest, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    scored = [logp for row in score(model, groups, micro_batch_tokens=40) for logp in row]
    chosen = pack(groups).sums(greedy_logps(model, pack(groups))[0]).tolist()
    torch.testing.assert_close(torch.tensor([scored, chosen]), plain.detach().expand(2, -1), atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_responses_equal_generate_and_sampled_ones_have_the_models_log_probability(family: str) -> None:
    model, prompts = model_of(family), [list(group.prompt_ids) for group in pairs(5, seed=3, longest=20)]
    settings = GenerationSettings(temperature=0, max_new_tokens=12, batch_size=3)
    ours = sample(model, prompts, eos_ids={END, 7}, settings=settings, seed=0)
    for prompt, response in zip(prompts, ours, strict=True):
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=[END, 7], pad_token_id=END
        )
        assert response.token_ids == output[0, len(prompt) :].tolist()
        assert response.finish_reason == ("stop" if response.token_ids[-1] in (END, 7) else "length")
    drawn = sample(
        model, prompts, eos_ids={END}, settings=replace(settings, temperature=1.0), seed=5, samples_per_prompt=2
    )
    groups = [Group(prompt, tuple(drawn[2 * i + j].token_ids for j in (0, 1))) for i, prompt in enumerate(prompts)]
    with torch.no_grad():
        logps = obvious_logps(model, groups).tolist()
    assert [response.logp for response in drawn] == pytest.approx(logps, abs=1e-3)
    once = replace(settings, temperature=1.0)
    (alone,) = sample(model, [prompts[1]], eos_ids={END}, settings=once, seed=5, streams=[3])
    assert alone.token_ids == drawn[3].token_ids


@pytest.mark.parametrize(
    ("family", "checkpointing"),
    [("gemma2", True), ("opt", False), ("opt", True), ("falcon", True), ("qwen3_moe", True)],
)
def test_training_equals_plain_gradient_steps_without_dropout(family: str, checkpointing: bool, tmp_path: Path) -> None:
    groups = [group._replace(response_ids=group.response_ids[:1]) for group in pairs(8)]
    settings = TrainingSettings(
        learning_rate=1e-3,
        epochs=1,
        batch_size=4,
        warmup_ratio=0.0,
        precision="float32",
        micro_batch_tokens=40,
        gradient_checkpointing=checkpointing,
    )
    model, plain = model_of(family), model_of(family)
    rows = train(model, groups, settings, seed=1, work=tmp_path).rows
    optimizer = torch.optim.RMSprop(plain.parameters(), lr=1e-3, alpha=0.99, eps=1e-8)
    for step, row in enumerate(rows):
        plan = Schedule(8, settings, seed=1)
        batch = [groups[i] for i in plan.indices(step)]
        loss = -obvious_logps(plain, batch).sum() / sum(len(group.response_ids[0]) for group in batch)
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.param_groups[0]["lr"] = plan.learning_rate(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("family", ["llama", "falcon_h1", "olmo2"])
def test_a_policy_in_bfloat16_starts_equal_to_its_opponent(
    family: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where loading in bfloat16 rounds buffers (falcon_h1), and where only it would send a model another way."""
    monkeypatch.setattr(logprobs, "rounding", lambda model: {"atol": 1e-3 * (model.dtype == torch.float32), "rtol": 0})
    start, work = tmp_path / "start", tmp_path / "work"
    base.save(model_of(family), byte_tokenizer(), start)
    work.mkdir()
    settings = TrainingSettings(learning_rate=1e-3, epochs=1, precision="bfloat16", micro_batch_tokens=40, beta=1.0)
    play.train_from(start, pairs(9), settings, seed=1, work=work, what="SPIN")
    (row,) = json.loads((work / "training.json").read_text())["rows"]
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["drift_real"] == row["drift_generated"] == 0


@pytest.mark.parametrize(("family", "kind"), [("llama", "longrope"), ("llama", "dynamic"), ("phi3", "longrope")])
def test_rows_for_which_rotary_angles_change_are_refused_and_shorter_ones_are_right(family: str, kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
        rope |= {"original_max_position_embeddings": 24}
    longest = 24 if kind == "longrope" else 64
    model = model_of(family, rope_parameters=rope, original_max_position_embeddings=24, sliding_window=None)
    groups = [Group([5, 9, 2], ([30] * (longest - 3), [7, 4])), Group([8], ([11, 12],))]
    check_supported(model, longest)
    with torch.no_grad():
        torch.testing.assert_close(
            sequence_logps(model, pack(groups)), obvious_logps(model, groups), atol=2e-4, rtol=2e-5
        )
    settings = GenerationSettings(temperature=0, max_new_tokens=longest - 3, batch_size=2)
    prompt = [5, 9, 2]
    (ours, _) = sample(model, [prompt, [8]], eos_ids=set(), settings=settings, seed=0)
    output = model.generate(torch.tensor([prompt]), max_new_tokens=longest - 3, do_sample=False, eos_token_id=None)
    assert ours.token_ids == output[0, 3:].tolist()
    with pytest.raises(ModelError, match=f"{longest + 1} tokens is longer than its {longest} positions"):
        sample(model, [[8, *prompt]], eos_ids=set(), settings=settings, seed=0)


def test_what_cannot_be_right_is_refused_before_any_work() -> None:
    with pytest.raises(ModelError, match="300 tokens is longer than its 256 positions"):
        check_model(tiny_model("llama"), 300)
    small = {**SHAPE, "num_hidden_layers": 1}
    sparse = AutoConfig.for_model("deepseek_v32", **small, index_topk=8)
    with torch.device("meta"), pytest.raises(ModelError, match="9 tokens is longer than its 8 positions"):
        check_model(AutoModelForCausalLM.from_config(sparse), 9)
    both = AutoConfig.for_model("gemma3_text", **small, head_dim=8, use_bidirectional_attention=True)
    with torch.device("meta"), pytest.raises(ModelError, match="tokens see later ones"):
        check_model(AutoModelForCausalLM.from_config(both), 10)
    for name in ("roformer", "rembert"):  # whose layers do not say that they are an encoder's
        with pytest.raises(ModelError, match="tokens see later ones"):
            check_supported(AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **small)), 10)
    with torch.device("meta"), pytest.raises(ModelError, match="no cache of keys and values"):
        check_model(AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", hidden_size=32)), 10)
    own = {**small, "head_dim": 8, "num_local_experts": 2, "layer_types": ["linear_attention"]}
    with pytest.raises(ModelError, match="MiniMaxForCausalLM: cannot be sampled from .*cache of its own"):
        check_supported(AutoModelForCausalLM.from_config(AutoConfig.for_model("minimax", **own)), 10)
    with torch.device("meta"), pytest.raises(ModelError, match="reads more than text"):
        check_model(AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3", text_config=small)), 10)


def test_packed_rows_that_differ_from_the_models_own_are_left_for_padded_ones(monkeypatch, caplog) -> None:
    model, groups = model_of("gpt_oss"), pairs(3)
    monkeypatch.setattr(general, "_path", lambda model: "packed")  # as if the dry run had seen no sink
    check_supported(model, 25)
    assert path_of(model) == "padded"
    assert "continuing with padded rows" in caplog.text
    torch.testing.assert_close(sequence_logps(model, pack(groups)), obvious_logps(model, groups), atol=2e-4, rtol=2e-5)


def test_a_model_with_changed_layers_is_refused_each_time() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.forward = lambda hidden: hidden
    for _ in range(2):
        with pytest.raises(ModelError, match="LlamaForCausalLM: .* its layers are changed"):
            check_supported(model, 9)


@pytest.mark.parametrize("family", ["gemma2", "mixtral", "gpt2", "opt", "gpt_neox"])
def test_a_saved_model_passes_the_folder_check_and_comes_back_as_it_was(family: str, tmp_path: Path) -> None:
    words = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    model = model_of(family, vocab_size=400)
    base.save(model, base.train_tokenizer(words, 300), tmp_path)
    base.check_folder(tmp_path, TemplateSettings())
    ids = torch.tensor([[5, 9, 2, 30]])
    again = base.load(tmp_path)
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in sorted(tensors) if "norm" in name or "ln_f" in name)
    save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"no tensor .*{name.split('.', 1)[1]}"):
        base.check_folder(tmp_path, TemplateSettings())
        base.load(tmp_path)
