"""A loaded model as an lm-eval model class, on the kit's own fast code paths.

`generate_until` uses the sampler; log-likelihoods use packed groups, so that a question's choices share one pass over
its context. Results equal those of lm-eval's `HFLM` up to rounding. Several processes take turns at shards of requests
and all get every answer; the shards do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_utils.data import templates
from spin_utils.evaluation.answers import Answers, EvaluationError
from spin_utils.files import processes
from spin_utils.model.general import check_model, positions
from spin_utils.model.logprobs import greedy_logps
from spin_utils.model.packing import Group, micro_batches, pack
from spin_utils.model.sampling import Sample, sample
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.run import GenerationSettings

SHARD_BATCHES = 4
"""Batches of requests that are answered and saved together."""
_KNOWN_OPTIONS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


class PackedLM(TemplateLM):
    """An lm-eval model around a loaded policy.

    Args:
        template: Of generation tasks; None: plain text, as in lm-eval. Log-likelihood tasks are always plain text
            without a start token, as in the paper's harness, except with Gemma.
        max_new_tokens: Longest response if a task does not set one.
        micro_batch_tokens: Token budget of one scoring pass.
        prefixes: The start of the model's response (lm-eval's `gen_prefix`) as a function of the item, by task. With a
            template it moves from the end of the context to behind the generation prompt.
        work, progress: As in `harness.evaluate`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: TemplateSettings | None = None,
        batch_size: int = 128,
        max_new_tokens: int = 256,
        micro_batch_tokens: int = 4096,
        prefixes: Mapping[str, Callable[[Any], str | None]] | None = None,
        work: Path | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.micro_batch_tokens, self.prefixes, self.progress = micro_batch_tokens, prefixes or {}, progress
        self.max_length = positions(model.config)
        self.answers = Answers(work, json.dumps([fingerprint(model), repr(template), max_new_tokens, "ids"]))

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token put in front of a text without context."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:  # Gemma underperforms without its start token
            add_special_tokens = "gemma" in self.model.config.model_type
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        windows = [
            (place, window)
            for place, request in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
        ]
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens([(None, *make_disjoint_window(window)) for _, window in windows])
        for (place, _), (logp, _) in zip(windows, scored, strict=True):
            totals[place] += logp
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; those with the same context are packed behind one copy of it."""
        together: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
        pairs = []
        for text, context, continuation in requests:
            whole = (context + continuation)[-(self.max_length + 1) :]
            if not continuation or len(continuation) >= len(whole):
                raise EvaluationError(
                    f"a continuation of {len(continuation)} tokens cannot be scored by a model of "
                    f"{self.max_length} positions: {str(text)[:80]!r}"
                )
            pair = tuple(whole[: -len(continuation)]), tuple(continuation)
            together.setdefault(pair[0], {})[pair[1]] = None
            pairs.append(pair)
        groups = [Group(context, tuple(choices)) for context, choices in together.items()]
        keys = [self.answers.key("loglikelihood", [group.prompt_ids, group.response_ids]) for group in groups]
        shards = _shards(groups, self.micro_batch_tokens * SHARD_BATCHES)
        self._answer_all(keys, shards, lambda shard: self._scores([groups[i] for i in shard]))
        found = {
            (group.prompt_ids, response): (float(logp), bool(greedy))
            for key, group in zip(keys, groups, strict=True)
            for response, (logp, greedy) in zip(group.response_ids, self.answers[key], strict=True)
        }
        return [found[pair] for pair in pairs]

    @torch.no_grad()
    def _scores(self, groups: Sequence[Group]) -> list[list[tuple[float, bool]]]:
        """For each group and response, its summed log-probability and whether greedy decoding would give it."""
        # The last token of a row predicts nothing, so it needs no position of its own.
        check_model(self.model, max(group.longest_row for group in groups) - 1)
        progress = processes.shown(self.progress)
        results: list[list[tuple[float, bool]]] = [[] for _ in groups]
        for indices in micro_batches([group.tokens for group in groups], self.micro_batch_tokens):
            batch = pack([groups[i] for i in indices], self.model.device)
            logps, hits = greedy_logps(self.model, batch)
            sums, missed = (batch.sums(part).tolist() for part in (logps, (~hits).float()))
            values = iter(zip(sums, (count == 0 for count in missed), strict=True))
            for i in indices:
                results[i] = [next(values) for _ in groups[i].response_ids]
            if progress is not None:
                progress(len(batch.sizes))
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        plans = self._plans(requests)
        keys = [
            # Two samples for one request differ; two greedy answers do not.
            self.answers.key("generate", [*_asked(request), position if plan.settings.temperature else 0])
            for position, (request, plan) in enumerate(zip(requests, plans, strict=True))
        ]
        alike: dict[GenerationSettings, dict[str, int]] = {}
        for i, key in enumerate(keys):  # a repeated request is answered once
            alike.setdefault(plans[i].settings, {}).setdefault(key, i)
        for settings, members in alike.items():
            self._generate(plans, keys, list(members.values()), settings, 1)
        return [self.answers[key][0]["text"] for key in keys]

    def draw(self, requests: Sequence[Instance], count: int) -> tuple[list[Group], list[list[str]]]:
        """Draw `count` answers to each request at temperature 1, untruncated; all have the same `generation_kwargs`.

        Returns:
            The answers' tokens behind those of the prompt, and the answers' texts, for each request.
        """
        plans = self._plans(requests)
        settings = replace(plans[0].settings, temperature=1.0, top_k=0, top_p=1.0)
        keys = [self.answers.key("draw", [*_asked(request), i, count]) for i, request in enumerate(requests)]
        self._generate(plans, keys, range(len(plans)), settings, count)
        answers = [self.answers[key] for key in keys]
        tokens = [tuple(each["ids"] for each in drawn) for drawn in answers]
        groups = [Group(plan.prompt_ids, ids) for plan, ids in zip(plans, tokens, strict=True)]
        return groups, [[each["text"] for each in drawn] for drawn in answers]

    def _generate(
        self, plans: list[_Plan], keys: list[str], members: Sequence[int], settings: GenerationSettings, count: int
    ) -> None:
        """Keep `count` answers to each request among `members`."""

        def answer(shard: list[int]) -> list[list[dict[str, Any]]]:
            samples = sample(
                self.model,
                [plans[i].prompt_ids for i in shard],
                eos_ids=self._end_ids(),
                settings=settings,
                seed=0,
                streams=[count * i + k for i in shard for k in range(count)],
                samples_per_prompt=count,
                progress=processes.shown(self.progress),
            )
            kept = [
                {"text": self._text(each, plans[i].until), "ids": each.token_ids}
                for each, i in zip(samples, [i for i in shard for _ in range(count)], strict=True)
            ]
            return [kept[start : start + count] for start in range(0, len(kept), count)]

        size = max(1, self.batch_size * SHARD_BATCHES // count)
        shards = [list(members[start : start + size]) for start in range(0, len(members), size)]
        self._answer_all(keys, shards, answer)

    def _answer_all(
        self, keys: list[str], shards: Iterable[list[int]], answer: Callable[[list[int]], list[Any]]
    ) -> None:
        """Answer and keep what is missing. A shard is answered as a whole, so that after resuming the same neighbours
        give the same rounding."""
        left = [shard for shard in shards if not all(keys[i] in self.answers for i in shard)]
        for answered in processes.take_turns(left, answer):
            self.answers.add({keys[i]: own for shard, values in answered for i, own in zip(shard, values, strict=True)})

    def _encode(self, requests: Sequence[Instance]) -> list[list[int]]:
        """Prompts, inside the template if there is one; what an answer begins with follows the generation prompt."""
        template = self.template
        if template is None:
            return [self.tok_encode(request.args[0]) for request in requests]
        asked, begun = [], []
        for request in requests:
            prefix = self.prefixes.get(str(request.task_name), lambda _: None)(request.doc) or ""
            context = str(request.args[0])
            begun.append(templates.encode_beginning(self.tokenizer, template, prefix) if prefix else [])
            asked.append(context.removesuffix(prefix).removesuffix(" ") if prefix else context)
        rows = [json.loads(_before(request)) for request in requests]
        encoded = templates.encode_prompts(self.tokenizer, template, asked, rows)
        return [ids + more for ids, more in zip(encoded, begun, strict=True)]

    def length(self, request: Instance) -> int:
        """Tokens, including the end token, of the greedy answer that `generate_until` gave to a request."""
        return len(self.answers[self.answers.key("generate", [*_asked(request), 0])][0]["ids"])

    def _plans(self, requests: Sequence[Instance]) -> list[_Plan]:
        plans = []
        for ids, request in zip(self._encode(requests), requests, strict=True):
            known = known_options(request.args[1], self.max_new_tokens)
            room = self.max_length - known["max_gen_toks"]
            if self.template is None and room < 1:
                raise EvaluationError(
                    f"an answer of {known['max_gen_toks']} tokens leaves no room for its prompt in the model's "
                    f"{self.max_length} positions; lower evaluation.max_new_tokens, or the task's max_gen_toks"
                )
            settings = GenerationSettings(
                temperature=float(known.get("temperature", 1.0)) if known["do_sample"] else 0.0,
                top_k=int(known.get("top_k") or 0),
                top_p=float(known.get("top_p") or 1.0),
                max_new_tokens=known["max_gen_toks"],
                batch_size=self.batch_size,
            )
            plans.append(_Plan(ids[-room:] if self.template is None else ids, settings, known["until"]))
        return plans

    def _end_ids(self) -> set[int]:
        if self.template is not None:
            return templates.end_ids(self.tokenizer, self.template)
        declared = getattr(self.model.generation_config, "eos_token_id", None)
        return {self.tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}

    def _text(self, answer: Sample, until: list[str]) -> str:
        if self.template is not None:
            text = templates.decode_response(self.tokenizer, self.template, answer.token_ids)
        else:
            ids = answer.token_ids[:-1] if answer.finish_reason == "stop" else answer.token_ids
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return str(postprocess_generated_text(text, stop=until, think_end_token=None))


def known_options(options: dict[str, Any], max_new_tokens: int = 256, *, where: str = "") -> dict[str, Any]:
    """A task's `generation_kwargs` with lm-eval's aliases and defaults resolved.

    Raises:
        EvaluationError: There is an option that this model class would ignore.
    """
    known = dict(normalize_gen_kwargs(options, max_new_tokens))
    unknown = sorted(set(known) - _KNOWN_OPTIONS)
    if unknown:
        raise EvaluationError(
            f"{where}generation_kwargs: {', '.join(unknown)} is not supported; use {', '.join(sorted(_KNOWN_OPTIONS))}"
        )
    return known


def fingerprint(model: nn.Module) -> str:
    """Hash of a sample of every parameter: takes milliseconds, and training changes it."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sampled = flat[:: max(1, flat.numel() // 4096)].cpu().contiguous()
        digest.update(f"{name}/{tuple(parameter.shape)}/{parameter.dtype}".encode())
        digest.update(sampled.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Plan(NamedTuple):
    prompt_ids: list[int]
    settings: GenerationSettings
    until: list[str]


def _shards(groups: Sequence[Group], budget: int) -> Iterator[list[int]]:
    """Groups of similar length, about `budget` tokens at a time, longest first."""
    shard: list[int] = []
    tokens = 0
    for i in sorted(range(len(groups)), key=lambda i: -groups[i].tokens):
        shard.append(i)
        tokens += groups[i].tokens
        if tokens >= budget:
            yield shard
            shard, tokens = [], 0
    if shard:
        yield shard


def _before(request: Instance) -> str:
    """System message and earlier turns of a held-out row, as JSON that `tasks/rows.py` hands on; of other tasks {}."""
    return str((request.doc or {}).get("spin_before", "{}"))


def _asked(request: Instance) -> list[Any]:
    """What tells one request from another."""
    before = _before(request)
    return [*request.args, before] if before != "{}" else [*request.args]
