"""The forward pass of a Llama-like model one token at a time, with its key-value cache.

The cache is laid out once, and live rows are always the first ones (docs/speed.md). The weights, the norms and the
rotary table are the model's own.

Shape suffixes: B live rows, T packed prompt tokens, L padded prompt length, E extent of the cache in positions, H
key-value heads, G query heads per key-value head, D size of a head, W width of the hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SmolLM3ForCausalLM,
)

from spin_utils.model.gpu_attention import fused_kernels

SUPPORTED = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SmolLM3ForCausalLM)
EXTENT_STEP = 32
"""The cache grows and shrinks by this many positions, so that it is copied rarely."""
SHRINK = 4
"""On a GPU a step computes all rows, or a quarter of them, or a quarter of those, whatever is live."""
SHORT = 192
"""Up to this prompt length plain matmuls beat the fused attention kernel on CPUs (measured at 3 heads of 64)."""


def misfit(model: nn.Module, longest: int) -> str:
    """Why a model's forward pass, of `longest` positions, differs from the one below; empty if it does not."""
    if not isinstance(model, SUPPORTED):
        return f"{type(model).__name__} has other layers"
    config = model.config
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for name, projection in {**dict(attention.named_children()), **dict(mlp.named_children())}.items():
            if name.endswith("_proj") and type(projection) is not nn.Linear:
                return f"{name} is a {type(projection).__name__}"
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if window and slides and longest > window:
        return f"prompt and response need {longest} positions, and it attends to a window of {window}"
    return ""


class Decoder:
    """A model's weights and the cache of the rows being decoded.

    Rows 0 to n-1 are live. `prefill` adds rows, `step` advances all live rows by one token, `move` overwrites finished
    rows, and `head` gives logits. With `fuse` (default: on CPUs) the query, key and value weights, and the gate and up
    weights, are copied into one matrix each, and all weights are laid out for the matrix kernels. That takes a second
    copy of the model's memory for the decoder's lifetime. The model must have no `misfit`.
    """

    def __init__(self, model: PreTrainedModel, rows: int, longest: int, *, fuse: bool | None = None) -> None:
        config = model.config
        self.inner = model.model
        self.dtype, self.device = model.lm_head.weight.dtype, model.lm_head.weight.device
        first = self.inner.layers[0].self_attn
        self.head_size = first.head_dim
        self.kv_heads = config.num_key_value_heads
        self.heads = config.num_attention_heads
        self.scale = first.scaling
        fuse = self.device.type == "cpu" if fuse is None else fuse
        self.layers = [_Layer.of(layer, rows, fuse) for layer in self.inner.layers]
        self.head = _Projection.of([model.lm_head], rows, fuse)
        self.rows, self.longest = rows, longest
        positions = torch.arange(longest, device=self.device)[None]
        cos, sin = self.inner.rotary_emb(torch.empty(0, dtype=self.dtype, device=self.device), positions)
        # rotate_half(x) * sin is flip_halves(x) * sin with the first half of sin negated: one copy fewer per layer.
        signed = torch.cat((-sin[0, :, : self.head_size // 2], sin[0, :, self.head_size // 2 :]), -1)
        self.cos, self.sin = cos[0, :, None], signed[:, None]
        self.extent = 0
        self.graphs: dict[int, _Graph] = {}
        self.beside: torch.cuda.Stream | None = None
        self.keys: list[Tensor] = [torch.empty(0)] * len(self.layers)
        self.values: list[Tensor] = [torch.empty(0)] * len(self.layers)

    def fit(self, live: int, needed: int) -> None:
        """Resize the cache to `needed` positions per row, keeping the first `live` rows.

        The matmuls read the whole extent, so a cache much longer than its longest row is also cut down.
        """
        extent = min(-(-needed // EXTENT_STEP) * EXTENT_STEP, self.longest)
        if self.extent >= extent and self.extent - extent <= max(EXTENT_STEP, extent // 2):
            return
        kept = min(extent, self.extent)
        self.graphs.clear()
        for buffers in (self.keys, self.values):
            for i, old in enumerate(buffers):
                # Zeros, because an unwritten position has weight 0 and 0 times NaN is not 0.
                new = torch.zeros(
                    self.rows, self.kv_heads, extent, self.head_size, dtype=self.dtype, device=self.device
                )
                if live:
                    new[:live, :, :kept] = old[:live, :, :kept]
                buffers[i] = new
        self.extent = extent

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the cache of rows `sources` over that of rows `targets` (index tensors of equal length)."""
        for buffer in (*self.keys, *self.values):
            buffer[targets] = buffer[sources]

    def prefill(self, prompts: Sequence[Sequence[int]], row: int) -> Tensor:
        """Read prompts into the rows from `row` on; normalised hidden states of their last tokens, (len(prompts), W).

        Linear layers run on the packed tokens, without padding; only attention sees rows. Call `fit` first.
        """
        n, device = len(prompts), self.device
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        length = int(sizes.max())
        ends = sizes.cumsum(0)
        starts = ends - sizes
        columns = torch.arange(length)
        inside = columns < sizes[:, None]
        # Padding repeats the row's first token: causality hides it, and nothing reads its output.
        to_rows = (starts[:, None] + columns * inside).to(device)
        to_packed = inside.flatten().nonzero()[:, 0].to(device)
        position_T = (columns * inside)[inside].to(device)
        last = (ends - 1).to(device)
        hidden_TW = self.inner.embed_tokens(
            torch.tensor([token for prompt in prompts for token in prompt], device=device)
        )
        cos, sin = self.cos[position_T], self.sin[position_T]
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            query_key, value = self._project(layer, hidden_TW, cos, sin)
            query, key, value = (
                part[to_rows].transpose(1, 2)  # (n, heads, L, D)
                for part in (query_key[:, : self.heads], query_key[:, self.heads :], value)
            )
            keys[row : row + n, :, :length] = key
            values[row : row + n, :, :length] = value
            with fused_kernels():
                mixed = causal_attention(query, key, value, self.scale)
            mixed_TW = mixed.transpose(1, 2).reshape(n * length, -1)[to_packed]
            if layer is self.layers[-1]:
                # After the last attention only the last position is needed.
                hidden_TW, mixed_TW = hidden_TW[last], mixed_TW[last]
            hidden_TW = self._finish(layer, hidden_TW, mixed_TW)
        return _norm(self.inner.norm, hidden_TW)

    def step(self, token_B: Tensor, position_B: Tensor) -> Tensor:
        """Feed one token to each of the first B rows and return their normalised hidden states, shape (B, W).

        On a GPU a step is recorded as a CUDA graph, once per cache extent, and replayed: launching its kernels one by
        one takes several times as long as running them. The result is then only valid until the next step.
        """
        if self.device.type != "cuda":
            return self._step(token_B, position_B)
        rows = self.rows
        while rows >= SHRINK * len(token_B):
            rows //= SHRINK
        if rows not in self.graphs:
            self.beside = self.beside or torch.cuda.Stream(self.device)
            self.graphs[rows] = _Graph(rows, self.beside)
        return self.graphs[rows](self._step, token_B, position_B)

    def _step(self, token_B: Tensor, position_B: Tensor) -> Tensor:
        n = len(token_B)
        row_B = torch.arange(n, device=self.device)
        cos, sin = self.cos[position_B], self.sin[position_B]
        hidden_BW = self.inner.embed_tokens(token_B)
        hidden = torch.arange(self.extent, device=self.device) > position_B[:, None]
        mask_BE = torch.zeros(n, self.extent, device=self.device).masked_fill_(hidden, -torch.inf)[:, None, None]
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            query_key, value = self._project(layer, hidden_BW, cos, sin)
            keys[row_B, :, position_B] = query_key[:, self.heads :]
            values[row_B, :, position_B] = value
            # The query heads of a group become the rows of one matmul against their shared keys.
            query_BHGD = query_key[:, : self.heads].view(n, self.kv_heads, -1, self.head_size)
            score = torch.matmul(query_BHGD, keys[:n].transpose(-1, -2))
            weight = torch.add(mask_BE, score, alpha=self.scale).softmax(-1).to(self.dtype)
            mixed_BW = torch.matmul(weight, values[:n]).view(n, -1)
            hidden_BW = self._finish(layer, hidden_BW, mixed_BW)
        return _norm(self.inner.norm, hidden_BW)

    def _project(self, layer: _Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys (tokens, heads + kv_heads, D), and values (tokens, kv_heads, D)."""
        projected = layer.qkv(_norm(layer.attention_norm, hidden)).view(len(hidden), -1, self.head_size)
        turned = projected[:, : self.heads + self.kv_heads]
        if layer.query_norm is not None:
            query, key = turned.split((self.heads, self.kv_heads), 1)
            turned = torch.cat((_norm(layer.query_norm, query), _norm(layer.key_norm, key)), 1)
        if not layer.rotates:
            return turned, projected[:, self.heads + self.kv_heads :]
        halves = turned.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
        return (turned * cos).addcmul_(halves, sin), projected[:, self.heads + self.kv_heads :]

    def _finish(self, layer: _Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The rest of a layer after attention: output projection, MLP, both residuals."""
        # In place where the tensor is fresh: on a CPU these operations are limited by memory, not arithmetic.
        hidden = layer.output(mixed).add_(hidden)
        gate, up = layer.gate_up(_norm(layer.mlp_norm, hidden)).chunk(2, -1)
        return layer.down(layer.activation(gate).mul_(up)).add_(hidden)


_Step = Callable[[Tensor, Tensor], Tensor]


class _Graph:
    """A step for a fixed number of rows, as a CUDA graph.

    The output of rows that are not live is never read: each writes to its own position 0, which its next prompt
    overwrites. It does not hold the step, which is the decoder's: in a cycle of references cache and weights would stay
    on the GPU after the decoder's life.
    """

    def __init__(self, rows: int, beside: torch.cuda.Stream) -> None:
        self.beside = beside
        self.token, self.position = torch.zeros(2, rows, dtype=torch.long, device=beside.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.hidden = torch.empty(0)

    def __call__(self, step: _Step, token_B: Tensor, position_B: Tensor) -> Tensor:
        n = len(token_B)
        self.token[:n] = token_B
        self.position[:n] = position_B
        self.position[n:] = 0
        if self.graph is None:
            self._record(step)
        assert self.graph is not None
        self.graph.replay()
        return self.hidden[:n]

    def _record(self, step: _Step) -> None:
        self.beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.beside):
            step(self.token, self.position)  # lets libraries initialise; writes the same values as the replay
            self.graph = torch.cuda.CUDAGraph()
            self.graph.capture_begin()
            self.hidden = step(self.token, self.position)
            self.graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.beside)


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    """The model's RMSNorm; on a GPU as one kernel instead of seven, rounded once."""
    if hidden.device.type == "cpu":
        return norm(hidden)
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention of right-padded rows, query heads grouped over key-value heads.

    Args:
        query: (n, H * G, L, D). key, value: (n, H, L, D). scale: factor of the scores.

    Returns:
        (n, H * G, L, D); values at padded positions are meaningless.
    """
    n, heads, length, size = query.shape
    kv_heads = key.shape[1]
    if query.device.type != "cpu" or length > SHORT:
        grouped = heads != kv_heads
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    later = torch.ones(length, length, dtype=torch.bool).triu_(1)
    mask = torch.zeros(length, length).masked_fill_(later, -torch.inf)
    folded = query.reshape(n, kv_heads, -1, size)
    score = torch.matmul(folded, key.transpose(-1, -2)).view(n, kv_heads, -1, length, length)
    weight = torch.add(mask, score, alpha=scale).softmax(-1).to(query.dtype)
    return torch.matmul(weight.view(n, kv_heads, -1, length), value).view(n, heads, length, size)


class _Projection(NamedTuple):
    """Linear layers that share an input, run as one if their weights were fused."""

    parts: tuple[tuple[Tensor, Tensor | None], ...]
    packed: bool

    @classmethod
    def of(cls, linears: Sequence[nn.Linear], rows: int, fuse: bool) -> _Projection:
        """The weights unchanged, or with `fuse` as one matrix laid out for `rows` inputs at a time."""
        if not fuse:
            return cls(tuple((linear.weight, linear.bias) for linear in linears), packed=False)
        weight = torch.cat([linear.weight.detach() for linear in linears])
        biased = linears[0].bias is not None
        bias = torch.cat([linear.bias.detach() for linear in linears]) if biased else None
        if not _can_pack(weight):
            return cls(((weight, bias),), packed=False)
        return cls(((torch.ops.mkldnn._reorder_linear_weight(weight, rows), bias),), packed=True)

    def __call__(self, hidden: Tensor) -> Tensor:
        if self.packed:
            ((weight, bias),) = self.parts
            return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
        outputs = [F.linear(hidden, weight, bias) for weight, bias in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def _can_pack(weight: Tensor) -> bool:
    """Whether oneDNN can keep the weight in the layout of its kernels. The operators are the ones torch.compile uses.

    F.linear converts the layout on every call: in bf16 a packed weight is 1.1 times faster at 128 rows, 1.7 at 8. In
    float32 F.linear is MKL's, which is slow where the weight is large and the rows are few (docs/speed.md).
    """
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bfloat16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bfloat16 or weight.dtype == torch.float32


class _Layer(NamedTuple):
    attention_norm: Any
    qkv: _Projection
    query_norm: Any
    """Norm of each query head before it is rotated (Qwen3), or None; likewise of keys."""
    key_norm: Any
    rotates: bool
    """Whether queries and keys are rotated; every fourth layer of SmolLM3 leaves them as they are."""
    output: _Projection
    mlp_norm: Any
    gate_up: _Projection
    activation: nn.Module
    down: _Projection

    @classmethod
    def of(cls, layer: Any, rows: int, fuse: bool) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            attention_norm=layer.input_layernorm,
            qkv=_Projection.of([attention.q_proj, attention.k_proj, attention.v_proj], rows, fuse),
            query_norm=getattr(attention, "q_norm", None),
            key_norm=getattr(attention, "k_norm", None),
            rotates=bool(getattr(attention, "use_rope", True)),
            output=_Projection.of([attention.o_proj], rows, fuse),
            mlp_norm=layer.post_attention_layernorm,
            gate_up=_Projection.of([mlp.gate_proj, mlp.up_proj], rows, fuse),
            activation=mlp.act_fn,
            down=_Projection.of([mlp.down_proj], rows, fuse),
        )
