"""The text tower of `mini` and of the built-in CLIP: trained once, then frozen.

    python -m tools.mini.train_text --work DIR

Three losses over the pooled state (final layer norm at the end mark):
  * CLIP's symmetric contrastive loss (Radford et al. 2021, figure 3) against a learnt projection
    of EfficientNet-Lite0 features of composites;
  * the same against the 1,000 rows of its ImageNet classifier with the class names as texts: free
    text-image pairs, with names of real things that no emoji has;
  * cross-entropy of what the picture shows (style, concepts, relation, background). Image
    features alone are nearly blind to a background's second colour or to left and right; the UNet
    must be told of them.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._meta import _IMAGENET_CATEGORIES
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.mini import judge, tokenizer
from tools.mini.artwork import Concept, load_concepts, load_masters
from tools.mini.compose import compose, random_picture
from tools.mini.settings import TEXT_WIDTH
from tools.mini.words import (
    COLOURS,
    PATTERNS,
    RELATIONS,
    SCENES,
    STYLES,
    Background,
    Picture,
    article,
    caption,
)

EMBEDDING = 256
COMPOSITES = 1536
BATCH = 96
STEPS = 450
LEARNING_RATE = 1e-3
SEEN_AT = 128  # px; the frozen tower is three times as fast as at 224

KINDS = ("plain", *PATTERNS, *SCENES)


def text_config() -> CLIPTextConfig:
    """4 layers of width 256 with a short MLP: 2.6 M parameters, since the tower is shipped twice
    (mini and clip).
    """
    return CLIPTextConfig(
        vocab_size=tokenizer.VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.CONTEXT,
        hidden_act="gelu",
        projection_dim=EMBEDDING,
        bos_token_id=tokenizer.VOCABULARY - 2,
        eos_token_id=tokenizer.VOCABULARY - 1,
        pad_token_id=tokenizer.VOCABULARY - 1,
    )


class Towers(nn.Module):
    """Text tower, both projections, temperature and the heads that name what is shown."""

    def __init__(self, classes: dict[str, int]) -> None:
        super().__init__()
        self.text = CLIPTextModel(text_config())
        self.text_projection = nn.Linear(TEXT_WIDTH, EMBEDDING, bias=False)
        self.image_projection = nn.Linear(judge.FEATURES, EMBEDDING)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # ln(1 / 0.07)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(TEXT_WIDTH, count) for name, count in classes.items()}
        )

    def pool(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, 256), the state at the end mark."""
        return self.text(ids).pooler_output

    def contrast(self, pooled: Tensor, features: Tensor) -> Tensor:
        """Symmetric InfoNCE of B matching pairs."""
        text = F.normalize(self.text_projection(pooled), dim=-1)  # (B, 256)
        image = F.normalize(self.image_projection(features), dim=-1)  # (B, 256)
        logits = self.log_scale.exp().clamp(max=100) * text @ image.T  # (B, B)
        labels = torch.arange(len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def prepare(work: Path) -> None:
    """Write the features of composites of every trained concept in every style, and the pictures
    they show.
    """
    if (work / "text-pictures.json").exists():
        return
    rng = random.Random(7)
    network = judge.load(work / "effnet_lite0.safetensors").to(memory_format=torch.channels_last)
    masters = load_masters(work, 64)
    concepts = {c.code: c for c in load_concepts(work) if not c.held_out}
    pictures = []
    for style in STYLES:
        codes = [code for code in concepts if f"{style}/{code}" in masters]
        count = COMPOSITES // len(STYLES)
        pictures += [random_picture([style], codes, 0.1, rng) for _ in range(count)]
    rows = []
    for start in range(0, len(pictures), 64):
        pixels = [compose(p, masters, 64, rng) for p in pictures[start : start + 64]]
        images = torch.stack([torch.from_numpy(p) for p in pixels]).permute(0, 3, 1, 2) / 127.5 - 1
        rows.append(judge.features(network, images, size=SEEN_AT))
        print(f"features {start + 64} of {len(pictures)}", flush=True)
    save_file({"features": torch.cat(rows)}, work / "text-features.safetensors")
    described = [
        {"style": p.style, "codes": p.codes, "where": p.where, **vars(p.background)}
        for p in pictures
    ]
    (work / "text-pictures.json").write_text(json.dumps(described))


def learn_tokens(work: Path, concepts: list[Concept]) -> None:
    """From random captions and, often enough to get pieces of their own, the ImageNet names."""
    rng = random.Random(3)
    named = {concept.code: [*concept.names, concept.category] for concept in concepts}

    def texts() -> Iterator[str]:
        for _ in range(20_000):
            picture = random_picture(list(STYLES), list(named), 0.1, rng)
            yield caption(
                picture, [rng.choice(named[code]) for code in picture.codes], rng, identifier=0
            )
        for name in _IMAGENET_CATEGORIES * 3:
            yield f"a photo of {article(name.lower())}"

    tokenizer.train(texts(), work / "tokenizer")


def targets(picture: Picture, order: dict[str, int]) -> dict[str, int]:
    """Class numbers for every head; 0 is 'none' where a picture may lack the thing."""
    background = picture.background
    colours = ["", *COLOURS]
    return {
        "style": list(STYLES).index(picture.style),
        "first": order[picture.codes[0]],
        "second": order[picture.codes[1]] if len(picture.codes) == 2 else len(order),
        "where": ["", *RELATIONS].index(picture.where),
        "kind": KINDS.index(background.kind),
        "colour": colours.index(background.colour),
        "other": colours.index(background.second),
    }


def classes(concepts: int) -> dict[str, int]:
    colours = len(COLOURS) + 1
    return {
        "style": len(STYLES),
        "first": concepts,
        "second": concepts + 1,
        "where": len(RELATIONS) + 1,
        "kind": len(KINDS),
        "colour": colours,
        "other": colours,
    }


class Pairs:
    """Random batches of captions with features and targets."""

    def __init__(self, work: Path, concepts: list[Concept], seed: int) -> None:
        self.rng = random.Random(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.tokens = CLIPTokenizer.from_pretrained(work / "tokenizer")
        self.named = {concept.code: concept for concept in concepts}
        self.order = {concept.code: number for number, concept in enumerate(concepts)}
        self.features = load_file(work / "text-features.safetensors")["features"]
        rows = json.loads((work / "text-pictures.json").read_text())
        self.pictures = [_picture(row) for row in rows]
        self.mean, self.spread = self.features.mean(0), self.features - self.features.mean(0)
        weights = load_file(work / "effnet_lite0.safetensors")["classifier.weight"]
        weights = weights - weights.mean(0)
        # As far from the mean as pictures are.
        self.rows = weights * (self.spread.norm(dim=1).mean() / weights.norm(dim=1, keepdim=True))

    def ids(self, texts: list[str]) -> Tensor:
        batch = self.tokens(texts, padding=True, truncation=True, max_length=tokenizer.CONTEXT)
        return torch.tensor(batch.input_ids)

    def composites(self, count: int) -> tuple[list[str], Tensor, dict[str, Tensor]]:
        chosen = self.rng.choices(range(len(self.pictures)), k=count)
        pictures = [self.pictures[i] for i in chosen]
        texts = [caption(p, [self._noun(code) for code in p.codes], self.rng) for p in pictures]
        rows = [targets(picture, self.order) for picture in pictures]
        wanted = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        return texts, self.features[chosen] - self.mean, wanted

    def real_things(self, count: int) -> tuple[list[str], Tensor]:
        """ImageNet names and their classifier rows, spread by the scatter of pictures around their
        mean.
        """
        chosen = self.rng.sample(range(len(_IMAGENET_CATEGORIES)), count)
        texts = [self._real(_IMAGENET_CATEGORIES[i].lower()) for i in chosen]
        pairs = torch.randint(len(self.spread), (2, count), generator=self.noise)
        scatter = self.spread[pairs[0]] - self.spread[pairs[1]]
        strength = torch.rand(count, 1, generator=self.noise) * 0.7
        return texts, self.rows[chosen] + strength * scatter

    def _noun(self, code: str) -> str:
        concept = self.named[code]
        if self.rng.random() < 0.1:
            return concept.category
        return concept.names[0] if self.rng.random() < 0.6 else self.rng.choice(concept.names)

    def _real(self, name: str) -> str:
        return self.rng.choice(("{}", "a photo of {}", "a picture of {}")).format(article(name))


def train(work: Path, steps: int) -> None:
    """Write work/text_encoder (transformers layout), work/tokenizer and
    work/projections.safetensors.
    """
    torch.manual_seed(0)
    concepts = [concept for concept in load_concepts(work) if not concept.held_out]
    learn_tokens(work, concepts)
    pairs, towers = Pairs(work, concepts, seed=1), Towers(classes(len(concepts)))
    optimizer = torch.optim.AdamW(
        towers.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.05)
    for step in range(steps):
        texts, features, wanted = pairs.composites(BATCH)
        names, rows = pairs.real_things(BATCH // 2)
        pooled = towers.pool(pairs.ids(texts + names))  # (3/2 B, 256)
        told = {
            name: F.cross_entropy(head(pooled[:BATCH]), wanted[name])
            for name, head in towers.heads.items()
        }
        pictured = towers.contrast(pooled[:BATCH], features)
        real = towers.contrast(pooled[BATCH:], rows)
        loss = pictured + real + 0.3 * torch.stack(list(told.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            heads = " ".join(f"{name} {value.item():.2f}" for name, value in told.items())
            print(
                f"{step} pictured {pictured.item():.3f} real {real.item():.3f} {heads}", flush=True
            )
    save(towers, pairs.mean, work)


def save(towers: Towers, mean: Tensor, work: Path) -> None:
    """The mean of features goes into the projection's bias, so that the projection takes plain
    features.
    """
    towers.text.save_pretrained(work / "text_encoder")
    projection = towers.image_projection
    tensors = {
        "text": towers.text_projection.weight,
        "image.weight": projection.weight,
        "image.bias": projection.bias - projection.weight @ mean,
        "log_scale": towers.log_scale,
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, work / "projections.safetensors")


def _picture(row: dict) -> Picture:
    background = Background(row["kind"], row["colour"], row["second"])
    return Picture(row["style"], tuple(row["codes"]), row["where"], background)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tools/mini/work"))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    prepare(options.work)
    train(options.work, options.steps)
