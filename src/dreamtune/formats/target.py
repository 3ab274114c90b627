"""Which base an adapter is for, from the shapes of the weights that it changes; no metadata."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dreamtune.formats.lora import Shape

NAMES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "the refiner of Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX.1",
    "mini": "mini",
}
# The width of the text that the denoiser sees, which is that of its cross-attention.
TEXT = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner", 256: "mini"}
CLIP = {frozenset({768}): "sd1", frozenset({1024}): "sd2", frozenset({768, 1280}): "sdxl"}


def of_adapter(signature: Mapping[str, Shape]) -> str | None:
    """A key of NAMES; None when the shapes are of no base that is known, or do not tell."""
    if any(".single_transformer_blocks." in name for name in signature):
        return "flux"
    if any(name.startswith("transformer.") for name in signature):
        return "sd3"
    for name, shape in signature.items():
        if name.startswith("unet.") and name.endswith((".attn2.to_k", ".attn2.to_v")):
            return TEXT.get(shape[1])
    if any(name.startswith("text_encoder_2.") for name in signature):
        return "sdxl"
    layers = (s for n, s in signature.items() if n.startswith("text_encoder.") and ".q_proj" in n)
    return _of_unet(signature) or next((CLIP.get(frozenset({s[1]})) for s in layers), None)


def _of_unet(signature: Mapping[str, Shape]) -> str | None:
    """For a UNet without changes to its cross-attention."""
    unet = {name: shape for name, shape in signature.items() if name.startswith("unet.")}
    if any(".transformer_blocks.1." in name for name in unet):
        return "sdxl"
    projections = [shape for name, shape in unet.items() if name.endswith(".proj_in")]
    if any(len(shape) == 4 for shape in projections):
        return "sd1"
    return None


def of_words(widths: Collection[int]) -> str | None:
    """The base whose text encoders have vectors of these widths."""
    return CLIP.get(frozenset(widths))
