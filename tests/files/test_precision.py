"""Machines compute in the precision in which they are fast; so does all work but training."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer

from spin_utils.files import runtime
from spin_utils.files.runtime import choose_precision
from spin_utils.model import base


@pytest.mark.parametrize(
    ("seconds", "chosen"), [(100, torch.float32), (0.7, torch.float32), (0.6, torch.bfloat16), (0.1, torch.bfloat16)]
)
def test_models_that_answer_compute_in_it(
    seconds: float, chosen: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = {torch.bfloat16: seconds, torch.float32: 1.0}
    monkeypatch.setattr(runtime, "_seconds_of_a_product", products.__getitem__)
    monkeypatch.setattr(runtime, "_fast_on_this_cpu", runtime._fast_on_this_cpu.__wrapped__)  # measured anew
    assert choose_precision() is chosen, "bfloat16 only where it is much faster"
    assert choose_precision("bfloat16") is torch.bfloat16
    assert choose_precision("float32") is torch.float32
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert base.load_for_inference(tmp_path).dtype is chosen
