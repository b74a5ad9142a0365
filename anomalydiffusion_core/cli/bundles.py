"""The list of bundles, bundles of the authors' files, and what can be made of finished bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import plain_errors


def bundles(
    folder: Annotated[Path, typer.Argument(help="Folder of bundles, for example ComfyUI's models/anomalydiffusion.")],
) -> None:
    """List the bundles below a folder: kind, types, base model, tokens of a type (k) and of a mask (n), route."""
    with plain_errors():
        from ..bundles.listing import bundle_table, list_bundles

        found, left_out = list_bundles(folder)
        for problem in left_out:
            typer.echo(problem, err=True)
        typer.echo(bundle_table(found, folder) if found else f"no bundle in {folder}")


def import_authors(
    out: Annotated[Path, typer.Option(help="New bundle, a .safetensors file.")],
    encoder: Annotated[Path | None, typer.Option(help="Their spatial_encoder.pt, with --embeddings.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="Their embeddings.pt of the anomaly checkpoints.")] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Instead of both: their folder mask-checkpoints, for a bundle of masks.")
    ] = None,
    objects: Annotated[
        str, typer.Option(help="With --masks: names of objects that hold a hyphen, separated by commas.")
    ] = "",
    normalisation: Annotated[
        str, typer.Option(help="Of the encoder: running statistics, or batch statistics as in their generation.")
    ] = "running statistics",
) -> None:
    """Convert the files of the authors' code to a bundle, without running anything in them.

    Its tokens belong into a prompt of text2img-large. `generate --bundle` and `--mask-bundle` and the node Load
    Spatial Encoder take it.
    """
    with plain_errors():
        from ..bundles.authors_encoder import NORMALISATIONS
        from ..bundles.authors_files import import_authors_files, import_authors_masks
        from ..data.splits import listed_names
        from ..errors import InputError
        from ..files import check_new

        check_new(out)
        if (masks is None) == (encoder is None or embeddings is None):
            raise InputError("masks: give --encoder with --embeddings, or --masks alone.")
        if normalisation not in NORMALISATIONS:
            listed = ", ".join(NORMALISATIONS)
            raise InputError(f"normalisation: unknown value '{normalisation}'. Choose one of: {listed}.")
        if masks is not None:
            bundle = import_authors_masks(masks, listed_names(objects))
        elif encoder is not None and embeddings is not None:
            bundle = import_authors_files(encoder, embeddings, normalisation)
        out.parent.mkdir(parents=True, exist_ok=True)
        bundle.save(out)
        typer.echo(f"{out}: {bundle.kind} bundle of width {bundle.width}, {len(bundle.types)} types")


def merge_bundles(
    first: Annotated[Path, typer.Argument(help="A bundle.")],
    second: Annotated[Path, typer.Argument(help="A bundle of other types, of the same base model.")],
    out: Annotated[Path, typer.Option(help="Folder of the merged bundle.")],
    name: Annotated[str, typer.Option(help="Saved as <name>_00001.safetensors; the number increases.")] = "merged",
    spatial_encoder: Annotated[
        str, typer.Option(help="Whose spatial encoder is kept: first or second. Empty demands that both are the same.")
    ] = "",
) -> None:
    """Put the types of two bundles into one.

    The same as the node Merge Bundles. The same merge is saved once.
    """
    with plain_errors():
        from ..bundles.bundle import load_bundle
        from ..bundles.saving import merge
        from ..store import FolderStore

        bundles = {"first": load_bundle(first), "second": load_bundle(second)}
        _, report = merge(bundles, spatial_encoder.strip(), name.strip(), FolderStore(out))
        typer.echo(report)


def save_textual_inversion(
    bundle: Annotated[Path, typer.Argument(help="A bundle that was trained in a prompt (train --clip).")],
    out: Annotated[Path, typer.Option(help="Folder of the files, for example ComfyUI's models/embeddings.")],
    name: Annotated[str, typer.Option(help="Files are <name>_<object>_<defect>_00001.safetensors.")] = "anomaly",
    defect_type: Annotated[str, typer.Option("--type", help="One type as object/defect. Empty saves all.")] = "",
) -> None:
    """Save the learned tokens of defect types as ordinary textual-inversion files, for embedding:name in prompts.

    The same as the node Save Textual Inversion. The spatial encoder is not part of them.
    """
    with plain_errors():
        from ..bundles.bundle import load_bundle
        from ..bundles.saving import save_textual_inversions
        from ..store import FolderStore

        files, prompts = save_textual_inversions(load_bundle(bundle), name, defect_type, FolderStore(out))
        for key, path in files.items():
            typer.echo(f"{key}: {path.name}, in a prompt {prompts[key]}")
