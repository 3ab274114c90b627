"""Where a base runs and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamtune import families
from dreamtune.errors import Resources

if TYPE_CHECKING:
    import torch

    from dreamtune.bases import Found
    from dreamtune.families import Family


def choose(asked: str) -> str:
    """ "cuda" or "cpu" for "auto"; Resources when a GPU is asked for and there is none."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise Resources("there is no CUDA device", fix="use --device cpu")
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(asked: str, device: str) -> str:
    """fp32 on a CPU, where bf16 gains nothing in small models; bf16 on a GPU."""
    return asked if asked != "auto" else "bf16" if device == "cuda" else "fp32"


def model_of(device: torch.device) -> str:
    """What computes there, "cpu" or a GPU's name: the last bits of a result depend on it."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def load(base: Found | str, device: str, precision: str) -> Family:
    """The base on a device, frozen, its denoiser and text encoders in fp32, bf16 or fp16."""
    import torch

    quiet_libraries()
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return families.load(base, kinds[precision], device)


def make_exact(tf32: bool = False) -> None:
    """Ask for kernels that give the same bits each time, which a resumed run promises.

    tf32: GPUs may round factors of fp32 products to 10 bits, which is faster.
    """
    import os

    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would also write every new tensor full of NaN, 1,600 times a step of `mini`.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def save_memory(family: Family, live: set[str]) -> None:
    """Compute activations again in the backward pass instead of keeping them (Chen et al.,
    arXiv:1604.06174), in the parts that run in the loop. The gradients are the same.
    """
    family.denoiser.enable_gradient_checkpointing()
    if "text" in live:
        for stack in family.text:
            encoder = stack.encoder
            new = getattr(encoder, "activation_checkpointing_enable", None)  # transformers 5.20
            (new or encoder.gradient_checkpointing_enable)({"use_reentrant": False})


def quiet_libraries() -> None:
    """No progress bars and no notes of the libraries' own on stderr."""
    import logging
    import warnings

    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # its notes on kernels it lacks
    import diffusers
    import transformers

    # fp32 weights under autocast are how a whole FLUX or SD 3.5 is trained.
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
