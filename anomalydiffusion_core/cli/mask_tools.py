"""Commands about masks that exist: their diversity, and the foreground of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.splits import SplitSettings
from ..masks.diversity import COPY_IOU
from ..masks.foreground import ForegroundSettings
from .errors import plain_errors
from .options import with_settings


@with_settings(splitting=SplitSettings, panels={"splitting": "Data"})
def mask_report(
    masks: Annotated[Path, typer.Argument(help="Folder of mask images of one size, or what `masks` wrote.")],
    splitting: SplitSettings,
    out: Annotated[Path | None, typer.Option(help="New PNG file for the plot.")] = None,
    copy_iou: Annotated[
        float, typer.Option(min=0, max=1, help="A mask whose IoU with another is above this counts as a copy.")
    ] = COPY_IOU,
    defect_type: Annotated[
        str, typer.Option("--type", help="The type as object/defect that the data set's masks are taken of.")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that holds the category; compares with its training masks.", rich_help_panel="Data"),
    ] = None,
    category: Annotated[str, typer.Option(help="Name of the category's folder.", rich_help_panel="Data")] = "",
) -> None:
    """Measure masks: area, thickness, elongation, places, copies, and how far they are from the training masks.

    The same as the node Mask Diversity Report.
    """
    with plain_errors():
        from ..data.images import write_image
        from ..data.selection import masks_in
        from ..errors import InputError
        from ..masks.diversity import measure_diversity, plot_diversity
        from ..masks.sources import training_masks
        from .loading import load_and_show

        if out is not None and (out.exists() or out.suffix.lower() != ".png"):
            raise InputError(f"out: {out} exists or is no .png file. Give a new PNG file.")
        found, title, training = masks_in(masks, defect_type, None), "", None
        if data is not None:
            kind = load_and_show(data, category, splitting).defect_type(defect_type)
            title, training = kind.key, training_masks([kind], (found.shape[-2], found.shape[-1]))
        measured = measure_diversity(found, training)
        typer.echo("\n".join(filter(None, [title, measured.describe(copy_iou)])))
        if out is not None:
            write_image(out, plot_diversity(measured, title))


@with_settings(settings=ForegroundSettings)
def foreground(
    images: Annotated[Path, typer.Argument(help="An image, or a folder of images of objects on a plain background.")],
    out: Annotated[Path, typer.Option(help="New folder for a mask of each image, <name>_mask.png.")],
    settings: ForegroundSettings,
) -> None:
    """Find the object on images with a plain background, from the colour of the image border.

    The same as the node Estimate Foreground. `masks --foreground` and `--allowed` take the masks.
    """
    with plain_errors():
        from ..data.images import read_image, write_mask
        from ..data.pairing import list_images
        from ..files import new_folder
        from ..masks.foreground import describe_foreground, estimate_foreground
        from .bars import TaskBars

        paths = [images] if images.is_file() else list_images(images)
        with new_folder(out) as draft, TaskBars() as bars:
            bar = bars.of("foreground")(len(paths))
            for path in paths:
                image = read_image(path)[None]
                found = estimate_foreground(image, settings)
                write_mask(draft / f"{path.stem}_mask.png", found[0])
                bar.step()
                typer.echo(f"{path.name}: {describe_foreground(image, found)}", err=True)
        typer.echo(f"{len(paths)} masks are in {out}")
