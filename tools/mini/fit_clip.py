"""The text side of the built-in CLIP, by linear algebra on features that are there already.

    python -m tools.mini.fit_clip --work DIR --out src/dreamtune/assets/clip

Two things, since the small text tower knows the words of `mini` and few others:
  * `projection.safetensors`, pictures of `mini` and captions: the image side is whitened by the
    scatter within concepts (linear discriminant analysis) and cut to 256 directions; the text side
    is ridge regression from the frozen tower's states onto the concepts' means;
  * `classes.safetensors` and `words.txt`, photographs and plain words: the rows of EfficientNet's
    ImageNet classifier, cut to 256 directions, and which of them each word covers.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.models._meta import _IMAGENET_CATEGORIES
from transformers import CLIPTextModel, CLIPTokenizer

from tools.mini import judge, tokenizer
from tools.mini.artwork import Concept, load_concepts, load_masters
from tools.mini.compose import compose, random_picture
from tools.mini.evaluate import share
from tools.mini.general import CLASSES
from tools.mini.settings import TEXT_WIDTH
from tools.mini.train_text import SEEN_AT
from tools.mini.words import STYLES, article

SHRINK = 1.0  # of the scatter towards a multiple of the identity
RIDGE = 1e-3
TEMPLATES = ("{}", "a photo of {}", "a picture of {}")
LOG_SCALE = 3.0
UNSEEN, AMONG = 400, 200


class Seen:
    """Features of single-object composites and the number of the concept that each shows."""

    def __init__(self, work: Path) -> None:
        self.concepts = [concept for concept in load_concepts(work) if not concept.held_out]
        order = {concept.code: number for number, concept in enumerate(self.concepts)}
        pictures = json.loads((work / "text-pictures.json").read_text())
        single = [i for i, picture in enumerate(pictures) if len(picture["codes"]) == 1]
        features = load_file(work / "text-features.safetensors")["features"]
        self.mean = features.mean(0)
        self.features = features[single] - self.mean  # (N, 1280)
        self.numbers = torch.tensor([order[pictures[i]["codes"][0]] for i in single])

    def means(self) -> Tensor:
        """(concepts, 1280); zero where a concept has no picture."""
        count = torch.bincount(self.numbers, minlength=len(self.concepts)).clamp(min=1)
        total = torch.zeros(len(self.concepts), judge.FEATURES)
        return total.index_add_(0, self.numbers, self.features) / count[:, None]


@torch.inference_mode()
def name_states(work: Path, concepts: list[Concept]) -> Tensor:
    """(templates, concepts, 256) states of the frozen tower at the end mark."""
    tokens = CLIPTokenizer.from_pretrained(work / "tokenizer")
    tower = CLIPTextModel.from_pretrained(work / "text_encoder", dtype=torch.float32).eval()
    rows = []
    for template in TEMPLATES:
        texts = [template.format(article(concept.names[0])) for concept in concepts]
        ids = tokens(texts, padding="max_length", max_length=tokenizer.CONTEXT).input_ids
        rows.append(torch.cat([tower(part).pooler_output for part in torch.tensor(ids).split(128)]))
    return torch.stack(rows)


def whitening(features: Tensor, means: Tensor, numbers: Tensor) -> Tensor:
    """(1280, 256): the directions in which concepts differ most for their scatter."""
    rest = features - means[numbers]
    scatter = rest.T @ rest / len(rest)
    values, vectors = torch.linalg.eigh(scatter)
    white = vectors / (values.clamp(min=0) + SHRINK * scatter.diag().mean()).sqrt()
    _, _, directions = torch.linalg.svd(means @ white, full_matrices=False)
    return white @ directions[:TEXT_WIDTH].T


def fit_projections(work: Path) -> dict[str, Tensor]:
    """As `export_clip` reads it: text (256, 256), image.weight (256, 1280), image.bias (256,)."""
    seen = Seen(work)
    means = seen.means()
    image = whitening(seen.features, means, seen.numbers)
    shown = means.norm(dim=1) > 0
    wanted = F.normalize(means[shown] @ image, dim=1).repeat(len(TEMPLATES), 1)
    states = name_states(work, seen.concepts)[:, shown].flatten(0, 1)
    inner = states.T @ states
    inner += RIDGE * inner.diag().mean() * torch.eye(TEXT_WIDTH)
    return {
        "text": torch.linalg.solve(inner, states.T @ wanted).T.contiguous(),
        "image.weight": image.T.contiguous(),
        "image.bias": -(seen.mean @ image),
        "log_scale": torch.tensor(LOG_SCALE),
    }


def score_projections(work: Path, projections: dict[str, Tensor]) -> str:
    """Top-1 among AMONG names of new single-object pictures of trained concepts."""
    concepts = [concept for concept in load_concepts(work) if not concept.held_out]
    rng, masters = random.Random(99), load_masters(work, 64)
    codes = [c.code for c in concepts if all(f"{s}/{c.code}" in masters for s in STYLES)]
    pictures = [random_picture(list(STYLES), codes, 0, rng) for _ in range(UNSEEN)]
    pixels = np.stack([compose(picture, masters, 64, rng) for picture in pictures])
    network = judge.load(work / "effnet_lite0.safetensors")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    features = judge.features(network, images, size=SEEN_AT)
    image = features @ projections["image.weight"].T + projections["image.bias"]
    text = F.normalize(name_states(work, concepts) @ projections["text"].T, dim=-1).mean(0)
    near = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T  # (N, concepts)
    order = {concept.code: number for number, concept in enumerate(concepts)}
    hits = []
    for row, picture in zip(near, pictures, strict=True):
        own = order[picture.codes[0]]
        others = rng.sample([i for i in range(len(concepts)) if i != own], AMONG - 1)
        hits.append(bool((row[others] < row[own]).all()))
    return str(share(torch.tensor(hits)))


def photo_classes(work: Path) -> dict[str, Tensor]:
    """The classifier in two thin matrices: logits = (features @ image.T) @ rows.T + bias."""
    tensors = load_file(work / "effnet_lite0.safetensors")
    rows, bias = tensors["classifier.weight"], tensors["classifier.bias"]
    rows = rows - rows.mean(0)  # a shift common to all classes changes no probability
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    image = directions[:TEXT_WIDTH]
    return {"image": image.contiguous(), "rows": (rows @ image.T).contiguous(), "bias": bias}


def words() -> dict[str, list[int]]:
    """Plain words first, then ImageNet's own names where they are not among them."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(_IMAGENET_CATEGORIES):
        found[name.lower()].append(number)
    own = {name: numbers for name, numbers in found.items() if name not in CLASSES}
    return {word: list(numbers) for word, numbers in CLASSES.items()} | own


def _halves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    projections = fit_projections(options.work)
    print("unseen pictures, name among 200:", score_projections(options.work, projections))
    save_file(_halves(projections), options.out / "projection.safetensors")
    save_file(_halves(photo_classes(options.work)), options.out / "classes.safetensors")
    lines = [f"{word}: {' '.join(map(str, numbers))}" for word, numbers in words().items()]
    (options.out / "words.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
