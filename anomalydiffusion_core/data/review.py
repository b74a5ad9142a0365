"""A review of pairs: one HTML file made from an export, and the decisions that a person made in it.

The file holds everything it shows and needs no server. A page cannot write files, so it saves its decisions as a
download, which `merge_decisions` brings to the manifest; what was rejected is not used from then on.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..figures import detail, to_bytes
from ..files import content_key, replacing
from ..progress import Progress, Quiet
from .images import read_image
from .mask_files import read_mask
from .pairs import ACCEPTED, LEFT_OUT, REJECTED, REVIEW, ExportedPair, load_exported, update_manifest
from .sheets import outlined

PAGE = "review.html"
DECISIONS = "review_decisions.json"
"""Name of the download, without what a browser adds to it."""
KIND = "anomalydiffusion review"
TEMPLATE = Path(__file__).with_name("review_page.html")
SIDE = 320
"""Longest side in pixels of an image on the page."""
SHOWN = ("effect_score", "fill_share", "share_kept", "seed")
"""Entries of a line that the page shows."""


@dataclass(frozen=True)
class Merged:
    """How many pairs were accepted and rejected in a file of decisions, and how many have none."""

    accepted: int
    rejected: int
    undecided: int

    def report(self) -> str:
        """In one line."""
        return f"{self.accepted} pairs accepted, {self.rejected} rejected, {self.undecided} without a decision"


def write_review(folder: Path, progress: Progress | None = None) -> Path:
    """Write the page of a folder of pairs into it and return its path; an older page is replaced.

    ``progress`` advances once for each pair. Raises InputError for pairs without a manifest.
    """
    pairs = _listed(folder)
    cards = []
    for pair in pairs:
        cards.append(_card(pair))
        (progress or Quiet()).step()
    content = {"kind": KIND, "folder": folder.name, "pairs": _identity(pairs), "file": DECISIONS, "cards": cards}
    # No text of a manifest can end the script element that it stands in.
    text = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("/*CONTENT*/", text)
    target = folder / PAGE
    if not target.is_file() or target.read_text(encoding="utf-8") != page:
        with replacing(target) as partial:
            partial.write_text(page, encoding="utf-8", newline="\n")
    return target


def merge_decisions(folder: Path, file: Path) -> Merged:
    """Bring the decisions of a file that the page saved to the manifest of the folder. Merging again changes nothing.

    Raises InputError for a file of another kind, of other pairs, and with unknown decisions.
    """
    pairs = _listed(folder)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"decisions: {file} cannot be read ({error}). Give the file that the page saved.") from error
    if not isinstance(content, dict) or content.get("kind") != KIND or not isinstance(content.get("decisions"), dict):
        raise InputError(f"decisions: {file} does not come from a review. Give the file that the page saved.")
    decisions: dict[str, Any] = content["decisions"]
    known = {pair.record["image"] for pair in pairs}
    strange = sorted(set(decisions) - known)
    if content.get("pairs") != _identity(pairs) or strange:
        raise InputError(
            f"decisions: {file} belongs to other pairs than those of {folder}. Make the page anew and review it."
        )
    wrong = [value for value in decisions.values() if value not in (ACCEPTED, REJECTED, None)]
    if wrong:
        raise InputError(f"decisions: unknown decision '{wrong[0]}'. Use {ACCEPTED} or {REJECTED}.")
    update_manifest(folder, {name: {REVIEW: value} for name, value in decisions.items()})
    return reviewed(folder)


def reviewed(folder: Path) -> Merged:
    """What the manifest of a folder says by now."""
    found = [pair.record.get(REVIEW) for pair in _listed(folder)]
    return Merged(*(found.count(value) for value in (ACCEPTED, REJECTED, None)))


def _listed(folder: Path) -> list[ExportedPair]:
    pairs = load_exported(folder, every=True)
    if any(not pair.record for pair in pairs):
        raise InputError(f"pairs: {folder} has no manifest to write decisions to. Give a folder of Export Pairs.")
    return pairs


def _identity(pairs: Sequence[ExportedPair]) -> str:
    """Changes with the names and sizes of the images, not with what is decided about them."""
    return content_key([[pair.record["image"], pair.image.stat().st_size] for pair in pairs])


def _card(pair: ExportedPair) -> dict[str, Any]:
    image, mask = read_image(pair.image), read_mask(pair.mask)
    views = [("image", outlined(image, mask)), ("enlarged", detail(image, mask))]
    if pair.normal is not None:
        views.append(("normal", detail(read_image(pair.normal), mask)))
    known = {name: pair.record[name] for name in SHOWN if pair.record.get(name) is not None}
    return {
        "image": pair.record["image"],
        "type": pair.key,
        "known": known,
        "leftOut": pair.record.get(LEFT_OUT),
        "decision": pair.record.get(REVIEW),
        "views": [{"name": name, "source": _embedded(view)} for name, view in views],
    }


def _embedded(image: Tensor) -> str:
    shown = Image.fromarray(to_bytes(image).transpose(1, 2, 0))
    scale = SIDE / max(shown.size)
    if scale < 1 or scale >= 2:
        size = (max(round(shown.width * scale), 1), max(round(shown.height * scale), 1))
        shown = shown.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    shown.save(stream, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
