"""One decoder layer of the Llama family as one differentiable step, for training.

A whole layer (RMSNorm, attention, SwiGLU, residuals) is one function with its own backward pass. Norms, reductions and
rotary angles are computed in float32 and rounded once. `fast_layers(model)` lends it to the layers of a model of
`decoding.SUPPORTED` for the length of a block, except to those that were changed. See docs/speed.md.

Shape suffixes: T packed tokens, E hidden size, H query heads, K key heads, N heads of either kind times D, D head size,
C = (H + 2 K) D, F inner size of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from spin_utils.model.attention import attention_backward, attention_forward
from spin_utils.model.packing import Layout, rows_at_once

CACHED = 2**16
"""Elements of one tensor that elementwise operations work on at once on a CPU: 256 KiB in float32."""


class _Shape(NamedTuple):
    heads: int
    size: int
    scale: float
    epsilons: tuple[float, float, float]
    """Of the norm before attention, the one after it, and those of query and key heads (Qwen3)."""


def fast_layers(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Inside the block the plain decoder layers of a model take the fused path."""
    return lending(_forward, [layer for layer in decoder_layers(model) if _plain(layer)])


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, whatever a family calls them."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def lending(function: Callable[..., Tensor], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block, calling one of the modules calls `function` with it."""
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = partial(function, module)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own


def _plain(layer: Any) -> bool:
    """Whether a layer is exactly what `_DecoderLayer` computes: its own forward pass, plain parts, no hooks."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    plain = "forward" not in vars(layer) and all(type(linear) is nn.Linear for linear in linears)
    unbiased = plain and all(linear.bias is None for linear in linears[3:])
    paired = plain and len({linear.bias is None for linear in linears[:3]}) == 1
    hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in layer.modules())
    return plain and unbiased and paired and not hooked and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)


def _forward(
    layer: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    packed_layout: Layout,
    **kwargs: Any,
) -> Tensor:
    """The whole layer; takes what transformers passes. A row longer than its window takes the layer's own forward."""
    attention, mlp = layer.self_attn, layer.mlp
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    if window and packed_layout.longest_row > window:
        return type(layer).forward(
            layer, hidden_states, position_embeddings=position_embeddings, packed_layout=packed_layout, **kwargs
        )
    shape = _Shape(
        attention.config.num_attention_heads,
        attention.head_dim,
        attention.scaling,
        (
            layer.input_layernorm.variance_epsilon,
            layer.post_attention_layernorm.variance_epsilon,
            attention.q_norm.variance_epsilon if hasattr(attention, "q_norm") else 0.0,
        ),
    )
    rotates = getattr(attention, "use_rope", True)  # every fourth layer of SmolLM3 does not
    output_TE = _DecoderLayer.apply(
        hidden_states[0],
        _rotary(*position_embeddings, packed_layout, shape.heads) if rotates else None,
        packed_layout,
        shape,
        layer.input_layernorm.weight,
        attention.q_proj.weight,
        attention.k_proj.weight,
        attention.v_proj.weight,
        attention.q_proj.bias,
        attention.k_proj.bias,
        attention.v_proj.bias,
        attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        attention.o_proj.weight,
        layer.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
    )
    return output_TE.unsqueeze(0)


class _DecoderLayer(torch.autograd.Function):
    """x + Attention(norm x), then x + SwiGLU(norm x)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TE: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        layout: Layout,
        shape: _Shape,
        norm_1: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_bias: Tensor | None,
        key_bias: Tensor | None,
        value_bias: Tensor | None,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        output: Tensor,
        norm_2: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
    ) -> Tensor:
        normed_TE = _norm(x_TE, norm_1, shape.epsilons[0])
        # Normed heads are a copy, which the backward pass makes again; others are rotated in place and kept.
        query_TN, key_TN = F.linear(normed_TE, query, query_bias), F.linear(normed_TE, key, key_bias)
        query_THD = _turned(query_TN, query_norm, rotary, shape)
        key_TKD = _turned(key_TN, key_norm, rotary, shape)
        value_TKD = F.linear(normed_TE, value, value_bias).unflatten(1, (-1, shape.size))
        attended_TE = attention_forward(query_THD, key_TKD, value_TKD, layout, shape.scale).flatten(1)
        middle_TE = torch.addmm(x_TE, attended_TE, output.T)
        normed_TE = _norm(middle_TE, norm_2, shape.epsilons[1])
        gate_TF, up_TF = F.linear(normed_TE, gate), F.linear(normed_TE, up)
        result_TE = torch.addmm(middle_TE, _swiglu(gate_TF, up_TF), down.T)
        ctx.layout, ctx.shape, ctx.rotary, ctx.biased = layout, shape, rotary, query_bias is not None
        ctx.save_for_backward(
            x_TE, query_TN, key_TN, value_TKD, attended_TE, middle_TE, gate_TF, up_TF,
            norm_1, query, key, value, output, norm_2, gate, up, down, query_norm, key_norm,
        )  # fmt: skip
        return result_TE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: gradient checkpointing computes them for one reading
        x_TE, query_TN, key_TN, value_TKD, attended_TE, middle_TE, gate_TF, up_TF = saved[:8]
        norm_1, query, key, value, output, norm_2, gate, up, down, *head_norms = saved[8:]
        shape = ctx.shape

        # y = m + a down^T with a = silu(g) u
        act_TF, grad_T2F = _swiglu_backward(grad_TE @ down, gate_TF, up_TF)
        down_grad = grad_TE.T.contiguous() @ act_TF  # twice as fast as with a transposed factor
        middle_grad_TE, normed_TE, norm_2_grad = _norm_backward(
            grad_T2F @ torch.cat([gate, up]), middle_TE, norm_2, shape.epsilons[1], residual=grad_TE
        )
        gate_up_grad = grad_T2F.T @ normed_TE

        # m = x + attention output^T
        output_grad = middle_grad_TE.T @ attended_TE
        attended_grad = (middle_grad_TE @ output).view(len(grad_TE), shape.heads, shape.size)
        query_THD, key_TKD = (
            x_TN.unflatten(1, (-1, shape.size)) if norm is None else _turned(x_TN, norm, ctx.rotary, shape)
            for x_TN, norm in zip((query_TN, key_TN), head_norms, strict=True)
        )
        grads = attention_backward(attended_grad, query_THD, key_TKD, value_TKD, ctx.layout, shape.scale)
        grads_TN = [grad.flatten(1) for grad in grads]
        head_norm_grads: list[Tensor | None] = [None, None]
        for i, (x_TN, norm) in enumerate(zip((query_TN, key_TN), head_norms, strict=True)):
            if ctx.rotary is not None:
                _rotate(grads_TN[i], ctx.rotary, shape, back=True)
            if norm is not None:
                x, grad = x_TN.view(-1, shape.size), grads_TN[i].reshape(-1, shape.size)
                grad, _, head_norm_grads[i] = _norm_backward(grad, x, norm, shape.epsilons[2])
                grads_TN[i] = grad.view(x_TN.shape)
        qkv_grad_TC = torch.cat(grads_TN, 1)
        x_grad_TE, normed_TE, norm_1_grad = _norm_backward(
            qkv_grad_TC @ torch.cat([query, key, value]), x_TE, norm_1, shape.epsilons[0], residual=middle_grad_TE
        )
        qkv_grad = qkv_grad_TC.T @ normed_TE
        sizes = [len(query), len(key), len(value)]
        bias_grads = (
            qkv_grad_TC.sum(0, dtype=torch.float32).to(x_TE.dtype).split(sizes) if ctx.biased else (None, None, None)
        )
        return (
            x_grad_TE,
            None,
            None,
            None,
            norm_1_grad,
            *qkv_grad.split(sizes),
            *bias_grads,
            *head_norm_grads,
            output_grad,
            norm_2_grad,
            *gate_up_grad.split(len(gate)),
            down_grad,
        )


def _rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of every tensor, after one another."""
    size = rows_at_once(CACHED, tensors[0].shape[1], tensors[0].device)
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _norm(x_TE: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm."""
    normed_TE, weight = torch.empty_like(x_TE), weight.float()
    for x, normed in _rows(x_TE, normed_TE):
        normed.copy_(_unit(x, epsilon)[0].mul_(weight))
    return normed_TE


def _unit(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Rows divided by their root mean square, in new float32 memory, and 1 / root mean square (rows, 1)."""
    unit = x.to(torch.float32, copy=True)
    length = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    root = length.square_().div_(x.shape[1]).add_(epsilon).rsqrt_()
    return unit.mul_(root), root


def _norm_backward(
    grad_TE: Tensor, x_TE: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the input, the normed input again, and the gradient of the weight.

    `residual`, if there is one, is added to the first before it is rounded.
    """
    normed_TE, x_grad_TE = torch.empty_like(x_TE), torch.empty_like(x_TE)
    exact = weight.float()
    weight_grad = torch.zeros_like(exact)
    rest_TE = [] if residual is None else [residual]
    for grad, x, normed, x_grad, *rest in _rows(grad_TE, x_TE, normed_TE, x_grad_TE, *rest_TE):
        unit, root = _unit(x, epsilon)
        normed.copy_(unit * exact)
        grad = grad.float()
        product = grad * unit
        weight_grad += product.sum(0)
        mean = (product @ exact).div_(x.shape[1])[:, None]
        result = (grad * exact).addcmul_(unit, mean, value=-1.0).mul_(root)
        x_grad.copy_(result.add_(rest[0]) if rest else result)
    return x_grad_TE, normed_TE, weight_grad.to(weight.dtype)


def _swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    act_TF = torch.empty_like(gate_TF)
    for gate, up, act in _rows(gate_TF, up_TF, act_TF):
        torch.mul(F.silu(gate), up, out=act)
    return act_TF


def _swiglu_backward(grad_TF: Tensor, gate_TF: Tensor, up_TF: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) up again, and the gradients of gate and up side by side."""
    inner = gate_TF.shape[1]
    act_TF, grad_T2F = torch.empty_like(gate_TF), gate_TF.new_empty(len(gate_TF), 2 * inner)
    for grad, gate, up, act, both in _rows(grad_TF, gate_TF, up_TF, act_TF, grad_T2F):
        silu = F.silu(gate)
        torch.mul(silu, up, out=act)
        torch.mul(silu, grad, out=both[:, inner:])
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=both[:, :inner])
    return act_TF, grad_T2F


def _rotary(cos: Tensor, sin: Tensor, layout: Layout, heads: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines for the heads of a token side by side, (T, H D); once per batch."""
    memory = layout.memory
    if "rotary" not in memory:
        half = cos.shape[-1] // 2
        signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        memory["rotary"] = (cos[0].repeat(1, heads), signed.repeat(1, heads))
    return memory["rotary"]


def _turned(x_TN: Tensor, norm: Tensor | None, rotary: tuple[Tensor, Tensor] | None, shape: _Shape) -> Tensor:
    """Queries or keys as (T, heads, D): normed per head in new memory if there is a norm, and rotated in place."""
    if norm is not None:
        x_TN = _norm(x_TN.view(-1, shape.size), norm, shape.epsilons[2]).view(x_TN.shape)
    return x_TN.unflatten(1, (-1, shape.size)) if rotary is None else _rotate(x_TN, rotary, shape)


def _rotate(x_TN: Tensor, rotary: tuple[Tensor, Tensor], shape: _Shape, back: bool = False) -> Tensor:
    """Rotate queries or keys in place: x cos + swap(x) sin, where swap exchanges the halves of a head.

    The transpose, for gradients, is the rotation back. Returns the same memory as (T, heads, D).
    """
    for x, cos, sin in _rows(x_TN, *(table[:, : x_TN.shape[1]] for table in rotary)):
        swapped = x.unflatten(1, (-1, 2, shape.size // 2)).flip(2).flatten(1)
        x.mul_(cos).addcmul_(swapped, sin, value=-1.0 if back else 1.0)
    return x_TN.unflatten(1, (-1, shape.size))
