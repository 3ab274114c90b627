"""dreamtune sample: pictures of a concept from prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console, flags
from ..settings import Sample


def register(app: typer.Typer) -> None:
    app.command("sample", epilog=flags.MORE)(flags.command_signature(run, Sample))


def run(
    sample: Sample,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help='Prompts with the identifier, as "[V01] dog"; - reads stdin.'),
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Prompts, one a line.")] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME[@WEIGHT][@step=N][ as V02]",
            help="Adapter to use; none for the plain base. [the newest that fits]",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also copy the picture, or the grid, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite --out.")] = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Make pictures, and print the folder that holds them."""
    from ..artifacts import Store
    from ..stages import sample as stage
    from ..stages.adapters import choose

    texts = _prompts(prompts or [], prompt_file)
    home = Store.open(store)
    _check_out(out, force)
    ask = stage.Run(home, texts, choose(home, texts, adapters or []), sample)
    if dry_run:
        console.say(f"would make {len(texts) * sample.count} pictures with {ask.base.name}")
        return
    artifact = stage.run(ask)
    images = [artifact.path / line["file"] for line in artifact.read_json("samples.json")]
    picture = images[0] if len(images) == 1 else artifact.path / "grid.png"
    if out:
        from ..fsops import write_bytes

        write_bytes(out, picture.read_bytes())
    console.hint(f"look at {out or picture}")
    if json:
        facts = {"path": artifact.path, "images": images, "grid": artifact.path / "grid.png"}
        shown = {k: [*map(str, v)] if isinstance(v, list) else str(v) for k, v in facts.items()}
        console.json({**shown, "id": artifact.id})
    else:
        console.out(out or artifact.path)


def _prompts(given: list[str], file: Path | None) -> list[str]:
    """Prompts from arguments, a file and stdin, in that order; empty lines are passed over."""
    import sys

    from ..errors import NotFound, Usage

    texts: list[str] = []
    for text in given:
        texts += sys.stdin.read().splitlines() if text == "-" else [text]
    if file:
        try:
            texts += file.read_text(encoding="utf-8-sig").splitlines()
        except OSError as e:
            raise NotFound(f"cannot read {file}", why=e.strerror or "") from None
        except UnicodeDecodeError:
            raise Usage(f"{file} is not UTF-8 text") from None
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise Usage("no prompt", fix='for example: dreamtune sample "[V01] dog in the snow"')
    return texts


def _check_out(out: Path | None, force: bool) -> None:
    from ..errors import NotFound, Usage, WouldOverwrite

    if out is None:
        return
    if out.suffix.lower() != ".png":
        raise Usage(f"--out {out} must end in .png")
    if not out.parent.is_dir():
        raise NotFound(f"there is no folder {out.parent} for --out")
    if out.exists() and not force:
        raise WouldOverwrite(f"{out} exists", fix="give another name, or --force")
