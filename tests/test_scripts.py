"""Loss and gradients of the methods against diffusers' training scripts, written out, in fp32.

The references use the scripts' own calls (examples/dreambooth/train_dreambooth.py,
train_dreambooth_lora.py, train_dreambooth_lora_sdxl.py, textual_inversion.py): DDPMScheduler,
`add_adapter`, `resize_token_embeddings`. Both sides get the same noise, timesteps and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional

from dreamtune import families, losses, plugins
from dreamtune.objective import Objective
from tests.test_parity import CAPTIONS, CONCEPTS, fixed_batch


def ours(base: str, method: str, **options: object) -> tuple[dict[str, Tensor], dict]:
    """Parameters by name after one backward pass, and the batch with its loss."""
    family = families.load(f"tiny:{base}", torch.float32)
    module = plugins.load("dreamtune.methods", method)
    made = module.Method(module.Options(**options))
    made.attach(family, CONCEPTS, seed=0)
    parameters = {n: p for group in made.groups() for n, p in group.parameters.items()}
    source = torch.Generator().manual_seed(5)
    for name, p in parameters.items():
        if "lora_B" in name:  # zero at first, which would hide half of it
            p.data = torch.randn(p.shape, generator=source) * 0.1
    batch = fixed_batch(family)
    batch["tokens"] = {stack.name: stack.tokenize(CAPTIONS) for stack in family.text}
    error = Objective(family, made.live(), losses.l2)(batch).mean()
    error.backward()
    return parameters, {**batch, "loss": error.detach()}


def script(base: families.Family, batch: Mapping[str, Any], text: Mapping[str, Tensor]) -> Tensor:
    """The loss of the training loop of all four scripts. text: what their encode_prompt gives."""
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    model_input = batch["mean"] + batch["std"] * batch["posterior_noise"]  # latent_dist.sample()
    timesteps = torch.tensor([130, 780])
    noisy = scheduler.add_noise(model_input, batch["noise"], timesteps)
    added = None
    if "pooled" in text:  # compute_time_ids: original size, crop, target size
        added = {"text_embeds": text["pooled"], "time_ids": batch["meta"]}
    prediction = base.denoiser(noisy, timesteps, text["text"], added_cond_kwargs=added).sample
    return functional.mse_loss(prediction.float(), batch["noise"].float(), reduction="mean")


def encode(base: families.Family, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """encode_prompt of the scripts, from the tokens."""
    encoders = [stack.encoder for stack in base.text]
    if len(encoders) == 1:
        return {"text": encoders[0](tokens["text_encoder"], attention_mask=None)[0]}
    outputs = [
        encoder(ids, output_hidden_states=True, return_dict=False)
        for encoder, ids in zip(encoders, tokens.values(), strict=True)
    ]
    states = torch.concat([output[-1][-2] for output in outputs], dim=-1)
    return {"text": states, "pooled": outputs[-1][0]}


def assert_close(mine: Tensor, theirs: Tensor, whole: Tensor | float = 0.0) -> None:
    """Within 1e-5 of their size; `whole` is that of all gradients, for what is zero in theory."""
    assert (mine - theirs).norm() <= 1e-5 * (theirs.norm() + 1e-3 * whole)


def assert_same_gradients(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], loss: Tensor
) -> None:
    assert mine.keys() == theirs.keys()
    loss.backward()
    whole = torch.stack([p.grad.norm() for p in theirs.values()]).norm()
    for name, p in theirs.items():
        assert_close(mine[name].grad, p.grad, whole)


@pytest.mark.parametrize("base", ["sd", "sdxl"])
def test_dreambooth(base: str) -> None:
    """train_dreambooth.py with --train_text_encoder."""
    mine, batch = ours(base, "dreambooth", train_text=True)
    other = families.load(f"tiny:{base}", torch.float32)
    theirs = dict(other.denoiser.named_parameters())
    for stack in other.text:
        theirs |= {f"{stack.name}.{n}": p for n, p in stack.encoder.named_parameters()}
    for p in theirs.values():
        p.requires_grad_(True)
    loss = script(other, batch, encode(other, batch["tokens"]))
    assert_close(batch["loss"], loss.detach())
    unused = {name for name in theirs if mine[name].grad is None}
    assert all(name.startswith("text_encoder.") for name in unused)  # SDXL reads one layer less
    some = {name: p for name, p in theirs.items() if name not in unused}
    assert_same_gradients({name: mine[name] for name in some}, some, loss)


@pytest.mark.parametrize("base", ["sd", "sdxl"])
def test_dreambooth_lora(base: str) -> None:
    """train_dreambooth_lora.py and train_dreambooth_lora_sdxl.py with --train_text_encoder."""
    mine, batch = ours(base, "lora", rank=4, train_text=True)
    other = families.load(f"tiny:{base}", torch.float32)
    unet_config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    other.denoiser.add_adapter(unet_config)
    text_config = LoraConfig(
        r=4, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]
    )
    named = dict(other.denoiser.named_parameters())
    for stack in other.text:
        stack.encoder.add_adapter(text_config)
        named |= {f"{stack.name}.{n}": p for n, p in stack.encoder.named_parameters()}
    theirs = {name: p for name, p in named.items() if "lora_" in name}
    assert theirs.keys() == mine.keys()
    for name, p in theirs.items():
        p.data = mine[name].detach().clone()
    loss = script(other, batch, encode(other, batch["tokens"]))
    assert_close(batch["loss"], loss.detach())
    some = {name: p for name, p in theirs.items() if mine[name].grad is not None}
    assert len(some) > len(theirs) / 2
    assert_same_gradients({name: mine[name] for name in some}, some, loss)


@pytest.mark.parametrize("vectors", [1, 3])
def test_textual_inversion(vectors: int) -> None:
    """textual_inversion.py with --num_vectors; one update with its AdamW, other rows put back."""
    mine, batch = ours("sd", "embedding", vectors=vectors, init_word="c", keep_norm=False)
    other = families.load("tiny:sd", torch.float32)
    tokenizer, encoder = other.text[0].tokenizer, other.text[0].encoder
    placeholders = ["<dog-v01>", *(f"<dog-v01>_{i}" for i in range(1, vectors))]
    assert tokenizer.add_tokens(placeholders) == vectors
    (start,) = tokenizer.encode("c", add_special_tokens=False)
    new = tokenizer.convert_tokens_to_ids(placeholders)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    with torch.no_grad():
        for token in new:
            table[token] = table[start].clone()
    table.requires_grad_(True)
    captions = [c.replace("[V01]", " ".join(placeholders)) for c in CAPTIONS]
    ids = tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(ids, batch["tokens"]["text_encoder"])

    loss = script(other, batch, encode(other, {"text_encoder": ids}))
    loss.backward()
    assert_close(batch["loss"], loss.detach())
    (rows,) = mine.values()
    assert_close(rows.grad, table.grad[new])
    for p in (rows, table):  # the script's decay is undone for all rows but the new ones; ours is 0
        torch.optim.AdamW([p], lr=5e-4, weight_decay=0.0).step()
    assert_close(rows.detach(), table.detach()[new])
