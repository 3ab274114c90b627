"""dreamtune sample: pictures of a concept from prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, flags
from ..settings import Sample

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..stages.lines import Line
    from ..stages.looks import Beginning
    from ..stages.sample import Run

STREAM = "-"


def register(app: typer.Typer) -> None:
    app.command("sample", epilog=flags.MORE)(flags.command_signature(run, Sample))


def run(
    sample: Sample,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            help='Prompts with the identifier, as "[V01] dog"; - answers each line of stdin.'
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(help="Prompts, one a line, with settings: [V01] dog --steps 30; - is stdin."),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME[@WEIGHT][@step=N][ as V02]",
            help="Adapter to use; none for the plain base. [the newest that fits]",
        ),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Start from this picture.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Change --init only where this is white.")
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
    from ..stages import sample as stage
    from ..store import Store

    home, refs = Store.open(store), adapters or []
    _check_out(out, force)
    streams = prompts == [STREAM] and prompt_file is None
    lines = [] if streams else _lines(prompts or [], prompt_file, sample)
    ask = stage.Run(home, lines, refs, sample, _beginning(init, mask))
    if streams:
        _serve(ask, out, json)
        return
    if dry_run:
        console.say(f"would make {len(ask.scenes)} pictures with {ask.base.name}")
        return
    artifact = stage.run(ask)
    facts = _facts(artifact)
    picture = Path(facts["picture"])
    if out:
        from ..fsops import write_bytes

        write_bytes(out, picture.read_bytes())
    console.hint(f"look at {out or picture}")
    if json:
        console.json(facts)
    else:
        console.out(out or artifact.path)


def _serve(ask: Run, out: Path | None, json: bool) -> None:
    """Answer every line of stdin by a line, as soon as its pictures are there.

    Each is an artifact of its own, and the answer is its picture, or its grid when there are
    several. A line that cannot be made is answered by an empty line, or the error as JSON; the
    first of them decides the exit code.
    """
    import dataclasses
    import sys
    from json import dumps

    from ..errors import Usage, UserError
    from ..stages import lines, sample

    if out:
        raise Usage("--out is for one picture, and stdin may ask for many")
    session, code = sample.Session(stays=True), 0
    for text in sys.stdin:
        if not lines.is_prompt(text):
            continue
        answer, facts = "", {}
        try:
            line = lines.Line.read(text, ask.sample)
            facts = _facts(sample.run(dataclasses.replace(ask, lines=[line]), session))
            answer = facts["picture"]
        except UserError as e:
            console.error(str(e))
            code = code or e.code
            facts = {"message_type": "exit_error", "code": e.code, "message": str(e)}
        console.out(dumps(facts) if json else answer)
    if code:
        raise typer.Exit(code)


def _facts(artifact: Artifact) -> dict[str, Any]:
    """What there is to see."""
    images = [str(artifact.path / line["file"]) for line in artifact.read_json("samples.json")]
    grid = str(artifact.path / "grid.png")
    picture = images[0] if len(images) == 1 else grid
    return {
        "path": str(artifact.path),
        "images": images,
        "grid": grid,
        "picture": picture,
        "id": artifact.id,
    }


def _lines(given: list[str], file: Path | None, sample: Sample) -> list[Line]:
    """Prompts from arguments and from a file, in that order."""
    import sys

    from ..errors import NotFound, Usage
    from ..stages import lines

    if STREAM in given:
        raise Usage("- stands alone", fix="prompts beside it can go to stdin: --prompt-file -")
    found = [lines.Line(text.strip(), sample) for text in given if text.strip()]
    if file:
        try:
            text = sys.stdin.read() if str(file) == STREAM else file.read_text("utf-8-sig")
        except OSError as e:
            raise NotFound(f"cannot read {file}", why=e.strerror or "") from None
        except UnicodeDecodeError:
            raise Usage(f"{file} is not UTF-8 text") from None
        found += [lines.Line.read(x, sample) for x in text.splitlines() if lines.is_prompt(x)]
    if not found:
        raise Usage("no prompt", fix='for example: dreamtune sample "[V01] dog in the snow"')
    return found


def _beginning(init: Path | None, mask: Path | None) -> Beginning | None:
    """The pictures of --init and --mask, checked as photos are."""
    from ..errors import Usage

    if init is None:
        if mask is not None:
            raise Usage("--mask needs the picture that it is for", fix="give --init PICTURE too")
        return None
    from ..data.opened import open_picture
    from ..stages.looks import Beginning

    image = open_picture(init, "white")
    return Beginning(image, open_picture(mask, "black") if mask else None)


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
