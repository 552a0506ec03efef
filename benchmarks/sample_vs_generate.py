"""Sampled tokens per second and peak memory: the kit's sampler against transformers' `generate` (and `generate_batch`).

    python -m benchmarks.sample_vs_generate --model MODEL_DIR [--continuous]

Each runs in a process of its own, in turn, after a few tokens that are not counted. All draw from the same model, in
the precision that is fast here, at temperature 1 without truncation, for the same prompts, 128 rows at a time.
`generate` is called as it usually is: prompts in their order, left-padded, one static batch after the other.
`--continuous` times transformers' continuous batching, `generate_batch`, on fewer and shorter rows: on a CPU a round of
256 prompts with 64 new tokens took longer than 7 minutes.

Two workloads: in `full` no token ends a response, so that nobody computes a row in vain; in `ended` responses end
early, as short answers do, and count with the tokens up to there. Random prompts have no answer that ends, so there a
random set of tokens ends a response; the record holds the mean length that came of it.

`full` also gives the share of the machine's matrix rate: each prompt and response token once through the layers, each
response token through the head, attention not counted.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from benchmarks.interleaved import (
    column,
    fast_precision,
    hand_over,
    load,
    machine,
    matmul_rate,
    options_parser,
    ratio,
    rounds,
    wall,
    write,
)
from spin_utils.model.sampling import sample
from spin_utils.settings.run import GenerationSettings
from spin_utils.training.step import matrix_weights

MANY, FEW = (256, 64, 128), (64, 32, 64)
"""Prompts, longest response and rows at a time, against `generate` and against `generate_batch`."""
PROMPT_TOKENS, RESPONSE_TOKENS = 40, 20
"""Mean length of a prompt, and of the responses of `ended`."""


def main() -> None:
    parser = options_parser(__doc__, list(WAYS))
    parser.add_argument("--continuous", action="store_true", help="against `generate_batch` instead of `generate`")
    parser.add_argument("--ends", type=int, nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    peer, (count, longest, batch) = ("generate_batch", FEW) if options.continuous else ("generate", MANY)
    model = load(options.model)
    prompts = random_prompts(count, PROMPT_TOKENS, model.config.vocab_size)
    if options.way:
        found = measure(options.way, model, prompts, options.ends, longest, batch)
        hand_over(**found, matmul_gflops=matmul_rate(fast_precision()))
        return
    work = {"model": options.model.name, "prompts": count, "new_tokens": longest, "batch": batch}
    document: dict[str, Any] = {"machine": machine(), "workload": work, "ratios": {}}
    for kind in ("full",) if options.continuous else ("full", "ended"):
        ends = [] if kind == "full" else end_tokens(model, prompts, longest)
        runs = rounds(["ours", peer], options.runs, "--ends", *ends)
        document[kind] = {"runs": runs, "mean_response_tokens": runs["ours"][0]["tokens"] / len(prompts)}
        early = "_ended" * (kind == "ended")
        for name, measured in ((f"sample_vs_{peer}", "rate"), (f"sample_memory_vs_{peer}", "peak_gib")):
            document["ratios"][name + early] = ratio(column(runs["ours"], measured), column(runs[peer], measured))
        if kind == "full":
            peak = max(column(runs["ours"], "matmul_gflops"))
            flop = flop_per_token(model, prompts, longest)
            done = [rate * flop / 1e9 for rate in column(runs["ours"], "rate")]
            name = "sample_batch" if options.continuous else "sample"
            document["ratios"][f"{name}_fraction_of_matmul_peak"] = ratio(done, [peak] * len(done))
    print(document["ratios"])
    print(write(f"sample_vs_{peer}", document))


def measure(
    way: str, model: PreTrainedModel, prompts: list[list[int]], ends: list[int], new_tokens: int, batch: int
) -> dict[str, float]:
    """Tokens that one way draws, and how many per second, after a few that are not counted."""
    draw = WAYS[way]
    draw(model, prompts[:8], ends, 4, batch)
    started = wall()
    tokens = draw(model, prompts, ends, new_tokens, batch)
    return {"rate": tokens / (wall() - started), "tokens": tokens}


def flop_per_token(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> float:
    """Products with weights for a response token, its part of the prompt included, nothing computed twice."""
    body, head = matrix_weights(model)
    read = sum(map(len, prompts)) / len(prompts) / new_tokens
    return 2 * (body * (1 + read) + head)


def random_prompts(count: int, mean: int, vocabulary: int) -> list[list[int]]:
    """Random tokens; lengths log-normal with a spread of 0.3, which is what chat prompts of one kind have."""
    rng = random.Random(0)
    lengths = [max(2, round(mean * rng.lognormvariate(-0.045, 0.3))) for _ in range(count)]
    return [[rng.randrange(5, vocabulary) for _ in range(length)] for length in lengths]


def end_tokens(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> list[int]:
    """Random tokens that together make up one in `RESPONSE_TOKENS` of those that the model says."""
    settings = GenerationSettings(max_new_tokens=new_tokens, batch_size=64)
    said = Counter(t for s in sample(model, prompts[:64], eos_ids=[], settings=settings, seed=1) for t in s.token_ids)
    chosen: list[int] = []
    for token in random.Random(0).sample(sorted(said), len(said)):
        if sum(said[t] for t in chosen) * RESPONSE_TOKENS >= said.total():
            break
        chosen.append(token)
    return sorted(chosen)


def ours(model: PreTrainedModel, prompts: list[list[int]], eos_ids: list[int], new_tokens: int, batch: int) -> int:
    settings = GenerationSettings(max_new_tokens=new_tokens, batch_size=batch)
    made = sample(model, prompts, eos_ids=eos_ids, settings=settings, seed=0)
    return sum(len(one.token_ids) for one in made)


def generate(model: PreTrainedModel, prompts: list[list[int]], eos_ids: list[int], new_tokens: int, batch: int) -> int:
    config, end, total = configuration(eos_ids, new_tokens), torch.tensor(eos_ids, device=model.device), 0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        length = max(map(len, part))
        ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in part], device=model.device)
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in part], device=model.device)
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=mask, generation_config=config)[:, length:]
        ended = torch.isin(made, end)
        first = torch.where(ended.any(1), ended.int().argmax(1) + 1, made.shape[1])
        total += int(first.sum())
    return total


def generate_batch(
    model: PreTrainedModel, prompts: list[list[int]], eos_ids: list[int], new_tokens: int, batch: int
) -> int:
    made = model.generate_batch(
        inputs=prompts,
        generation_config=configuration(eos_ids, new_tokens),
        # Left alone it takes most of the machine's memory for its cache.
        continuous_batching_config=ContinuousBatchingConfig(seed=0, num_blocks=2 * batch, max_batch_tokens=2048),
        warmup=False,
        progress_bar=False,
    )
    return sum(len(output.generated_tokens) for output in made.values())


WAYS = {"ours": ours, "generate": generate, "generate_batch": generate_batch}


def configuration(eos_ids: list[int], new_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new_tokens,
        eos_token_id=eos_ids or None,
        pad_token_id=0,
    )


if __name__ == "__main__":
    main()
