"""The kit's lm-eval model gives the numbers of lm-eval's own, faster and resumable."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny_models import FAMILIES, tiny_model
from tiny_tokenizer import TEXT, byte_tokenizer
from transformers import PreTrainedModel

from spin_utils.evaluation.answers import FILE, EvaluationError
from spin_utils.evaluation.lm import PackedLM, fingerprint
from spin_utils.settings.inputs import TemplateSettings

TEMPLATE = TemplateSettings(kind="text", prompt="Q: {prompt}\nA:", end="</s>")
TOKENIZER = byte_tokenizer()


def model_for(family: str = "llama", **options: Any) -> PreTrainedModel:
    return tiny_model(family, vocabulary=len(TOKENIZER), **options)


def stock(model: PreTrainedModel) -> HFLM:
    start = "gemma" in model.config.model_type
    return HFLM(pretrained=model, tokenizer=TOKENIZER, add_bos_token=start, batch_size=1)


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, values, i) for i, values in enumerate(arguments)]


def choices() -> list[tuple[str, str]]:
    """Contexts with several continuations, among them one token, none before it, and spaces at the seam."""
    rng = random.Random(0)
    words = TEXT.split()
    pairs = []
    for i in range(6):
        context = " ".join(rng.choices(words, k=5 + 4 * i)) + (" " if i % 2 else "")
        pairs += [(context, " " + " ".join(rng.choices(words, k=k))) for k in (1, 2, 4)]
        pairs += [(context, " a"), (context, " b")]
    return [*pairs, ("", "The cat"), ("", "One two"), pairs[0]]


@pytest.mark.parametrize("family", [*FAMILIES, "bloom", "gemma2"])  # without a number of positions; with a start token
def test_loglikelihoods_equal_those_of_stock_lm_eval(family: str) -> None:
    model = model_for(family)
    made, expected = (
        x.loglikelihood(requests("loglikelihood", choices()), disable_tqdm=True)
        for x in (PackedLM(model, TOKENIZER, micro_batch_tokens=200), stock(model))
    )
    assert [greedy for _, greedy in made] == [greedy for _, greedy in expected]
    assert [logp for logp, _ in made] == pytest.approx([logp for logp, _ in expected], abs=1e-4)


@pytest.mark.parametrize("length", [10, 61, 200])
def test_rolling_and_truncated_loglikelihoods_equal_those_of_stock_lm_eval(length: int) -> None:
    model = model_for(max_position_embeddings=60)
    text = TOKENIZER.decode(random.Random(length).choices(range(2, 300), k=length))
    both = PackedLM(model, TOKENIZER), stock(model)
    texts = requests("loglikelihood_rolling", [(text,), ("The cat",)])
    made, expected = (x.loglikelihood_rolling(texts, disable_tqdm=True) for x in both)
    assert made == pytest.approx(expected, rel=1e-5)
    pairs = requests("loglikelihood", [(text, " the cat"), (text, " dog")])
    scored, theirs = (x.loglikelihood(pairs, disable_tqdm=True) for x in both)
    assert [logp for logp, _ in scored] == pytest.approx([logp for logp, _ in theirs], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_stock_lm_eval_and_honours_until(family: str) -> None:
    model = model_for(family)
    options = {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False}
    long = {"until": [], "max_gen_toks": 20}
    arguments = [(text, options) for text in ("The cat", "Question: who", "One two three. The")]
    arguments += [("The dog saw", long), ("mat", long), ("The cat", options)]
    ours = PackedLM(model, TOKENIZER, batch_size=2).generate_until(requests("generate_until", arguments))
    assert ours == stock(model).generate_until(requests("generate_until", arguments), disable_tqdm=True)
    assert all("e" not in text for text in ours[:3])


@pytest.mark.parametrize("temperature", [{"temperature": 1.0}, {}])
def test_a_task_may_sample_and_repeats_differ(temperature: dict[str, float]) -> None:
    lm = PackedLM(model_for(), TOKENIZER)
    options = {"until": [], "do_sample": True, "max_gen_toks": 20, **temperature}
    made = lm.generate_until(requests("generate_until", [("The cat", options)] * 4))
    assert len(set(made)) == 4


def test_requests_that_cannot_be_met_are_refused() -> None:
    lm = PackedLM(model_for(), TOKENIZER)
    with pytest.raises(EvaluationError, match="256 tokens leaves no room for its prompt in the model's 256"):
        lm.generate_until(requests("generate_until", [("The cat", {"until": [], "max_gen_toks": 256})]))
    with pytest.raises(EvaluationError, match="continuation of 0 tokens"):
        lm.loglikelihood(requests("loglikelihood", [("The", "")]))


class KilledError(Exception):
    """Stands for a kill signal."""


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_answers(kind: str, tmp_path: Path) -> None:
    model = model_for()
    options = {"until": [], "max_gen_toks": 6}
    texts = [TOKENIZER.decode(random.Random(i).choices(range(2, 300), k=5 + i)) for i in range(12)]
    arguments = [(text, options if kind == "generate_until" else " the cat") for text in texts]

    def run(work: Path | None, progress: Callable[[int], object] | None = None) -> Any:
        lm = PackedLM(model, TOKENIZER, batch_size=1, micro_batch_tokens=16, work=work, progress=progress)
        return getattr(lm, kind)(requests(kind, arguments))

    done = 0

    def kill_after_eight(count: int) -> None:
        nonlocal done
        done += count
        if done > 8:
            raise KilledError

    whole = run(tmp_path / "whole")
    with pytest.raises(KilledError):
        run(tmp_path / "killed", kill_after_eight)
    path = tmp_path / "killed" / FILE
    kept = path.read_text().count("\n")
    assert kept >= 4
    with path.open("a") as file:
        file.write('{"key": "torn')
    counted: list[int] = []
    assert run(tmp_path / "killed", counted.append) == whole
    assert sum(counted) == 12 - kept
    assert path.read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert run(tmp_path / "killed", lambda _: pytest.fail("nothing is left to do")) == whole


def test_answers_of_another_model_or_template_are_not_found(tmp_path: Path) -> None:
    one, two = model_for(seed=0), model_for(seed=0)
    assert fingerprint(one) == fingerprint(two)
    with torch.no_grad():
        two.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    assert fingerprint(one) != fingerprint(two)
    for model, template in ((one, None), (two, None), (one, TEMPLATE)):
        lm = PackedLM(model, TOKENIZER, template=template, max_new_tokens=2, work=tmp_path)
        assert lm.answers.key("generate", ["a"]) not in lm.answers
        lm.answers.add({lm.answers.key("generate", ["a"]): 1})
