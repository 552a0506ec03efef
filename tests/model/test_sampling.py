"""The sampler draws from the model's own distribution, whatever is decoded beside a prompt."""

from __future__ import annotations

import itertools
import random
import weakref
from collections import Counter
from contextlib import nullcontext
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import obvious_logps
from scipy.stats import chisquare
from tiny_models import FAMILIES, VOCABULARY, tiny_model
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from spin_utils.model.decoding import Decoder
from spin_utils.model.packing import Group
from spin_utils.model.sampling import draw, sample
from spin_utils.settings.run import GenerationSettings

END = 1


def ragged_prompts(count: int, longest: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(2, VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def rescored(model: PreTrainedModel, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        return obvious_logps(model, [Group(prompt, (response,))]).item()


def exact_distribution(model: PreTrainedModel, prompt: list[int], length: int) -> dict[tuple[int, ...], float]:
    """Probability of every response of at most `length` tokens, ended by END or cut."""
    vocabulary = model.config.vocab_size
    sequences = [
        (*head, last)
        for size in range(1, length + 1)
        for head in itertools.product([t for t in range(vocabulary) if t != END], repeat=size - 1)
        for last in (range(vocabulary) if size == length else [END])
    ]
    with torch.no_grad():
        logps = obvious_logps(model, [Group(prompt, tuple(sequences))])
    return dict(zip(sequences, logps.exp().tolist(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_frequencies_of_all_short_responses_follow_the_exact_distribution(family: str) -> None:
    model = tiny_model(family, vocabulary=6)
    prompt, draws = [2, 3, 4], 6000
    exact = exact_distribution(model, prompt, 3)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    settings = GenerationSettings(max_new_tokens=3, batch_size=500)
    drawn = sample(model, [prompt] * draws, eos_ids={END}, settings=settings, seed=5)
    counts = Counter(tuple(response.token_ids) for response in drawn)
    assert set(counts) <= set(exact)
    table = pd.DataFrame({"expected": [exact[s] * draws for s in exact], "observed": [counts[s] for s in exact]})
    table = table.groupby(np.where(table["expected"] >= 5, table.index, -1)).sum()  # the rare ones together
    assert len(table) > 30
    assert chisquare(table["observed"], table["expected"] * draws / table["expected"].sum()).pvalue > 0.001


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_k": 3, "top_p": 0.5}])
def test_log_probability_is_the_models_own_also_when_the_draw_is_truncated(options: dict) -> None:
    model, prompts = tiny_model("llama"), ragged_prompts(12, 30)
    settings = GenerationSettings(max_new_tokens=20, batch_size=5, **options)
    for prompt, response in zip(prompts, sample(model, prompts, eos_ids={END}, settings=settings, seed=3), strict=True):
        assert response.logp == pytest.approx(rescored(model, prompt, response.token_ids), abs=2e-4)


def test_a_prompt_keeps_its_response_in_any_batch_and_order() -> None:
    model = tiny_model("qwen2")
    prompts = ragged_prompts(40, 25)
    settings = {size: GenerationSettings(max_new_tokens=30, batch_size=size) for size in (1, 3, 64)}
    runs = [sample(model, prompts, eos_ids={END, 9}, settings=s, seed=11) for s in settings.values()]
    tokens = [[s.token_ids for s in run] for run in runs]
    assert len({len(t) for t in tokens[0]}) > 5
    assert tokens[0] == tokens[1] == tokens[2]
    order = random.Random(1).sample(range(40), 40)
    shuffled = sample(
        model, [prompts[i] for i in order], eos_ids={END, 9}, settings=settings[3], seed=11, streams=order
    )
    assert [s.token_ids for s in shuffled] == [tokens[0][i] for i in order]
    part = sample(model, prompts[30:], eos_ids={END, 9}, settings=settings[64], seed=11, streams=range(30, 40))
    assert [s.token_ids for s in part] == tokens[0][30:]


@pytest.mark.parametrize(("temperature", "batch_size", "most"), [(0.0, 7, 44), (1.0, 64, 9)])
def test_responses_that_share_a_prompts_pass_are_those_of_separate_rows(
    temperature: float, batch_size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_model("llama"), ragged_prompts(9, 25)
    settings = GenerationSettings(temperature=temperature, max_new_tokens=20, batch_size=batch_size)
    repeated = [prompt for prompt in prompts for _ in range(5)]
    separate = sample(model, repeated, eos_ids={END, 9}, settings=settings, seed=4)
    read: list[int] = []
    prefill = Decoder.prefill
    monkeypatch.setattr(Decoder, "prefill", lambda *a: read.append(len(a[1])) or prefill(*a))
    shared = sample(model, prompts, eos_ids={END, 9}, settings=settings, seed=4, samples_per_prompt=5)
    assert [s.token_ids for s in shared] == [s.token_ids for s in separate]
    assert [s.logp for s in shared] == pytest.approx([s.logp for s in separate], abs=1e-4)
    assert sum(read) <= most


def distribution_of_transformers(logits: torch.Tensor, settings: GenerationSettings) -> np.ndarray:
    scores = TemperatureLogitsWarper(settings.temperature)(None, logits.double()[None])
    if settings.top_k:
        scores = TopKLogitsWarper(settings.top_k)(None, scores)
    return TopPLogitsWarper(settings.top_p)(None, scores).softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.6},
        {"top_k": 40},
        {"top_p": 0.35},
        {"top_p": 0.9, "top_k": 200, "temperature": 1.3},
    ],
)
def test_a_fine_grid_of_uniform_numbers_reproduces_the_distribution_of_transformers(options: dict[str, float]) -> None:
    settings = GenerationSettings(**options)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(700, generator=generator) * 2
    points = 40_000
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    tokens, logps = draw(logits.expand(points, -1), uniform, settings)
    exact = distribution_of_transformers(logits, settings)
    share = np.bincount(tokens.numpy(), minlength=700) / points
    # An interval of length p holds p * points grid points, give or take one.
    assert np.abs(share - exact).max() <= 1.5 / points
    assert (share[exact == 0] == 0).all()
    torch.testing.assert_close(logps, logits.log_softmax(-1)[tokens])


def test_separate_projections_equal_fused_ones() -> None:
    model = tiny_model("qwen2")
    fused, separate = Decoder(model, 2, 16), Decoder(model, 2, 16, fuse=False)
    with torch.inference_mode():
        for decoder in (fused, separate):
            decoder.fit(0, 9)
        torch.testing.assert_close(fused.prefill([[2, 3], [4]], 0), separate.prefill([[2, 3], [4]], 0))


def test_a_cache_that_grows_and_shrinks_keeps_its_rows() -> None:
    model = tiny_model("llama")
    prompts = [[5] * 3, *ragged_prompts(3, 6), [7] * 150]
    settings = GenerationSettings(max_new_tokens=90, batch_size=2)
    for prompt, response in zip(prompts, sample(model, prompts, eos_ids=set(), settings=settings, seed=1), strict=True):
        assert response.logp == pytest.approx(rescored(model, prompt, response.token_ids), abs=2e-3)


def test_a_decoder_and_its_cache_end_with_its_last_use_also_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu(str):
        type = "cuda"

    device = Gpu("cpu")
    for name in ("Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: MagicMock(device="cpu"))
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    decoder = Decoder(tiny_model("llama"), 2, 16)
    decoder.device = device
    decoder.fit(0, 9)
    with torch.inference_mode():
        decoder.prefill([[2, 3], [4, 5]], 0)
        decoder.step(torch.tensor([6, 7]), torch.tensor([2, 2]))
    assert decoder.graphs
    left = weakref.ref(decoder)
    del decoder
    assert left() is None
