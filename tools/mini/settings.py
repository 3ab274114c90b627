"""The two sizes at which `mini` is made: 64 px on a CPU, 128 px on a GPU. Everything that differs
is here.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """pixels: side of a picture. drawn: the concepts that have names, all or the clear ones.
    unnamed: share of pictures of any other concept, which captions know by its category alone.
    pool: composites encoded before the UNet is trained. batch: of the UNet, over all processes.
    """

    pixels: int
    styles: tuple[str, ...]
    drawn: str
    unnamed: float
    pairs: float
    pool: int
    unet_channels: tuple[int, ...]
    unet_layers: tuple[int, ...]
    unet_cross_attention: tuple[bool, ...]
    heads: tuple[int, ...]
    batch: int
    learning_rate: float

    @property
    def latents(self) -> int:
        return self.pixels // 8


LATENT_CHANNELS = 32
TEXT_WIDTH = 256

SETTINGS = {
    "cpu64": Settings(
        pixels=64,
        styles=("3d", "flat"),
        drawn="clear",
        unnamed=0.25,
        pairs=0.0,
        pool=49152,
        unet_channels=(128, 128),
        unet_layers=(2, 1),
        unet_cross_attention=(False, True),
        heads=(4, 4),
        batch=128,
        learning_rate=1e-3,
    ),
    "gpu128": Settings(
        pixels=128,
        styles=("3d", "flat", "cartoon"),
        drawn="all",
        unnamed=0.0,
        pairs=0.1,
        pool=400_000,
        unet_channels=(96, 160, 192),
        unet_layers=(1, 1, 1),
        unet_cross_attention=(False, True, True),
        heads=(3, 5, 6),
        batch=512,
        learning_rate=1e-3,
    ),
}
# The 128 px run in small, to see on a CPU that every command of it works.
SETTINGS["rehearsal"] = replace(SETTINGS["gpu128"], pool=4096, batch=4)
