"""Layers of small networks as a CPU runs them fastest, in bf16 with PyTorch 2.15 on a Xeon with
AMX.

Measured on one thread: PyTorch's group norm and SiLU take 4 to 7 times as long as the two in one
with channels last (`norm_silu.cpp`); oneDNN's gradient of a 3x3 convolution's weights takes 5 times
as long at 4x4 positions as one matrix product of unfolded pictures does (not at 8x8).
`torch.compile` took four minutes for the UNet and was no faster, and three times as slow for norms.
"""

from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

LAST = torch.channels_last
SMALL = 16  # positions of a picture up to which the one product is faster
FLAGS = ("-O3", "-march=native", "-ffast-math", "-mprefer-vector-width=512")


@cache
def _compiled() -> Any:
    """Built once by the machine's C++ compiler (and `ninja`), in PyTorch's folder of extensions."""
    from torch.utils import cpp_extension  # wants setuptools, which a GPU's machine may lack

    source = Path(__file__).with_name("norm_silu.cpp")
    return cpp_extension.load("mini_norm_silu", [str(source)], extra_cflags=list(FLAGS))


class NormSilu(torch.autograd.Function):
    """silu(group_norm(x) * weight + bias): x (B, C, H, W) bf16, weight and bias (1 or B, C)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        x = x.contiguous(memory_format=LAST)
        ctx.dtype, weight, bias = weight.dtype, weight.float(), bias.float()
        y, mean, rstd = _compiled().forward(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        out = gradients[0].contiguous(memory_format=LAST)
        to_x, *rest = _compiled().backward(out, *ctx.saved_tensors)
        if len(ctx.saved_tensors[1]) == 1:
            rest = [part.sum(0, keepdim=True) for part in rest]
        to_weight, to_bias = (part.to(ctx.dtype) for part in rest)
        return to_x, to_weight, to_bias, None, None


def norm_silu(layer: nn.GroupNorm, x: Tensor, scale_shift: Tensor | None = None) -> Tensor:
    """scale_shift: (B, 2 * C), applied after the norm as (1 + scale) and shift."""
    weight, bias = layer.weight[None], layer.bias[None]
    if scale_shift is not None:
        scale, shift = scale_shift.chunk(2, dim=1)
        weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
    return NormSilu.apply(x, weight, bias, layer.num_groups, layer.eps)


def unfold(x: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) -> (B * H/stride * W/stride, 9 * C): what a padded 3x3 convolution sees at each
    position.
    """
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    height, width = x.shape[2:]
    taps = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    return torch.cat(taps, dim=-1).flatten(0, 2)


class Convolution(torch.autograd.Function):
    """3x3, padding 1; of small pictures the weights' gradient is one matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        x = x.contiguous(memory_format=LAST)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        out = gradients[0].contiguous(memory_format=LAST)
        to_x = conv2d_input(x.shape, weight, out, ctx.stride, padding=1)
        rows = out.permute(0, 2, 3, 1).flatten(0, 2)  # (B * H * W, out)
        if out.shape[2] * out.shape[3] > SMALL:
            to_weight = conv2d_weight(x, weight.shape, out, ctx.stride, padding=1)
        else:
            taps = (rows.T @ unfold(x, ctx.stride)).view(-1, 3, 3, x.shape[1])
            to_weight = taps.permute(0, 3, 1, 2)
        return to_x, to_weight, rows.sum(0), None


def _convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return Convolution.apply(x, layer.weight, layer.bias, layer.stride[0])


def _residual(block: ResnetBlock2D, x: Tensor, temb: Tensor | None = None) -> Tensor:
    x = x.contiguous(memory_format=LAST)  # layers that mix both are slow
    hidden = block.conv1(norm_silu(block.norm1, x))
    moved = None
    if temb is not None:  # 'scale_shift', as the UNet of `mini` has it
        moved = block.time_emb_proj(F.silu(temb))
    hidden = block.conv2(norm_silu(block.norm2, hidden, moved))
    return hidden + (x if block.conv_shortcut is None else block.conv_shortcut(x))


def _normalise(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x.contiguous(), layer.num_groups, layer.weight, layer.bias, layer.eps)


def speed_up(model: nn.Module) -> None:
    """Change how the layers of a bf16 network compute, not what. Every padded convolution must be
    3x3.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.padding == (1, 1):
            layer.forward = MethodType(_convolve, layer)  # type: ignore[method-assign]
        elif isinstance(layer, ResnetBlock2D):
            layer.forward = MethodType(_residual, layer)
        elif isinstance(layer, nn.GroupNorm) and name.endswith("conv_norm_out"):
            layer.forward = MethodType(norm_silu, layer)  # type: ignore[method-assign]
        elif isinstance(layer, nn.GroupNorm):
            layer.forward = MethodType(_normalise, layer)  # type: ignore[method-assign]
        if hasattr(layer, "conv_norm_out"):
            layer.conv_act = nn.Identity()  # the norm does it
