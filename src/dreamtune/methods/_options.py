"""Settings that several methods have, each written once. A dataclass field cannot be shared."""

from __future__ import annotations

from typing import Any

from dreamtune.settings import option


def train_text() -> Any:
    return option(False, alias=("--train-text-encoder",), help="Train CLIP's text encoders too.")


def text_learning_rate() -> Any:
    return option(
        None,
        above=0,
        high=10,
        alias=("--text-encoder-lr",),
        rare=True,
        help="Peak rate of the text encoders. [--learning-rate]",
    )


def unfreeze() -> Any:
    return option(
        None,
        rare=True,
        help="Text layers from the last one on: 3:all@0.5 is three, and all from half of the run.",
    )


def unfreeze_denoiser() -> Any:
    return option(None, rare=True, help="The same for the denoiser's blocks.")


def init_word() -> Any:
    return option(
        None,
        alias=("--initializer-token",),
        help="Word whose embedding the new token starts from. [the class word]",
    )


def vectors() -> Any:
    return option(
        1, low=1, high=32, alias=("--num-vectors",), help="Tokens that the new word is made of."
    )


def keep_norm() -> Any:
    return option(True, rare=True, help="The new tokens stay as long as the word they start from.")
