"""What samplers are called: one name each, A1111's, and what others say for it.

A1111 since 1.9 has two settings, Sampler and Schedule type (which noise levels the steps pass);
before, and in people's heads, they are one: "DPM++ 2M Karras".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dreamtune.errors import Usage, suggest

# A1111's name, then diffusers', ComfyUI's and sd-scripts' where spelling alone does not make them
# the same: "dpmpp_2m", "k_dpm_2_a" and "DPM++ 2M Karras" are understood as they are.
SAMPLERS: dict[str, tuple[str, ...]] = {
    "DDIM": (),
    "DDPM": (),
    "PLMS": ("pndm",),
    "Euler": (),
    "Euler a": ("euler ancestral",),
    "Heun": (),
    "LMS": (),
    "LCM": (),
    "UniPC": ("uni_pc", "uni_pc_bh2"),
    "DPM2": ("dpm_2", "kdpm2"),
    "DPM2 a": ("dpm_2_a", "dpm_2_ancestral", "kdpm2 ancestral"),
    "DPM++ 2M": ("dpmsolver++", "dpmsolver multistep"),
    "DPM++ 2M SDE": (),
    "DPM++ 2S": ("dpmsingle", "dpmsolver singlestep"),
    "DPM++ SDE": (),
}
SCHEDULES = ("Karras", "Exponential")


@dataclass(frozen=True)
class Sampler:
    """A1111's Sampler and Schedule type; None is the sampler's own."""

    name: str
    schedule: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.schedule}" if self.schedule else self.name


def parse(text: str) -> Sampler:
    """The sampler that `text` means; Usage with the nearest name when there is none."""
    key = _key(text)
    for schedule in (None, *SCHEDULES):
        for name, others in SAMPLERS.items():
            if key in {_key(f"{n} {schedule or ''}") for n in (name, *others)}:
                return Sampler(name, schedule)
    known = [f"{n} {s}".strip().lower() for n in SAMPLERS for s in ("", *SCHEDULES)]
    hint = suggest(text.lower(), known) or f"there is {', '.join(SAMPLERS)}"
    raise Usage(f"no scheduler {text!r}", fix=hint)


def _key(text: str) -> str:
    """Spelling that does not count left out: "DPM++ 2M" and "k_dpmpp_2m" are the same."""
    plain = re.sub(r"^k[_ ]", "", text.strip().lower()).replace("++", "pp")
    return re.sub(r"[^a-z0-9]", "", plain).removesuffix("scheduler").removesuffix("discrete")
