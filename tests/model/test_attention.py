"""Promises of packed attention, the fused layers and the head: exact, and left out where they would not be."""

from __future__ import annotations

import pytest
import torch
from oracle import gradients
from tiny_models import FAST, VOCABULARY, tiny_model

from spin_utils.model import attention, gpu_attention, layers, logprobs, packing
from spin_utils.model.attention import packed_attention
from spin_utils.model.logprobs import sequence_logps
from spin_utils.model.packing import Group, pack

GROUPS = [
    Group([3, 4, 5, 6, 7, 8], ([9, 10, 11], [12, 13, 14, 15, 16, 17, 18])),
    Group([5, 6, 7, 8, 9, 3], ([9, 10, 11, 12], [12, 13, 14, 15, 17, 18])),
    Group([2], ([3], [4, 5], [6])),
]


@pytest.mark.parametrize("groups", [GROUPS, GROUPS[:1] * 2], ids=["padded tiles", "full tiles"])
@pytest.mark.parametrize(
    ("way", "window", "softcap"),
    [
        ("blocks of 3", None, None),
        ("blocks of 128", None, None),
        ("as on a GPU", None, None),
        ("as long rows", None, None),
        ("blocks of 3", 4, None),
        ("plain", None, 1.5),
        ("plain", 4, None),
    ],
)
def test_attention_equals_a_masked_softmax_and_its_gradient_is_exact(monkeypatch, groups, way, window, softcap):
    if way == "as on a GPU":  # which has no window
        monkeypatch.setattr(attention, "attention_forward", lambda *given: gpu_attention.forward(*given[:5]))
        monkeypatch.setattr(attention, "attention_backward", lambda *given: gpu_attention.backward(*given[:6]))
    elif way == "as long rows":
        monkeypatch.setattr(packing, "LONG_ROW", 0)
    elif way != "plain":
        monkeypatch.setattr(attention, "BLOCK", int(way.split()[-1]))
    batch = pack(groups)
    tokens = batch.input_ids.numel()
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(tokens, heads, 4, dtype=torch.float64, generator=draw, requires_grad=True) for heads in (4, 2, 2)
    )
    group, segment = [], []
    for number, g in enumerate(groups):
        for part, ids in enumerate((g.prompt_ids, *g.response_ids)):
            group += [number] * len(ids)
            segment += [part] * len(ids)
    group, segment, place = torch.tensor(group), torch.tensor(segment), torch.arange(tokens)
    seen = (group[:, None] == group) & (place[:, None] >= place) & ((segment == 0) | (segment[:, None] == segment))
    if window:
        seen &= batch.position_ids[0][:, None] - batch.position_ids[0] < window
    scores = torch.einsum("thd,shd->hts", query, key.repeat_interleave(2, 1)) * 0.7
    scores = torch.tanh(scores / softcap) * softcap if softcap else scores
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
    expected = torch.einsum("hts,shd->thd", weights, value.repeat_interleave(2, 1))
    if way == "plain":
        made = attention._plain_attention(query, key, value, batch.layout, 0.7, window, softcap)
    else:
        made = attention._Attention.apply(query, key, value, batch.layout, 0.7, window)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if way == "plain" else {}  # its softmax sums in float32
    torch.testing.assert_close(made, expected, **tolerance)
    grads, wanted = (
        torch.autograd.grad(x.sin().sum(), (query, key, value), retain_graph=True) for x in (made, expected)
    )
    torch.testing.assert_close(grads, wanted, **tolerance)


@pytest.mark.parametrize("family", FAST)
def test_bfloat16_gradients_point_where_float32_gradients_point(family):
    def gradient(dtype):
        model = tiny_model(family, initializer_range=0.1).to(dtype)
        logps = sequence_logps(model, pack(GROUPS))
        return torch.cat([g.float().flatten() for g in gradients(model, logps.sum()).values()])

    exact, rounded = gradient(torch.float32), gradient(torch.bfloat16)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.9995
    assert float(rounded.norm() / exact.norm()) == pytest.approx(1, abs=0.01)


def test_the_head_in_chunks_equals_the_head_at_once(monkeypatch):
    model = tiny_model("llama")
    whole = sequence_logps(model, pack(GROUPS))
    wanted = gradients(model, whole.sum())
    for name, rows in (("KEPT_LOGITS", 1), ("CHUNK_LOGITS", 3), ("CACHED_LOGITS", 2)):
        monkeypatch.setattr(logprobs, name, rows * VOCABULARY)
    chunked = sequence_logps(model, pack(GROUPS))
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients(model, chunked.sum()).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5)


def test_layers_with_hooks_or_another_activation_keep_their_own_forward():
    hooked, other = tiny_model("llama"), tiny_model("llama", hidden_act="gelu")
    hooked.model.layers[0].mlp.register_forward_hook(lambda *args: None)
    for model, lent in ((hooked, [False, True]), (other, [False, False])):
        with layers.fast_layers(model):
            assert ["forward" in vars(layer) for layer in model.model.layers] == lent


def test_layers_and_attention_are_given_back_after_an_error():
    model = tiny_model("llama")
    before = model.config._attn_implementation
    with pytest.raises(KeyError), packed_attention(model), layers.fast_layers(model):
        raise KeyError
    assert "forward" not in vars(model.model.layers[0])
    assert model.config._attn_implementation == before


def test_a_pair_is_attended_to_alike_in_any_batch():
    """In bfloat16 too, to the bit, or a policy would not start equal to its opponent."""
    lengths = [(60, (300, 290)), (60, (330, 350)), (20, (30, 25)), (400, (100, 120)), (150, (90, 110)), (2, (2, 1))]
    groups = [Group([2] * prompt, tuple([3] * size for size in sizes)) for prompt, sizes in lengths]
    assert {group.in_rows for group in groups} == {True, False}
    draw, tokens = torch.Generator().manual_seed(0), sum(group.tokens for group in groups)
    query, key, value = (torch.randn(tokens, heads, 64, generator=draw).bfloat16() for heads in (4, 2, 2))
    together = attention.attention_forward(query, key, value, pack(groups).layout, 0.3).split(
        [g.tokens for g in groups]
    )
    start = 0
    for group, wanted in zip(groups, together, strict=True):
        own = slice(start, start := start + group.tokens)
        alone = attention.attention_forward(query[own], key[own], value[own], pack([group]).layout, 0.3)
        assert torch.equal(alone, wanted)
