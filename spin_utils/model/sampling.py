"""Sampling from a policy: y' ~ p_theta(.|x), many prompts at once.

At temperature 1 without truncation this samples as in Algorithm 1; temperature 0 is greedy. Every response has its own
stream of random numbers, so it does not depend on what it is decoded with (docs/speed.md). A model whose forward pass
the kit's decoder does not have is sampled through its own: the same draws, but one batch after another.

Shape suffixes: B live rows, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from spin_utils.model.decoding import Decoder, misfit
from spin_utils.model.general import check_model, next_logits, padding
from spin_utils.model.packing import rows_at_once
from spin_utils.settings.run import GenerationSettings

logger = logging.getLogger(__name__)

PREFILL_TOKENS, GPU_PREFILL_TOKENS = 2048, 8192
"""Prompt tokens read in one pass; more on a GPU, where a pass of 2,048 would end before the next one is launched."""
CHUNK_ELEMENTS = 1 << 20
"""Logits processed at once in float32 on a CPU: 4 MB, to stay in cache."""
BLOCK = 256
"""Tokens per block of the two-level search in the cumulative distribution."""


class Sample(NamedTuple):
    """One response."""

    token_ids: list[int]
    """The response; its end token is included when `finish_reason` is `stop`."""
    finish_reason: Literal["stop", "length"]
    """`stop`: ended by an end token. `length`: cut at max_new_tokens."""
    logp: float
    """Sum of log p_theta(token | prompt, tokens before) over `token_ids`, always at temperature 1 without truncation,
    regardless of how the tokens were sampled."""


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Collection[int],
    settings: GenerationSettings,
    seed: int,
    streams: Sequence[int] | None = None,
    samples_per_prompt: int = 1,
    progress: Callable[[int], object] | None = None,
) -> list[Sample]:
    """Sample one or more responses per prompt.

    Args:
        model: Any decoder of transformers. Runs in its own dtype on its own device.
        prompts: Token ids of each prompt, none empty.
        eos_ids: Tokens that end a response; may be empty.
        streams: Number of each response's random stream, by default its index. With the same stream a response is the
            same (up to rounding in the matmuls) in any batch, order or shard.
        samples_per_prompt: Responses per prompt, which is read once for all that start together.
        progress: Called with the number of newly finished responses.

    Returns:
        Samples in the order of the prompts, with those for one prompt next to each other.

    Raises:
        ModelError: The model cannot be sampled from, or prompt and response need more positions than it has.
    """
    streams = range(len(prompts) * samples_per_prompt) if streams is None else streams
    if not prompts:
        return []
    longest = max(map(len, prompts)) + settings.max_new_tokens
    check_model(model, longest)
    reason = misfit(model, longest)
    if reason:
        logger.info("sampling through transformers' cache: %s", reason)
        return _sample_with_cache(model, prompts, eos_ids, settings, seed, streams, samples_per_prompt, progress)
    run = _Run(model, prompts, eos_ids, settings, seed, streams, samples_per_prompt)
    with torch.inference_mode():
        while run.live or run.waiting:
            finished = run.advance()
            if progress is not None and finished:
                progress(finished)
    return _samples(run.tokens, run.counts, run.stopped, run.logps)


def uniforms(seed: int, stream: int, count: int) -> np.ndarray:
    """The first `count` numbers of a stream, float64 in [0, 1), one per sampled token.

    Philox4x64-10 keyed by (seed, stream): a counter-based generator that passes BigCrush and whose streams are
    independent for all practical purposes (Salmon et al. 2011). Number t does not depend on `count`.

    >>> bool((uniforms(7, 3, 5)[:2] == uniforms(7, 3, 2)).all())
    True
    """
    key = np.array([seed, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw(logits_BV: Tensor, uniform_B: Tensor, settings: GenerationSettings) -> tuple[Tensor, Tensor]:
    """Sample one token per row by inverting its cumulative distribution.

    Args:
        logits_BV: Logits in any floating dtype.
        uniform_B: Uniform numbers in [0, 1), float64.
        settings: Temperature, top_k and top_p, applied in this order as in transformers.

    Returns:
        Tokens (B,) int64 and their log-probabilities (B,) float32 at temperature 1 without truncation.
    """
    rows = rows_at_once(CHUNK_ELEMENTS, logits_BV.shape[1], logits_BV.device)
    tokens, logps = [], []
    for logits, uniform in zip(logits_BV.split(rows), uniform_B.split(rows), strict=True):
        logits = logits.float()
        probability = logits.softmax(-1)
        if settings.temperature == 0:
            token = logits.argmax(-1)
        elif settings.temperature == 1 and settings.top_k == 0 and settings.top_p == 1:
            token = _invert(probability, uniform)
        else:
            token = _invert(_truncate(logits / settings.temperature, settings).softmax(-1), uniform)
        tokens.append(token)
        logps.append(probability.gather(1, token[:, None])[:, 0].log())
    return torch.cat(tokens), torch.cat(logps)


def _invert(probability_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Smallest token whose cumulative probability exceeds uniform * total; never a token of probability 0.

    A cumulative sum over the whole vocabulary would cost more than the softmax. Block sums find the block, and a short
    cumulative sum finds the token in it. Both are in float64, so even a probability of 1e-9 is kept.
    """
    size = probability_BV.shape[1]
    whole = size // BLOCK * BLOCK
    sums = probability_BV[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < size:
        sums = torch.cat((sums, probability_BV[:, whole:].sum(-1, keepdim=True)), 1)
    cumulative = sums.double().cumsum(-1)
    target = uniform_B[:, None] * cumulative[:, -1:]
    block = _first_above(cumulative, target)
    before = cumulative.gather(1, block) - sums.gather(1, block)
    columns = block * BLOCK + torch.arange(BLOCK, device=block.device)
    inside = probability_BV.gather(1, columns.clamp(max=size - 1)).double().masked_fill_(columns >= size, 0)
    offset = _first_above(inside.cumsum(-1), target - before)
    return (block * BLOCK + offset)[:, 0]


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Index (B, 1) of the first entry above target, or of the last increase if rounding left none above it."""
    above = (cumulative <= target).sum(-1, keepdim=True)
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(above, last)


def _truncate(logits_BV: Tensor, settings: GenerationSettings) -> Tensor:
    """Keep the top_k largest logits (all that tie with the last), then the smallest set that reaches top_p."""
    if 0 < settings.top_k < logits_BV.shape[1]:
        least = logits_BV.topk(settings.top_k, -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    if settings.top_p < 1:
        ordered, index = logits_BV.sort(-1, descending=True)
        probability = ordered.softmax(-1)
        outside = probability.cumsum(-1) - probability >= settings.top_p
        logits_BV = logits_BV.masked_fill(outside.scatter(1, index, outside), -torch.inf)
    return logits_BV


class _Run:
    """The rows being decoded and the responses still waiting.

    Row i of every per-row tensor belongs to the response `response_of[i]`; rows 0 to live-1 are in use.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        eos_ids: Collection[int],
        settings: GenerationSettings,
        seed: int,
        streams: Sequence[int],
        samples_per_prompt: int,
    ) -> None:
        self.prompts, self.settings, self.seed, self.streams = prompts, settings, seed, streams
        self.samples_per_prompt = samples_per_prompt
        # Longest first: neighbours have similar lengths, and memory peaks at the start rather than after an hour.
        self.waiting = sorted(range(len(streams)), key=lambda i: len(self._prompt(i)))
        rows = min(settings.batch_size, len(streams))
        longest = len(self._prompt(self.waiting[-1])) + settings.max_new_tokens
        self.decoder = Decoder(model, rows, longest)
        device = self.decoder.device
        self.rows, self.live = rows, 0
        self.prefill_tokens = PREFILL_TOKENS if device.type == "cpu" else GPU_PREFILL_TOKENS
        self.eos = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)
        self.response_of, self.token, self.count, self.size = torch.zeros(4, rows, dtype=torch.long, device=device)
        self.uniform = torch.zeros(rows, settings.max_new_tokens, dtype=torch.float64, device=device)
        self.reach = 0
        self.tokens = torch.zeros(len(streams), settings.max_new_tokens, dtype=torch.int32, device=device)
        self.counts = torch.zeros(len(streams), dtype=torch.long, device=device)
        self.logps = torch.zeros(len(streams), dtype=torch.float64, device=device)
        self.stopped = torch.zeros(len(streams), dtype=torch.bool, device=device)

    def advance(self) -> int:
        """Give every live row its next token, fill free rows, remove finished rows; return how many finished."""
        hidden = []
        if self.live:
            position = (self.size + self.count - 1)[: self.live]
            self.reach = int(position.max()) + 1
            self.decoder.fit(self.live, self.reach)
            hidden.append(self.decoder.step(self.token[: self.live], position))
        free = self.rows - self.live
        # Reading several prompts together keeps the matmuls large, which outweighs a few idle rows for a few steps.
        if self.waiting and (free >= max(1, self.rows // 8) or not self.live):
            hidden.extend(self._admit(free))
        logits = self.decoder.head(torch.cat(hidden))
        n, row = self.live, torch.arange(self.live, device=logits.device)
        token, logp = draw(logits, self.uniform[row, self.count[:n]], self.settings)
        owner = self.response_of[:n]
        self.tokens[owner, self.count[:n]] = token.to(torch.int32)
        self.logps[owner] += logp
        self.token[:n] = token
        self.count[:n] += 1
        ended = torch.isin(token, self.eos)
        return self._retire(ended, ended | (self.count[:n] == self.settings.max_new_tokens))

    def _admit(self, free: int) -> list[Tensor]:
        hidden = []
        while free and self.waiting:
            chosen: list[int] = []
            prompts: dict[int, Sequence[int]] = {}
            total = 0
            while self.waiting and len(chosen) < free and total < self.prefill_tokens:
                chosen.append(self.waiting.pop())
                owner = chosen[-1] // self.samples_per_prompt
                total += 0 if owner in prompts else len(self.prompts[owner])
                prompts[owner] = self.prompts[owner]
            rows = slice(self.live, self.live + len(chosen))
            sizes = [len(self._prompt(i)) for i in chosen]
            self.reach = max(self.reach, *sizes) if self.live else max(sizes)
            self.decoder.fit(self.live, self.reach)
            hidden.append(self._read(prompts, chosen))
            self.response_of[rows] = torch.tensor(chosen)
            self.size[rows] = torch.tensor(sizes)
            self.count[rows] = 0
            numbers = [uniforms(self.seed, self.streams[i], self.settings.max_new_tokens) for i in chosen]
            self.uniform[rows] = torch.from_numpy(np.stack(numbers)).to(self.uniform.device)
            self.live += len(chosen)
            free -= len(chosen)
        return hidden

    def _read(self, prompts: dict[int, Sequence[int]], chosen: list[int]) -> Tensor:
        """Read each prompt once, and give every chosen response a row with its prompt's cache and hidden state."""
        hidden = self.decoder.prefill(list(prompts.values()), self.live)
        if len(prompts) == len(chosen):
            return hidden
        place_of = {prompt: place for place, prompt in enumerate(prompts)}
        places = torch.tensor([place_of[i // self.samples_per_prompt] for i in chosen], device=hidden.device)
        self.decoder.move(self.live + places, self.live + torch.arange(len(chosen), device=hidden.device))
        return hidden[places]

    def _prompt(self, response: int) -> Sequence[int]:
        return self.prompts[response // self.samples_per_prompt]

    def _retire(self, ended: Tensor, done: Tensor) -> int:
        """Record finished rows and move the last live rows into their places."""
        finished = done.nonzero()[:, 0]
        if not len(finished):
            return 0
        owner = self.response_of[finished]
        self.counts[owner] = self.count[finished]
        self.stopped[owner] = ended[finished]
        left = self.live - len(finished)
        holes = finished[finished < left]
        movers = (~done[left:]).nonzero()[:, 0] + left
        if len(holes):
            self.decoder.move(movers, holes)
            for state in (self.response_of, self.token, self.count, self.size, self.uniform):
                state[holes] = state[movers]
        self.live = left
        return len(finished)


def _sample_with_cache(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    eos_ids: Collection[int],
    settings: GenerationSettings,
    seed: int,
    streams: Sequence[int],
    samples_per_prompt: int,
    progress: Callable[[int], object] | None,
) -> list[Sample]:
    """`sample` for any decoder: prompts of similar length together, padded on the left."""
    eos = torch.tensor(sorted(eos_ids), dtype=torch.long, device=model.device)
    samples: dict[int, Sample] = {}
    lengths = [len(prompts[i // samples_per_prompt]) for i in range(len(streams))]
    order, rows = sorted(range(len(streams)), key=lambda i: -lengths[i]), settings.batch_size
    # Where padding would change a response, only prompts of equal length share a batch.
    together = [order] if padding(model) else [list(run) for _, run in groupby(order, lengths.__getitem__)]
    model.eval()
    with torch.inference_mode():
        for batch in (run[start : start + rows] for run in together for start in range(0, len(run), rows)):
            numbers = np.stack([uniforms(seed, streams[i], settings.max_new_tokens) for i in batch])
            owners = [i // samples_per_prompt for i in batch]
            drawn = _decode(model, prompts, owners, torch.from_numpy(numbers).to(model.device), eos, settings)
            samples |= zip(batch, drawn, strict=True)
            if progress is not None:
                progress(len(batch))
    return [samples[i] for i in range(len(streams))]


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    uniform_BT: Tensor,
    eos: Tensor,
    settings: GenerationSettings,
) -> list[Sample]:
    """One response for each prompt in `owners`; a prompt is read once, and finished rows leave the batch."""
    device, rows = model.device, len(owners)
    place_of = {prompt: place for place, prompt in enumerate(dict.fromkeys(owners))}
    read = [torch.tensor(prompts[prompt]) for prompt in place_of]
    ids = pad_sequence(read, batch_first=True, padding_side="left").to(device)
    mask = pad_sequence([torch.ones_like(row) for row in read], batch_first=True, padding_side="left").to(device)
    cache: Any = DynamicCache(config=model.config)
    logits = next_logits(model, ids, mask, cache)
    chosen = torch.tensor([place_of[prompt] for prompt in owners], device=device)
    if len(place_of) < rows:
        cache.reorder_cache(chosen)
    logits, mask, live = logits[chosen], mask[chosen], torch.arange(rows, device=device)
    tokens = torch.zeros(rows, settings.max_new_tokens, dtype=torch.long, device=device)
    counts = torch.zeros(rows, dtype=torch.long, device=device)
    logps = torch.zeros(rows, dtype=torch.float64, device=device)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(settings.max_new_tokens):
        token, logp = draw(logits, uniform_BT[live, step], settings)
        tokens[live, step] = token
        counts[live] += 1
        logps[live] += logp
        ended = torch.isin(token, eos)
        stopped[live] = ended
        left = (~ended).nonzero()[:, 0]
        if not len(left) or step + 1 == settings.max_new_tokens:
            break
        if len(left) < len(live):
            cache.reorder_cache(left)
            token, mask, live = token[left], mask[left], live[left]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        logits = next_logits(model, token[:, None], mask, cache)
    return _samples(tokens, counts, stopped, logps)


def _samples(tokens: Tensor, counts: Tensor, stopped: Tensor, logps: Tensor) -> list[Sample]:
    parts = zip(tokens.tolist(), counts.tolist(), stopped.tolist(), logps.float().tolist(), strict=True)
    return [Sample(row[:count], "stop" if stop else "length", logp) for row, count, stop, logp in parts]
