"""Any decoder of transformers: which of three paths a model takes, and the two that need no knowledge of its layers.

- `fast`: the kit's own layers, head and sampler, for the families that `decoding` knows.
- `packed`: transformers' layers over packed groups; only their attention function is replaced. The prompt of a pair is
  computed once, and nothing is padded.
- `padded`: transformers' own forward pass over right-padded rows, for models whose attention does something that the
  kit's does not, or that carry a state from token to token.

The last two take the logits from the model itself, so that soft caps, scales and biases of its head are its own, and
sample through transformers' cache. A model's path follows from its class and config, by a dry run without weights.

Shape suffixes: R response tokens, N rows, L padded row length, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from spin_utils.model import gpu_attention
from spin_utils.model.attention import packed_attention
from spin_utils.model.base import ModelError
from spin_utils.model.decoding import SUPPORTED
from spin_utils.model.layers import fast_layers
from spin_utils.model.packing import PackedBatch

Path = Literal["fast", "packed", "padded"]
COSTS: dict[Path, str] = {
    "fast": "the kit's own layers and sampler",
    "packed": "general path: transformers' layers over packed rows, sampling through transformers' cache; slower, and "
    "training holds all logits of a micro-batch",
    "padded": "general path, padded: transformers' own forward pass, prompts computed once per response; about twice "
    "the computation of packed rows, and training holds all logits of a micro-batch",
}
"""What each path means, for `spin-repro check`."""
_PROBE = "spin_probe"
_KNOWN = {"position_ids", "cache_position", "position_embeddings", "use_cache", "is_causal", "dropout"}
_KNOWN |= {"scaling", "softcap"}
"""Arguments of attention that change nothing on packed groups, and those that `attention.attend` takes."""
_PADDING: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()
_PATHS: weakref.WeakKeyDictionary[PreTrainedModel, Path] = weakref.WeakKeyDictionary()


def path_of(model: PreTrainedModel) -> Path:
    """The path that a model takes; determined once per model."""
    if model not in _PATHS:
        _PATHS[model] = _path(model)
    return _PATHS[model]


def use_padded(model: PreTrainedModel) -> None:
    """From now on the model takes the path `padded`, because its packed log-probabilities were found to differ."""
    _PATHS[model] = "padded"


def check_model(model: PreTrainedModel, longest_row: int) -> None:
    """Raise if no path is right for a model, whose weights may be on the meta device.

    Raises:
        ModelError: it is an encoder and decoder, reads more than text, sees later tokens, or has too few positions.
    """
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder:
        raise ModelError(f"{name}: has an encoder; use a decoder-only model")
    if config.get_text_config() is not config:
        raise ModelError(
            f"{name}: reads more than text; save its language model alone, with the tokenizer, and use that folder"
        )
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise ModelError(f"{name}: tokens see later ones (use_bidirectional_attention); use a causal language model")
    if "past_key_values" not in inspect.signature(type(model).forward).parameters:
        raise ModelError(f"{name}: has no cache of keys and values to sample with; use another model")
    if longest_row > positions(config):
        raise ModelError(
            f"{name}: a row of {longest_row} tokens is longer than its {positions(config)} positions; "
            "lower template.max_prompt_tokens, template.max_response_tokens or max_new_tokens"
        )


def positions(config: Any) -> int:
    """Longest row that a model accepts, in tokens.

    With longrope a longer row than the original ones turns all its tokens by other angles, those already in a cache
    included, so that a response would not be sampled from what it is scored by: such rows are too long. So are those in
    which a token sees only some of those before it, chosen by scores that depend on rounding (DeepSeek V3.2).
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    limits = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    limits += [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "index_topk")]
    return min(filter(None, limits), default=sys.maxsize)


@contextmanager
def on_its_path(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model computes packed groups on its path.

    With gradient checkpointing, keep the block open until the backward pass is done: recomputation looks again.
    """
    path = path_of(model)
    with ExitStack() as stack:
        if path != "padded":
            stack.enter_context(packed_attention(model))
        if path == "fast":
            stack.enter_context(fast_layers(model))
        yield


def response_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """The model's own logits for every response token, shape (R, V), in packed order; inside `on_its_path`."""
    if path_of(model) == "padded":
        return _padded_logits(model, batch)
    # The last token of a row predicts nothing and needs no position of its own.
    position_ids = batch.position_ids.clamp(max=positions(model.config) - 1)
    logits = _forward(model, batch.sources, input_ids=batch.input_ids, position_ids=position_ids,
                      packed_layout=batch.layout)  # fmt: skip
    return logits[0]


def _padded_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    layout, device = batch.layout, batch.input_ids.device
    rows = gpu_attention.rows_of(layout)
    index_NL = rows.there[:, :-1]  # the last token predicts nothing
    columns = torch.arange(index_NL.shape[1], device=device)
    read = [len(group.prompt_ids) + len(ids) - 1 for group in layout.groups for ids in group.response_ids]
    mask_NL = (columns < torch.tensor(read, device=device)[:, None]).long()
    first = min(len(group.prompt_ids) for group in layout.groups) - 1
    logits_NLV = _forward(model, columns[first:], input_ids=batch.input_ids[0][index_NL], attention_mask=mask_NL)
    place_R = rows.back[batch.sources]
    return logits_NLV[place_R // layout.longest_row, place_R % layout.longest_row - first]


def _forward(model: PreTrainedModel, kept: Tensor, **inputs: Any) -> Tensor:
    """Logits at the kept positions, by the class's own forward pass: `model.forward` may be lent (`logprobs`)."""
    given = _known(model, logits_to_keep=kept, output_router_logits=False)
    logits = type(model).forward(model, **inputs, **given, use_cache=False).logits
    return logits if "logits_to_keep" in given else logits[:, kept]


def _known(model: PreTrainedModel, **given: Any) -> dict[str, Any]:
    """Those of the arguments that the model's forward pass has. Router logits are for a loss that is not computed."""
    known = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in given.items() if name in known}


def next_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Logits of the next token, shape (B, V), after reading `ids`, the last columns of the mask."""
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    given = _known(model, position_ids=position_ids, logits_to_keep=1, output_router_logits=False)
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given).logits[:, -1]


def padding(model: PreTrainedModel) -> bool:
    """Whether prompts of different lengths can be sampled from together; determined once per model, on three tokens.

    Raises:
        ModelError: the model does not work with transformers' cache, so that it could not be sampled from, or its
            tokens see later ones.
    """
    if model not in _PADDING:
        two = torch.tensor([[1, 2], [1, 3]], device=model.device)
        ids = two[:1]
        ones, pad = torch.ones_like(ids), torch.zeros_like(ids[:, :1])
        model.eval()
        try:
            with torch.no_grad():
                alone = _third(model, ids, ones)
                first = model(input_ids=two, use_cache=False).logits[:, 0].float().log_softmax(-1)
                causal = torch.allclose(first[0], first[1], **rounding(model))
                same = not has_state(model)
                if same:  # true of most models that count positions by themselves, but not of all
                    beside = _third(model, torch.cat([ids[:, :1], ids], 1), torch.cat([pad, ones], 1))
                    same = torch.allclose(alone, beside, **rounding(model))
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())
            raise ModelError(f"{type(model).__name__}: cannot be sampled from ({reason}); use another model") from None
        if not causal:
            raise ModelError(f"{type(model).__name__}: tokens see later ones (is_decoder); use a causal language model")
        _PADDING[model] = same
    return _PADDING[model]


def rounding(model: PreTrainedModel) -> dict[str, Any]:
    """How far log-probabilities of the same tokens may be apart, for `torch.allclose`."""
    return {"atol": 1e-3, "rtol": 1e-4} if model.dtype == torch.float32 else {"atol": 0.1, "rtol": 0.02}


def _third(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities after a prompt and one more token, read through the cache."""
    cache = DynamicCache(config=model.config)
    next_logits(model, ids, mask, cache)
    more = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.log_softmax(next_logits(model, ids[:, -1:], more, cache).float(), -1)


def has_state(model: PreTrainedModel) -> bool:
    """Whether tokens reach later ones by more than keys and values, so that prompts cannot be padded on the left."""
    return bool(getattr(model, "_is_stateful", False)) or any(
        isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=model.config).layers
    )


def _path(model: PreTrainedModel) -> Path:
    if isinstance(model, SUPPORTED):
        return "fast"
    if not getattr(model, "_supports_attention_backend", False) or has_state(model):
        return "padded"
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        return "padded"
    return "packed" if _fits(model) else "padded"


def _fits(model: PreTrainedModel) -> bool:
    """Whether every attention layer passes the layout on, and nothing that `attend` does not know."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = _PROBE
    vars(config)["pad_token_id"] = None  # it would make the model look at the ids; some configs refuse to have none
    seen: list[tuple[int | None, bool]] = []
    with torch.device("meta"):
        shape = type(model)(config).eval()
        for module in shape.modules():
            if type(module).__name__.endswith("Experts"):  # which compute nothing without weights, and no attention
                module.forward = lambda hidden, *args, **kwargs: hidden
        ids = torch.zeros(1, 3, dtype=torch.long)
        try:
            _forward(shape, ids[0], input_ids=ids, position_ids=ids, packed_layout=seen)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # it does more than a dry run can show
            return False
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    wanted = [window if kind == "sliding_attention" else None for kind in kinds]
    return len(seen) == layers and all(
        known and wish in (None, found or None) for wish, (found, known) in zip(wanted, seen, strict=True)
    )


def _note(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_layout: list[tuple[int | None, bool]] | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Stands in for attention in the dry run: notes the window, and whether `attend` would compute the same.

    Without the layout the layer does not pass arguments on, and is not counted.
    """
    if packed_layout is not None:
        given = {name for name, value in others.items() if value is not None and value is not False}
        known = given <= _KNOWN and query.shape[-1] == value.shape[-1] and attention_mask is None
        packed_layout.append((sliding_window, known))
    return query.new_empty(*query.transpose(1, 2).shape[:3], value.shape[-1]), None


AttentionInterface.register(_PROBE, _note)
