"""`reformer complete-image`: keeps the upper rows of a picture, and has the model draw the rest."""

from pathlib import Path
from typing import Any, cast

import click

from reformer_client.cli.drawing import drawing_options
from reformer_client.cli.output import ProgressBar, print_notes
from reformer_client.cli.settings import Settings, pass_settings
from reformer_client.messages import Drawing


@click.command("complete-image")
@click.argument("picture", metavar="IN", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(dir_okay=False, writable=True, path_type=Path))
@click.option("--keep-rows", type=int, help="Rows of pixels that stay, from the top. [default: half of them]")
@click.option("--samples", type=int, default=1, show_default=True, help="Completions, side by side in OUT.")
@click.option("--resize", is_flag=True, help="Bring a picture of another size to the model's.")
@drawing_options
@pass_settings
def complete_image(
    settings: Settings, /, picture: Path, out: Path, keep_rows: int | None, samples: int, resize: bool, **options: Any
) -> None:
    """Complete a picture: keep its upper rows, draw the rest.

    IN is a PNG or JPEG file of the size that the served model reads; OUT becomes a PNG file. `reformer serve --model
    embedded:image` serves such a model, of 32 × 32 pixels.
    """
    if not out.absolute().parent.is_dir():  # better said before the work than after it
        raise click.UsageError(f"{out} can't be written: there is no folder {out.parent}")
    drawing = cast(Drawing, {name: value for name, value in options.items() if value is not None})
    with settings.client() as client, ProgressBar("drawing") as bar:
        completions = client.complete_image(
            picture, keep_rows=keep_rows, samples=samples, resize=resize, on_progress=bar, **drawing
        )
        completions.save(out)
    print_notes(picture, completions.notes)
    size = f"{completions.width} × {completions.height} pixels"
    which = f"{samples} completions side by side, {size} each" if samples > 1 else f"a completion, {size}"
    seed = completions[0].seed
    click.echo(f"{out}: {which}, the upper {completions.keep_rows} rows kept; --seed {seed} draws the same again")
