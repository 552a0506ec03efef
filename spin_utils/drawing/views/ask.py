"""One prompt, answered by every iterate at once, token by token, in the colours of what its iteration changed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import pandas as pd
import torch
from IPython.display import HTML
from transformers import DynamicCache

from spin_utils.data.templates import decode_response, encode_prompts, end_ids
from spin_utils.drawing.views import explore, show
from spin_utils.experiment.plan import Plan
from spin_utils.files import runtime
from spin_utils.model import base
from spin_utils.model.general import check_model, next_logits
from spin_utils.settings.inputs import TemplateSettings

SECONDS = 0.1
"""Minimum time between two pictures of the growing answers."""


def ask(plan: Plan, prompt: str) -> Iterator[HTML]:
    """The most likely answers of all models made so far as they grow; the last picture has them whole.

    In the prompt `explore.BREAK` stands for a line break. A token is blue if the iteration made it more likely than its
    opponent, the model in the line above, had it, and orange if less likely.
    """
    prompt = prompt.replace(explore.BREAK, "\n")
    folders = explore.iterates(plan)
    try:
        models = base.load_to_compare(folders.values(), runtime.choose_precision("auto", base.device()))
    except base.ModelError as error:
        yield show.texts(pd.DataFrame({"no answers": [str(error)]}))
        return
    said: dict[str, list[tuple[str, float]]] = {name: [] for name in folders}
    answers: list[Iterator[tuple[str, float]]] = []
    if models:
        template, most = plan.profile.template, plan.profile.generation.max_new_tokens
        tokenizer = base.load_tokenizer(next(iter(folders.values())))
        [ids], ends = encode_prompts(tokenizer, template, [prompt]), end_ids(tokenizer, template)
        for model, opponent in zip(models, [None, *models], strict=False):
            answers.append(_texts(stream(model, opponent, ids, ends, most), tokenizer, template))
    due = 0.0
    for tokens in zip_longest(*answers):
        for texts, token in zip(said.values(), tokens, strict=True):
            texts += [token] if token else []
        if time.monotonic() >= due:
            yield show.changes(said)
            due = time.monotonic() + SECONDS
    yield show.changes(said)


@torch.inference_mode()
def stream(
    model: Any, opponent: Any, prompt: Sequence[int], ends: Collection[int], most: int
) -> Iterator[tuple[int, float]]:
    """The most likely answer to a prompt, at most `most` tokens that stop after one of `ends`.

    Yields:
        A token, the end token included, and its log policy/opponent in nats; without an opponent 0.
    """
    check_model(model, 1)
    ids = torch.tensor([list(prompt)], device=model.device)
    mask = torch.ones_like(ids)
    readers = [(reader, DynamicCache(config=reader.config)) for reader in (model, opponent) if reader is not None]
    for _ in range(most):
        logps = [next_logits(reader, ids, mask, cache)[0].float().log_softmax(-1) for reader, cache in readers]
        token = int(logps[0].argmax())
        yield token, float(logps[0][token] - logps[-1][token])
        if token in ends:
            return
        ids, mask = ids.new_tensor([[token]]), torch.cat([mask, mask[:, :1]], 1)


def _texts(
    drawn: Iterator[tuple[int, float]], tokenizer: Any, template: TemplateSettings
) -> Iterator[tuple[str, float]]:
    """Each token as the text that it adds; the end token as a sign of its own."""
    ids: list[int] = []
    before, ends = "", end_ids(tokenizer, template)
    for token, change in drawn:
        ids.append(token)
        text = decode_response(tokenizer, template, ids)
        yield "∎" if token in ends else text[len(before) :], change
        before = text.rstrip("\ufffd")  # a character whose bytes are still to come
