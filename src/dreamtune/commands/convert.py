"""dreamtune convert: an adapter or a model, as another program wants it."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console, flags
from . import _files

WORDS = "words"


def register(app: typer.Typer) -> None:
    app.command("convert")(run)


def run(
    source: Annotated[
        str, typer.Argument(help="An adapter or a model: a name, a .safetensors file or a folder.")
    ],
    out: _files.Out,
    to: Annotated[
        str,
        typer.Option(
            metavar="kohya|diffusers|peft|words",
            help="Layout of an adapter: of all user interfaces, of load_lora_weights, PEFT's, or "
            "only its words, as embeddings.",
        ),
    ] = "kohya",
    precision: _files.Precision = "keep",
    base: _files.Base = None,
    dora: Annotated[
        str,
        typer.Option(
            metavar="keep|difference",
            help="A DoRA as it is, or as whole differences, which A1111 and InvokeAI need.",
        ),
    ] = "keep",
    force: _files.Force = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Write an adapter in another layout, or a model as one file or as a diffusers folder.

    A model becomes one file when --out ends in .safetensors, else a folder.

    Exit codes: 2 it does not fit, 10 not found, 12 damaged, 13 a pickle, 14 NaN or too large for
    the precision, 15 disk full, 17 would overwrite.
    """
    from ..stages import convert, export
    from ..store import Store

    home = Store.open(store)
    _files.check("--to", to, (*_files.LAYOUTS, WORDS))
    _files.check("--precision", precision, _files.PRECISIONS)
    _files.check("--dora", dora, ("keep", "difference"))
    if model := convert.model_of(home, source):
        convert.check_out(out, force)
        if dry_run:
            console.say(f"would write {model.name} to {out}")
            return
        written = convert.write_model(model, out, precision)
        _files.wrote(written.paths, json, tensors=dict(written.counts))
        return
    found, ground = convert.adapter_of(home, source, base)
    if to == WORDS:
        found, to = found.only_words(), "kohya"
    wish = export.Wish(out, to, precision, dora == "difference", force)
    if dry_run:
        console.say(f"would write {', '.join(map(str, export.places(found, wish).values()))}")
        return
    _files.wrote(export.write(found, wish, ground), json, layout=to, base=found.base)
