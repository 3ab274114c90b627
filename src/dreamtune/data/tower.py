"""EfficientNet-Lite0 as plain torch functions: one photo in, 1280 features and a 7 x 7 map out.

The same network as timm's ``tf_efficientnet_lite0`` (a test holds the two together), written out
here because importing timm takes longer than embedding a whole folder of photos. Batch
normalisation is folded into the convolutions when the weights are read.

Tan & Le, "EfficientNet", 2019 (arXiv:1905.11946); the Lite variant drops squeeze-and-excitation
and uses ReLU6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SIDE = 224
WIDTH = 1280
# (repeats, kernel, first stride, expansion) of the seven stages, table 1 of the paper.
STAGES = (
    (1, 3, 1, 1),
    (2, 3, 2, 6),
    (2, 5, 2, 6),
    (3, 3, 2, 6),
    (3, 5, 1, 6),
    (4, 5, 2, 6),
    (1, 3, 1, 6),
)
EPS = 1e-3  # of the batch normalisation, as TensorFlow trained it


class Tower:
    """The folded network. Call it with uint8 pixels (B, 224, 224, 3)."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        import torch

        self._convs = fold({k: v.to(torch.float32) for k, v in weights.items()})

    @classmethod
    def read(cls, path: Path) -> Tower:
        from safetensors.torch import load_file

        weights = load_file(path)
        prefix = "visual.trunk."  # as open_clip names the same tensors
        if any(name.startswith(prefix) for name in weights):
            weights = {
                k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)
            }
        return cls(weights)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 224, 224, 3) -> the last feature map (B, 7, 7, 1280), values >= 0.

        Its mean over the 49 cells is the vector that ImageNet's classifier reads.
        """
        import torch

        with torch.inference_mode():
            x = pixels.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0)
            x = x.contiguous(memory_format=torch.channels_last)  # (B, 3, 224, 224)
            *_, x = self._stages(x)
            x = self._conv("conv_head", x)  # (B, 1280, 7, 7)
            return x.permute(0, 2, 3, 1)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """fp32 pixels (B, 3, H, W) in [-1, 1] -> the last map of each size, from H / 2 to H / 32.

        Gradients pass.
        """
        found = list(self._stages(pixels))
        return [x for x, y in pairwise(found) if y.shape[-1] < x.shape[-1]] + found[-1:]

    def to(self, device: torch.device) -> Tower:
        """Itself, with its weights on a device."""
        self._convs = {n: (w.to(device), b.to(device)) for n, (w, b) in self._convs.items()}
        return self

    def _stages(self, x: Tensor) -> Iterator[Tensor]:
        """The picture after each stage."""
        x = self._conv("conv_stem", x, stride=2)  # (B, 32, 112, 112)
        for stage, (repeats, _, stride, expansion) in enumerate(STAGES):
            for index in range(repeats):
                name = f"blocks.{stage}.{index}"
                x = self._block(name, x, expansion, stride if index == 0 else 1)
            yield x

    def _block(self, name: str, x: Tensor, expansion: int, stride: int) -> Tensor:
        """Expand, filter each channel, project; a skip where the shape allows it."""
        y = x if expansion == 1 else self._conv(f"{name}.conv_pw", x)
        y = self._conv(f"{name}.conv_dw", y, stride=stride)
        last = f"{name}.conv_pw" if expansion == 1 else f"{name}.conv_pwl"
        y = self._conv(last, y, clip=False)
        return x.add(y) if y.shape == x.shape else y

    def _conv(self, name: str, x: Tensor, stride: int = 1, clip: bool = True) -> Tensor:
        import torch.nn.functional as F

        weight, bias = self._convs[name]
        kernel = weight.shape[-1]
        groups = x.shape[1] // weight.shape[1]
        if stride == 1:
            y = F.conv2d(x, weight, bias, padding=kernel // 2, groups=groups)
        else:
            # TensorFlow's SAME: an odd row of padding goes to the bottom and the right.
            before = max(kernel - stride, 0) // 2
            after = max(kernel - stride, 0) - before
            y = F.conv2d(
                F.pad(x, (before, after, before, after)), weight, bias, stride, groups=groups
            )
        return F.relu6(y, inplace=True) if clip else y


def fold(weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Merge each batch normalisation into the convolution before it: name -> (weight, bias)."""
    import torch

    convs = {}
    for conv, norm in _pairs():
        scale = weights[f"{norm}.weight"] * torch.rsqrt(weights[f"{norm}.running_var"] + EPS)
        weight = weights[f"{conv}.weight"] * scale[:, None, None, None]
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        convs[conv] = (weight.contiguous(memory_format=torch.channels_last), bias)
    return convs


def _pairs() -> list[tuple[str, str]]:
    """(convolution, its batch normalisation) by timm's names."""
    pairs = [("conv_stem", "bn1")]
    for stage, (repeats, _, _, expansion) in enumerate(STAGES):
        names = ("conv_dw", "conv_pw") if expansion == 1 else ("conv_pw", "conv_dw", "conv_pwl")
        for index in range(repeats):
            block = f"blocks.{stage}.{index}"
            pairs += [
                (f"{block}.{name}", f"{block}.bn{n}") for n, name in enumerate(names, start=1)
            ]
    return [*pairs, ("conv_head", "bn2")]
