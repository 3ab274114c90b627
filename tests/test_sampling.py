"""How pictures are made: schedulers, emphasis, long prompts, pictures to start from, strength."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from dreamtune import families
from dreamtune.diffusion import Ddpm
from dreamtune.errors import Usage
from dreamtune.families.flux import unpack
from dreamtune.formats import samplers
from dreamtune.formats.samplers import SAMPLERS, Sampler
from dreamtune.sampling import Look, Painter, Shot, pictures, schedulers
from dreamtune.sampling.denoise import denoise, guide
from dreamtune.sampling.start import Start
from dreamtune.sampling.text import Texts, cut
from tests.conftest import draw_photo

SIZE = (64, 64)
# diffusers' schedulers hand tensors to numpy in a way that it will not take for ever.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def arrays(images: Any) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in images]


def furthest(ours: Any, theirs: Any) -> int:
    pairs = zip(arrays(ours), arrays(theirs), strict=True)
    return max(int(np.abs(a - b).max()) for a, b in pairs)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# Schedulers.

NAMED = [
    *(Sampler(name) for name in SAMPLERS),
    *(
        Sampler(n, "Karras")
        for n in ("Euler", "Heun", "LMS", "DPM2", "DPM2 a", "DPM++ 2M", "UniPC")
    ),
    *(Sampler(n, "Karras") for n in ("DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2S")),
    Sampler("DPM++ 2M", "Exponential"),
]


@pytest.mark.parametrize(
    ("said", "meant"),
    {
        "ddim": "DDIM",
        "DPM++ 2M Karras": "DPM++ 2M Karras",
        "dpmpp_2m_sde": "DPM++ 2M SDE",
        "k_euler_a": "Euler a",
        "euler ancestral": "Euler a",
        "EulerDiscreteScheduler": "Euler",
        "pndm": "PLMS",
        "dpmsolver++": "DPM++ 2M",
        "uni_pc": "UniPC",
        "k_dpm_2_a": "DPM2 a",
    }.items(),
)
def test_schedulers_have_their_usual_names(said: str, meant: str) -> None:
    assert str(samplers.parse(said)) == meant


def test_an_unknown_scheduler_is_refused_with_the_nearest() -> None:
    with pytest.raises(Usage, match="did you mean 'euler a'"):
        samplers.parse("eluer a")


class Ideal:
    """A model that knows the one picture there is, for a noise process with betas."""

    def __init__(self, scheduler: Any, x0: torch.Tensor) -> None:
        self.scheduler, self.x0 = scheduler, x0
        self.process = Ddpm.from_scheduler(scheduler)
        self.denoiser = SimpleNamespace(device=torch.device("cpu"))
        self.base = "ideal"

    def times(self, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        return {}

    def predict(self, xt: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        product = self.process.alphas_cumprod.double().clamp(min=2**-24)
        sigmas = ((1 - product) / product).log().numpy() / 2
        sigma = np.exp(np.interp(float(t[0]), np.arange(len(sigmas)), sigmas))
        alpha, spread = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
        noise = (xt - alpha * self.x0) / spread
        v = alpha * noise - spread * self.x0
        return (v if self.process.prediction == "v_prediction" else noise).float()


@pytest.mark.parametrize("sampler", NAMED, ids=str)
@pytest.mark.parametrize("kind", ["epsilon", "v, zero terminal SNR"])
def test_every_scheduler_finds_the_picture_of_an_ideal_model(sampler: Sampler, kind: str) -> None:
    """So it has the base's betas, prediction and terminal SNR."""
    zero = kind != "epsilon"
    own = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction" if zero else "epsilon",
        rescale_betas_zero_snr=zero,
        timestep_spacing="trailing",
    )
    x0 = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    ideal: Any = Ideal(own, x0)
    scheduler = schedulers.build(ideal, sampler)
    assert scheduler.config.prediction_type == own.config.prediction_type
    schedulers.set_times(scheduler, ideal, 20, SIZE)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    latents = noise * scheduler.init_noise_sigma
    found = denoise(
        ideal, scheduler, scheduler.timesteps, latents, {}, guidance=None, generators=generators(5)
    )
    assert (found - x0).abs().max() < 0.1, (found - x0).abs().max()


@pytest.mark.parametrize("sampler", NAMED[::2], ids=str)
def test_a_scheduler_is_the_pipelines_with_it_bit_for_bit(sampler: Sampler) -> None:
    family = families.load("tiny:sd", torch.float32)
    look = Look(4, 4.0, SIZE, "blurred", sampler)
    ours = pictures(family, "a dog", [5, 6], look, 2)
    pipeline = quiet(family.pipeline())
    pipeline.scheduler = schedulers.build(family, sampler)
    theirs = pipeline(
        ["a dog"] * 2,
        negative_prompt=["blurred"] * 2,
        num_inference_steps=4,
        guidance_scale=4.0,
        width=64,
        height=64,
        generator=generators(5, 6),
    ).images
    assert furthest(ours, theirs) == 0


@pytest.mark.parametrize(
    ("base", "name"), [*(("sd3", n) for n in schedulers.FLOW), ("flux", "UniPC"), ("flux", "Euler")]
)
def test_a_flow_has_its_own_schedulers(base: str, name: str) -> None:
    family = families.load(f"tiny:{base}", torch.float32)
    (ours,) = pictures(family, "a dog", [5], Look(4, 4.0, SIZE, "blurred", Sampler(name)))
    pipeline = quiet(family.pipeline())
    pipeline.scheduler = schedulers.build(family, Sampler(name))
    theirs = pipeline(
        "a dog",
        negative_prompt=None if family.distilled else "blurred",
        num_inference_steps=4,
        guidance_scale=4.0,
        width=64,
        height=64,
        generator=generators(5),
    ).images
    assert furthest([ours], theirs) == 0


def test_a_scheduler_that_does_not_fit_is_refused() -> None:
    flow = families.load("tiny:sd3", torch.float32)
    with pytest.raises(Usage, match=r"DDIM does not fit tiny:sd3.*Euler, Heun"):
        schedulers.build(flow, Sampler("DDIM"))
    with pytest.raises(Usage, match="Euler a has no Karras"):
        schedulers.build(families.load("tiny:sd", torch.float32), Sampler("Euler a", "Karras"))


def test_guidance_rescale_is_the_pipelines() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    both = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    without, with_text = both.chunk(2)
    guided = without + 7.0 * (with_text - without)
    assert torch.equal(guide(both, 7.0, 0.7), rescale_noise_cfg(guided, with_text, 0.7))


# Words.


def test_emphasis_multiplies_states_and_keeps_their_mean() -> None:
    family = families.load("tiny:sdxl", torch.float32)
    said = Texts(family).states("a (dog:1.5) b", 1)
    plain = Texts(family).states("a dog b", 1)
    assert torch.equal(said["pooled"], plain["pooled"])
    weights = torch.ones(77)
    weights[2:5] = 1.5  # begin, a, then d o g: the tiny tokenizer's words are letters
    for columns in (slice(0, 32), slice(32, 48)):
        states = plain["text"][..., columns]
        louder = states * weights[:, None]
        expected = louder * states.mean() / louder.mean()
        assert torch.allclose(said["text"][..., columns], expected, atol=1e-5)


def test_emphasis_restores_no_mean_where_there_is_none() -> None:
    family = families.load("tiny:sd", torch.float32)
    said, plain = (Texts(family).states(text, 1)["text"] for text in ("a (dog:1.5) b", "a dog b"))
    assert torch.equal(said[:, 2:5], plain[:, 2:5] * 1.5)
    assert torch.equal(said[:, 5:], plain[:, 5:])


def test_long_prompts_are_cut_as_a1111_does() -> None:
    (stack,) = families.load("tiny:sd", torch.float32).text
    word, comma = stack.ids("x")[0], stack.ids(",")[0]

    def lengths(text: str) -> list[int]:
        return [len(row) for row in cut(stack, [[(text, 1.0)]])]

    assert lengths("x " * 75) == [75]
    assert lengths("x " * 76) == [75, 1]
    assert lengths("x " * 60 + ", " + "x " * 20) == [61, 20]  # after a comma that is near
    assert lengths("x " * 50 + ", " + "x " * 30) == [75, 6]  # not after one that is far
    assert lengths("x " * 75 + ", x") == [75, 2]
    rows = cut(stack, [[("x", 1.0)], [("", 1.0), ("x ,", 1.2)]])
    assert rows == [[(word, 1.0)], [(word, 1.2), (comma, 1.2)]]
    assert cut(stack, [[("", 1.0)]]) == [[]]


def test_chunks_are_encoded_apart_and_read_together() -> None:
    family = families.load("tiny:sdxl", torch.float32)
    texts = Texts(family)
    long = "x " * 75 + "y " * 3
    assert (texts.length(long), texts.length("x")) == (2, 1)
    both = texts.states(long, 2)
    first, second = texts.states("x " * 75, 1), texts.states("y " * 3, 1)
    assert torch.equal(both["text"], torch.cat([first["text"], second["text"]], 1))
    assert torch.equal(both["pooled"], first["pooled"])
    filled = texts.states("x", 2)["text"]
    assert torch.equal(filled[:, 77:], texts.states("", 1)["text"])


def test_a_long_prompt_beside_a_short_one_changes_nothing() -> None:
    family = families.load("tiny:sd", torch.float32)
    look = Look(2, 4.0, SIZE)
    shots = [Shot(((text, 1.0),), 5, look) for text in ("a dog", "x " * 80, "a cat")]
    together = [made for _, made in Painter(family).paint(shots, 3)]
    alone = [made for shot in shots for _, made in Painter(family).paint([shot], 1)]
    assert (
        furthest([together[0], together[2], together[1]], alone) <= 1
        or furthest(together, [alone[0], alone[2], alone[1]]) <= 1
    )


def test_a_base_that_reads_one_chunk_says_what_it_loses(capsys: pytest.CaptureFixture[str]) -> None:
    family = families.load("tiny:sd3", torch.float32)
    texts = Texts(family)
    assert texts.length("x " * 75 + "yes") == 1
    assert "tiny:sd3 reads 77 tokens, and not 'yes" in capsys.readouterr().err


# Pictures to start from.


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("masked", [False, True])
def test_starting_from_a_picture_is_the_pipelines(name: str, masked: bool) -> None:
    family = families.load(f"tiny:{name}", torch.float32)
    photo = draw_photo(1, SIZE)
    mask = Image.new("L", SIZE)
    mask.paste(255, (16, 16, 48, 64))
    look = Look(5, 4.0, SIZE, "blurred", start=Start(photo, mask if masked else None), strength=0.6)
    ours = arrays(pictures(family, "a dog", [5, 6], look, 2))
    kind = diffusers.AutoPipelineForInpainting if masked else diffusers.AutoPipelineForImage2Image
    pipeline = quiet(kind.from_pipe(family.pipeline()))
    theirs = pipeline(
        ["a dog"] * 2,
        image=[photo] * 2,
        negative_prompt=None if family.distilled else ["blurred"] * 2,
        num_inference_steps=5,
        guidance_scale=4.0,
        strength=0.6,
        generator=generators(5, 6),
        output_type="latent",  # SD 3's inpainting pipeline forgets the shift when it decodes
        **({"mask_image": [mask] * 2} if masked else {}),
        **({"width": 64, "height": 64} if masked or name == "flux" else {}),
    ).images
    theirs = unpack(theirs, (8, 8)) if name == "flux" else theirs
    theirs = pipeline.image_processor.postprocess(family.decode_image(theirs))
    white = np.asarray(mask)[..., None] > 0 if masked else np.array(True)
    for a, b in zip(ours, arrays(theirs), strict=True):
        assert np.abs((a - b) * white).max() <= 1
        if masked:
            assert np.array_equal(a * ~white, np.asarray(photo) * ~white)


def test_a_strength_of_no_step_is_refused() -> None:
    family = families.load("tiny:sd", torch.float32)
    look = Look(5, 4.0, SIZE, start=Start(draw_photo(1, SIZE)), strength=0.1)
    with pytest.raises(Usage, match=r"strength 0\.1 of 5 steps is no step"):
        next(pictures(family, "a dog", [5], look))


# Style strength.


def made(family: Any, *prompt: tuple[str, float]) -> np.ndarray:
    ((_, picture),) = Painter(family).paint([Shot(prompt, 5, Look(3, 4.0, SIZE))])
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_mixed_prompts_lie_between_their_ends(name: str) -> None:
    family = families.load(f"tiny:{name}", torch.float32)
    without, with_it = made(family, ("a dog", 1.0)), made(family, ("a zq dog", 1.0))
    assert np.abs(without - with_it).max() > 2

    def distance(share: float) -> float:
        mixed = made(family, ("a zq dog", share), ("a dog", 1 - share))
        return float(np.abs(mixed - without).sum())

    ends = [0.0, *map(distance, (0.25, 0.5, 0.75)), float(np.abs(with_it - without).sum())]
    assert all(a < b for a, b in itertools.pairwise(ends))
    assert np.abs(made(family, ("a dog", 0.5), ("a dog ", 0.5)) - without).max() <= 1
    assert np.array_equal(made(family, ("a dog", 1.0)), without), "nothing is left behind"


def test_a_transformer_cannot_show_a_concept_in_part() -> None:
    family = families.load("tiny:sd3", torch.float32)
    with pytest.raises(Usage, match=r"no cross-attention.*--with NAME@0\.6"):
        made(family, ("a zq dog", 0.5), ("a dog", 0.5))
