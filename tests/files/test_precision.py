"""Machines compute in the precision in which they are fast; so does all work but training."""

import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer

from spin_utils.files import runtime
from spin_utils.files.runtime import choose_precision
from spin_utils.model import base


@pytest.fixture
def products(monkeypatch):
    """Seconds of a matrix product by precision, in place of measured ones."""
    seconds = {torch.bfloat16: 1.0, torch.float32: 1.0}
    runtime._fast_on_this_cpu.cache_clear()
    monkeypatch.setattr(runtime, "_seconds_of_a_product", seconds.__getitem__)
    yield seconds
    runtime._fast_on_this_cpu.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "chosen"), [(100, torch.float32), (0.7, torch.float32), (0.6, torch.bfloat16), (0.1, torch.bfloat16)]
)
def test_auto_takes_bfloat16_only_where_it_is_much_faster(products, seconds, chosen):
    products[torch.bfloat16] = seconds
    assert choose_precision() is chosen
    assert choose_precision("bfloat16") is torch.bfloat16
    assert choose_precision("float32") is torch.float32


@pytest.mark.parametrize(("seconds", "expected"), [(10, torch.float32), (0.2, torch.bfloat16)])
def test_models_that_answer_compute_in_it(products, tmp_path, seconds, expected):
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    products[torch.bfloat16] = seconds
    assert base.load_for_inference(tmp_path).dtype is expected
