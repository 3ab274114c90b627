"""How different two pictures look: a distance in the features of an image network.

As LPIPS measures it (Zhang et al., arXiv:1801.03924, equation 1, all channels alike): features of
several layers, each place's vector of length 1, squared differences, the mean over places and
layers. The network is VGG16 where torchvision's weights lie in torch's cache, else the image tower
that is built in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console, fsops
from dreamtune.data.encoder import WEIGHTS, builtin_folder
from dreamtune.data.tower import Tower

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHARE = 0.7  # of the loss; the rest is the squared error of the latents
LOW_NOISE = 1.0  # sigma / alpha below which a prediction shows the picture: more signal than noise
VGG = "vgg16-397923af.pth"  # torchvision's, named by the beginning of its SHA-256
RELUS = (3, 8, 15, 22, 29)  # the last layer before each of VGG16's poolings
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPS = 1e-10

Features = Callable[["Tensor"], list["Tensor"]]  # (B, 3, H, W) in [-1, 1] -> (B, C, h, w) each


def load(device: torch.device) -> Features:
    """The features of the best network at hand, frozen, in fp32."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / VGG
    if path.is_file() and _is_torchvisions(path):
        console.say("perceptual loss by VGG16")
        return _vgg(torch.load(path, weights_only=True), device)
    console.say("perceptual loss by the built-in image tower")
    return Tower.read(builtin_folder() / WEIGHTS).to(device).features


def distance(features: Features, ours: Tensor, theirs: Tensor) -> Tensor:
    """(B,) in [0, 4] of pictures (B, 3, H, W) in [-1, 1]; gradients reach `ours`."""
    import torch

    rows = [
        (_unit(a) - _unit(b)).square().sum(1).flatten(1).mean(1)
        for a, b in zip(features(ours), features(theirs), strict=True)
    ]
    return torch.stack(rows).mean(0)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + EPS).sqrt()


def _is_torchvisions(path: Path) -> bool:
    """Whether the bytes are those that the name promises: the file is a pickle."""
    if fsops.hash_file(path).startswith(VGG.removesuffix(".pth").partition("-")[2]):
        return True
    console.warn(f"{path} is not torchvision's {VGG}, and is not read")
    return False


def _vgg(state: dict[str, Any], device: torch.device) -> Features:
    import torch
    from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs["D"])  # without the classifier, which is most of the network
    start = "features."
    layers.load_state_dict({k.removeprefix(start): v for k, v in state.items() if start in k})
    layers = layers.eval().requires_grad_(False).to(device)
    for layer in layers:
        layer.inplace = False
    mean, std = (torch.tensor(row, device=device).view(3, 1, 1) for row in (MEAN, STD))

    def features(pixels: Tensor) -> list[Tensor]:
        x, found = ((pixels + 1) / 2 - mean) / std, []
        for i, layer in enumerate(layers[: RELUS[-1] + 1]):
            x = layer(x)
            if i in RELUS:
                found.append(x)
        return found

    return features
