"""The fast paths and a whole chain on a GPU: `python -m pytest -m gpu` on a machine that has one.

The oracles are those of the CPU's tests, in float32 on the GPU, or the CPU itself.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import decoders
import pytest
import torch
from disturbed import after_step
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from oracle import gradients, obvious_logps
from smoke_chain import reproduce
from tiny_models import FAMILIES, tiny_model
from tiny_tokenizer import byte_tokenizer
from transformers import PreTrainedModel

from spin_utils.evaluation.lm import PackedLM
from spin_utils.experiment import estimate
from spin_utils.model.logprobs import score, sequence_logps
from spin_utils.model.packing import Group, pack
from spin_utils.model.sampling import draw, sample
from spin_utils.settings.run import GenerationSettings, TrainingSettings
from spin_utils.training.loop import Interrupted, TrainingResult, train

pytestmark = pytest.mark.gpu


def on_gpu(family: str, **options: Any) -> PreTrainedModel:
    return tiny_model(family, **options).to("cuda").eval()


@pytest.mark.parametrize("longest", [20, 80])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_log_probabilities_and_gradients_equal_the_obvious_ones(family: str, longest: int) -> None:
    model, groups = on_gpu(family), decoders.pairs(12, longest=longest)
    packed = sequence_logps(model, pack(groups, "cuda"))
    obvious = obvious_logps(model, groups)
    torch.testing.assert_close(packed, obvious, rtol=1e-5, atol=2e-4)
    weights = torch.linspace(-1, 1, len(packed), device="cuda")
    got, wanted = (gradients(model, (logps * weights).sum()) for logps in (packed, obvious))
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("family", ["qwen3", "smollm3", "gemma2", "phi3", "qwen3_moe", "bloom"])
def test_other_decoders_are_scored_and_sampled_as_by_their_own_forward_pass(family: str) -> None:
    model, groups = decoders.model_of(family).cuda(), decoders.pairs(6)
    logps = sequence_logps(model, pack(groups, model.device))
    torch.testing.assert_close(logps, obvious_logps(model, groups), atol=1e-3, rtol=1e-4)
    settings = GenerationSettings(max_new_tokens=12, batch_size=4)
    prompts = [list(group.prompt_ids) for group in groups]
    drawn = sample(model, prompts, eos_ids={decoders.END}, settings=settings, seed=0)
    answered = [Group(prompt, (answer.token_ids,)) for prompt, answer in zip(prompts, drawn, strict=True)]
    torch.testing.assert_close(
        torch.tensor([answer.logp for answer in drawn]), obvious_logps(model, answered).cpu(), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 40}, {"top_p": 0.8}])
def test_draws_equal_those_of_the_cpu(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 5003, generator=generator)
    uniform = torch.rand(500, generator=generator, dtype=torch.float64)
    settings = GenerationSettings(**options)
    token, logp = draw(logits, uniform, settings)
    token_gpu, logp_gpu = draw(logits.to("cuda"), uniform.to("cuda"), settings)
    same = token == token_gpu.cpu()
    assert same.float().mean() > 0.995  # a number within rounding of a boundary falls on either side
    torch.testing.assert_close(logp[same], logp_gpu.cpu()[same], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_generate_and_their_log_probability_the_models_own(family: str) -> None:
    model, rng = on_gpu(family), random.Random(0)
    prompts = [[rng.randrange(2, 61) for _ in range(rng.randint(1, 40))] for _ in range(30)]
    settings = GenerationSettings(temperature=0, max_new_tokens=24, batch_size=8)
    answers = sample(model, prompts, eos_ids={decoders.END, 7}, settings=settings, seed=0)
    for prompt, answer in zip(prompts, answers, strict=True):
        made = model.generate(
            torch.tensor([prompt], device="cuda"),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=[decoders.END, 7],
            pad_token_id=decoders.END,
        )
        assert answer.token_ids == made[0, len(prompt) :].tolist()
        (own,) = obvious_logps(model, [Group(prompt, (answer.token_ids,))]).tolist()
        assert answer.logp == pytest.approx(own, abs=2e-4)


def test_log_likelihoods_and_answers_equal_those_of_stock_lm_eval() -> None:
    tokenizer = byte_tokenizer()
    model, options = on_gpu("mistral", vocabulary=len(tokenizer)), {"until": ["e"], "max_gen_toks": 12}
    texts = [tokenizer.decode(random.Random(i).choices(range(2, 300), k=5 + 3 * i)) for i in range(12)]
    ours = PackedLM(model, tokenizer, micro_batch_tokens=200, batch_size=5)
    stock = HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=False, batch_size=4)
    for kind, arguments in (
        ("loglikelihood", [(text, answer) for text in texts for answer in (" the cat", " dog")]),
        ("generate_until", [(text, options) for text in texts]),
    ):
        requests = [Instance(kind, {}, values, i) for i, values in enumerate(arguments)]
        made, expected = (getattr(lm, kind)(requests, disable_tqdm=True) for lm in (ours, stock))
        if kind == "generate_until":
            assert made == expected
        else:
            assert [greedy for _, greedy in made] == [greedy for _, greedy in expected]
            assert [logp for logp, _ in made] == pytest.approx([logp for logp, _ in expected], abs=1e-4)


def trained(model: PreTrainedModel, work: Path, longest: int = 20, **options: Any) -> TrainingResult:
    settings = {"learning_rate": 1e-4, "epochs": 2, "batch_size": 8, "precision": "float32", "micro_batch_tokens": 800}
    groups = decoders.pairs(40, longest=longest)
    opponent = score(model, groups, micro_batch_tokens=500)
    settings = TrainingSettings(**(settings | options))
    return train(model, groups, settings, opponent_logps=opponent, seed=1, work=work)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_equals_that_of_the_cpu(family: str, optimizer: str, tmp_path: Path) -> None:
    here = trained(tiny_model(family), tmp_path / "cpu", optimizer=optimizer)
    there = trained(on_gpu(family), tmp_path / "gpu", optimizer=optimizer)
    assert len(here.rows) == 10
    for a, b in zip(here.rows, there.rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_in_bfloat16_follows_that_in_float32(checkpointing: bool, tmp_path: Path) -> None:
    exact = trained(on_gpu("llama"), tmp_path / "float32")
    options = {"precision": "auto", "gradient_checkpointing": checkpointing}
    rounded = trained(on_gpu("llama"), tmp_path / "auto", **options)
    assert rounded.precision == "bfloat16"
    for a, b in zip(exact.rows, rounded.rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=0.03)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_run_ends_with_the_same_bytes(precision: str, tmp_path: Path) -> None:
    whole = on_gpu("llama")
    trained(whole, tmp_path / "whole", longest=80, precision=precision)
    with after_step(4), pytest.raises(Interrupted):
        trained(on_gpu("llama"), tmp_path / "stopped", longest=80, precision=precision)
    resumed = on_gpu("llama")
    trained(resumed, tmp_path / "stopped", longest=80, precision=precision)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_estimate_of_a_training_run_is_near_its_measured_peak(tmp_path: Path) -> None:
    """Of a model whose layers are large beside what the libraries hold."""
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 16}
    model = on_gpu("mistral", vocabulary=32000, num_key_value_heads=8, max_position_embeddings=4096, **sizes)
    groups = [Group(list(range(2, 258)), (list(range(2, 386)), list(range(3, 387)))) for _ in range(8)]
    settings = TrainingSettings(learning_rate=1e-6, epochs=1, batch_size=8, micro_batch_tokens=8192)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(model, groups, settings, opponent_logps=[(-50.0, -50.0)] * len(groups), seed=0, work=tmp_path)
    architecture = estimate.of_config(model.config)
    need = estimate.training_memory(architecture, settings, width=2, longest=1024, fused=True, gpu=True)
    measured = torch.cuda.max_memory_reserved()
    assert measured < need.total() < 2 * measured


def test_the_whole_chain_runs_on_the_gpu(tmp_path: Path) -> None:
    done = reproduce(tmp_path, "--profile", "smoke")
    assert done.returncode == 0, done.stdout
    manifests = sorted(tmp_path.glob("artifacts/smoke/*/spin-*/manifest.json"))
    assert manifests
    for path in manifests:
        assert "1 x " in json.loads(path.read_text())["device"]
    assert (tmp_path / "results" / "smoke" / "tables" / "table4.md").is_file()
