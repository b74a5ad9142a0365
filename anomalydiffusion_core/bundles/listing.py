"""What bundles in a folder hold, read from their metadata and shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from ..identity import Identity
from ..reading import is_folder, walk_below
from ..weights import read_header, whole_number
from .bundle import MOST_VALUES, read_metadata


@dataclass(frozen=True)
class BundleSummary:
    """One file. tokens: k of each type; spatial_tokens: n, 0 without a spatial encoder; base: fingerprint or "".

    lora: what it was trained with beside it, "" for nothing or when not recorded.
    """

    path: Path
    kind: str
    tokens: dict[str, int]
    width: int
    spatial_tokens: int
    encoder: str
    route: str
    base: str
    lora: str = ""


def summarize_bundle(path: Path) -> BundleSummary:
    """The summary of one file, without reading its numbers. Raises BundleError that names the file."""
    header = read_header(path)
    metadata = read_metadata(path, header)
    encoder = metadata.get("encoder") or {}
    if not isinstance(encoder, dict):
        raise BundleError(f"file: {path.name} does not describe its spatial encoder. Use another copy.")
    known = Identity.of(metadata)
    return BundleSummary(
        path,
        metadata["kind"],
        {key: header.shapes[f"{metadata['kind']}/{key}"][0] for key in metadata["types"]},
        metadata["width"],
        whole_number(path, "tokens of the encoder", encoder.get("tokens", 0), 0, MOST_VALUES),
        str(encoder.get("variant", "")),
        str(metadata.get("token_route", "context")),
        str(metadata.get("base_fingerprint", "")),
        known.lora if known.adaptation else "",
    )


def list_bundles(folder: Path) -> tuple[list[BundleSummary], list[str]]:
    """Summaries of all bundles below a folder, in the order of their names, and why other files were left out.

    Raises BundleError for something that is no folder.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise BundleError(f"folder: {folder} is not a folder. Give the one that holds bundles.")
    found: list[BundleSummary] = []
    left_out: list[str] = []
    for path in sorted(path for path in walk_below(folder, "folder") if path.name.endswith(".safetensors")):
        try:
            found.append(summarize_bundle(path))
        except BundleError as error:
            left_out.append(str(error))
    return found, left_out


def bundle_table(bundles: Sequence[BundleSummary], folder: Path) -> str:
    """A Markdown table with a row for each bundle. k is a range where the types of a bundle differ."""
    rows = [["file", "kind", "types", "base", "width", "k", "n", "route", "encoder", "LoRA"]]
    for bundle in bundles:
        counts = sorted(set(bundle.tokens.values()))
        rows.append(
            [
                bundle.path.relative_to(folder).as_posix(),
                bundle.kind,
                ", ".join(bundle.tokens),
                bundle.base or "-",
                str(bundle.width),
                str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
                str(bundle.spatial_tokens or "-"),
                bundle.route,
                bundle.encoder or "-",
                bundle.lora.removeprefix("the LoRA ") or "-",
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
