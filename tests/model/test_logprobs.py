"""Promises of packing, attention and log-probabilities together, against the obvious oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import gradients, obvious_logps
from tiny_models import FAMILIES, VOCABULARY, tiny_model

from spin_utils.model import logprobs
from spin_utils.model.logprobs import sequence_logps
from spin_utils.model.packing import Group, pack

MODELS = {family: tiny_model(family) for family in FAMILIES}
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)
GROUPS = st.lists(st.builds(Group, TOKENS, st.lists(TOKENS, min_size=1, max_size=4).map(tuple)), min_size=1, max_size=3)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 10))
def test_packed_logps_and_every_gradient_equal_one_sequence_at_a_time(family, groups, seed):
    model = MODELS[family]
    batch = pack(groups)
    signs = torch.randn(len(batch.sizes), generator=torch.Generator().manual_seed(seed))
    expected, packed = obvious_logps(model, groups), sequence_logps(model, batch)
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)
    wanted, got = gradients(model, (expected * signs).sum()), gradients(model, (packed * signs).sum())
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-5 * max(1.0, float(gradient.abs().max())))


def test_the_head_in_chunks_equals_the_head_at_once(monkeypatch):
    groups = [Group([3, 4], ([5, 6, 7], [8, 9])), Group([2], ([9, 9, 9],))]
    model = MODELS["llama"]
    whole = sequence_logps(model, pack(groups))
    wanted = gradients(model, whole.sum())
    monkeypatch.setattr(logprobs, "KEPT_LOGITS", VOCABULARY)
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 3 * VOCABULARY)
    monkeypatch.setattr(logprobs, "CACHED_LOGITS", 2 * VOCABULARY)
    chunked = sequence_logps(model, pack(groups))
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients(model, chunked.sum()).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5)
