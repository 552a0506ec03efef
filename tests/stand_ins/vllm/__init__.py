"""Stands in for vLLM 0.33 in the tests: the part of its public interface that the kit uses, strict about arguments.

It shares no code with the kit: transformers' own forward pass in float64, one prompt and one token at a time. What vLLM
refuses is refused here; a name that it does not have, or that the kit has no need of, is an error.
`STAND_IN` in the environment makes it fail as a real engine may.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModelForCausalLM

__version__ = "0.33.0"
FAULT = os.environ.get("STAND_IN", "")

assert importlib.util.find_spec("spin_utils") is None, "the kit must not be importable in vLLM's environment"


class TokensPrompt(dict):
    """Token ids of a prompt."""

    def __init__(self, *, prompt_token_ids: list[int]) -> None:
        super().__init__(prompt_token_ids=prompt_token_ids)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one prompt is answered; no defaults, so that nothing is left to vLLM's."""

    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: int
    detokenize: bool
    seed: int

    def __post_init__(self) -> None:
        assert type(self.temperature) is float, self.temperature
        assert self.temperature == 0 or 0.01 <= self.temperature <= 2, self.temperature
        assert type(self.top_k) is int, self.top_k
        assert self.top_k >= 0, self.top_k
        assert 0 < self.top_p <= 1, self.top_p
        assert self.max_tokens >= 1, self.max_tokens
        assert self.stop_token_ids, "nothing would end an answer"
        assert all(type(token) is int for token in self.stop_token_ids), self.stop_token_ids
        assert self.ignore_eos is True, "the model's own end of sequence must not add to the stop tokens"
        assert self.logprobs == 0, self.logprobs
        assert self.detokenize is False, "there is no tokenizer"
        assert -(2**63) <= self.seed < 2**63, self.seed


class LLM:
    """A model that answers."""

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool,
        trust_remote_code: bool,
        load_format: str,
        generation_config: str,
        dtype: str,
        seed: int,
        logprobs_mode: str,
        max_model_len: int,
        max_num_seqs: int,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        enforce_eager: bool,
    ) -> None:
        assert (skip_tokenizer_init, trust_remote_code, load_format) == (True, False, "safetensors")
        assert (generation_config, dtype, seed, logprobs_mode) == ("vllm", "bfloat16", 0, "raw_logprobs")
        assert max_num_seqs > 0, max_num_seqs
        assert 0 < gpu_memory_utilization <= 1, gpu_memory_utilization
        assert type(enforce_eager) is bool, enforce_eager
        assert len(os.environ["VLLM_RPC_BASE_PATH"]) < 60, "paths of sockets are limited to about 100 characters"
        devices = os.environ["CUDA_VISIBLE_DEVICES"]
        assert len(devices.split(",")) == tensor_parallel_size, devices
        self.length, self.calls = max_model_len, 0
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
        assert max_model_len <= self.model.config.max_position_embeddings, max_model_len
        print(f"stand-in on GPUs {devices}", flush=True)  # noqa: T201

    def generate(
        self, prompts: list[TokensPrompt], sampling_params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[SimpleNamespace]:
        """Answer the prompts, in their order."""
        self.calls += 1
        if self.calls == 2 and FAULT == "crash":
            raise MemoryError("CUDA out of memory")
        if FAULT.startswith("hang:"):
            with open(FAULT.removeprefix("hang:"), "w") as pipe:
                pipe.write(f"{os.getpid()}\n")
                pipe.flush()
                signal.pause()
        assert use_tqdm is False
        assert all(type(prompt) is TokensPrompt for prompt in prompts)
        pairs = zip(prompts, sampling_params, strict=True)
        return [self._answer(prompt["prompt_token_ids"], how) for prompt, how in pairs]

    def _answer(self, prompt: list[int], how: SamplingParams) -> SimpleNamespace:
        assert 0 < len(prompt) < self.length, len(prompt)
        ids, logp, random = list(prompt), 0.0, np.random.default_rng(how.seed)
        while True:
            with torch.inference_mode():
                logits = self.model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
            raw = logits - np.logaddexp.reduce(logits)
            token = int(raw.argmax()) if how.temperature == 0 else _draw(logits, how, random)
            ids.append(token)
            logp += float(raw[token]) - 0.5 * (FAULT == "other weights")
            ended = token in how.stop_token_ids
            if ended or len(ids) - len(prompt) == how.max_tokens or len(ids) == self.length:
                answer = {"cumulative_logprob": logp, "finish_reason": "stop" if ended else "length"}
                outputs = [SimpleNamespace(token_ids=ids[len(prompt) :], **answer)]
                return SimpleNamespace(prompt_token_ids=prompt, outputs=outputs)


def _draw(logits: np.ndarray, how: SamplingParams, random: np.random.Generator) -> int:
    assert (how.top_k, how.top_p) == (0, 1.0), "not needed by the tests"
    scaled = logits / how.temperature
    return int(random.choice(len(scaled), p=np.exp(scaled - np.logaddexp.reduce(scaled))))
