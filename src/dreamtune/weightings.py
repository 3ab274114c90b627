"""How much a row counts for its timestep: functions of a DDPM process and timesteps (B,) to (B,).

Each row has its own timestep, so that a row of class images or of a teacher is weighted by its own
noise. (diffusers' train_dreambooth.py weights the subject's half by the timesteps of both.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from dreamtune.diffusion import Ddpm


def min_snr(process: Ddpm, t: Tensor, gamma: float) -> Tensor:
    """Min-SNR-gamma (Hang et al., arXiv:2303.09556, section 3.4): min(SNR, gamma) on the error in
    x0, which is 1 / SNR times that in noise and 1 / (SNR + 1) times that in v.

    At zero terminal SNR the weight is 1 on noise and 0 on v.
    """
    snr = process.snr(t)
    if process.prediction == "epsilon":
        return (gamma / snr).clamp(max=1)
    return snr.clamp(max=gamma) / (snr + 1)


def v_target(process: Ddpm, t: Tensor) -> Tensor:
    """The error in v of a model that predicts noise: (SNR + 1) / SNR times that in noise.

    For v = alpha noise - sigma x0 (arXiv:2202.00512, appendix D) it is the error over alpha.
    """
    return 1 / process.alphas_cumprod[t]
