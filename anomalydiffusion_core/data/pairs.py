"""Folders of generated pairs: those of Export Pairs, and those that other methods leave.

``<folder>/<object>/{test/<defect>/000.png, ground_truth/<defect>/000_mask.png, normal/<defect>/000.png}`` and
``<folder>/manifest.jsonl``, one line of provenance for each pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DatasetError, InputError
from ..files import file_digest, replacing
from ..plain_json import plain_json, read_text
from ..reading import is_file
from .formats.described import GOOD
from .images import read_image, resize_image
from .manifest_checks import check_lines
from .mask_files import read_mask
from .mask_resizing import resize_mask
from .pairing import list_folders, list_images, match_files

MANIFEST = "manifest.jsonl"
MANIFEST_VERSION = 2
"""Since 2 lines hold hashes of their files; earlier ones have no version."""
HASHES = "sha256"
HASHED = ("image", "mask", "normal", "drawn_mask")
"""Entries of a line that name files."""
REVIEW, ACCEPTED, REJECTED = "review", "accepted", "rejected"
"""Entry of a line that a person's decision is written to, and its values."""
LEFT_OUT = "left_out"
"""Entry of a line that says why a pair is not used, unless a person accepts it."""
OURS = "Ours"
"""The method of pairs that Blended AAR KSampler or the command generate made."""


@dataclass(frozen=True)
class ExportedPair:
    """One generated pair found on disk. `record` is its line of the manifest, empty where there is no manifest."""

    object: str
    defect: str
    image: Path
    mask: Path
    normal: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`object/defect`."""
        return f"{self.object}/{self.defect}"

    @property
    def bits(self) -> int | None:
        """Depth of the samples of its images, see `read_image`; None for 8 bits and where it is not known."""
        return int(self.record["bits"]) if self.record.get("bits") else None

    @property
    def used(self) -> bool:
        """Whether the pair counts: what a person decided in a review, else whether nothing left it out."""
        decision = self.record.get(REVIEW)
        return decision == ACCEPTED if decision else not self.record.get(LEFT_OUT)


def load_exported(folder: Path, every: bool = False) -> list[ExportedPair]:
    """Find the pairs of an export folder, but for those that were rejected or left out, unless ``every`` is wanted.

    With a manifest its lines are taken, in their order. Without one (other methods) the folder is searched for
    `[<object>/]{test/<defect>, ground_truth/<defect>}` and for `[<object>/]<defect>/{image, mask}`, the layout in
    which the AnomalyDiffusion authors publish their pairs.

    Raises:
        DatasetError: no folder, no pairs, a damaged line, a file that is missing or lies outside of the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"pairs folder: {folder} does not exist. Give the folder that Export Pairs wrote.")
    pairs = _from_manifest(folder) if (folder / MANIFEST).is_file() else _from_layout(folder)
    if not pairs:
        raise DatasetError(f"pairs folder: {folder} holds no pairs. Give a folder with test/ and ground_truth/.")
    used = pairs if every else [pair for pair in pairs if pair.used]
    if not used:
        raise DatasetError(f"pairs folder: all {len(pairs)} pairs of {folder} were rejected or left out. Accept some.")
    return used


def update_manifest(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Change lines of a manifest in one step: the name of a pair's image -> what its line then says.

    A value of None takes an entry out; other lines and entries stay as they are. Raises InputError for a folder
    without manifest.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise InputError(f"pairs: {folder} has no {MANIFEST} to write to. Give a folder that Export Pairs wrote.")
    before = manifest.read_text(encoding="utf-8-sig")
    lines = []
    for text in before.split("\n"):
        if text.strip():
            record = json.loads(text)
            if changed := changes.get(record["image"]):
                gone = {key for key, value in changed.items() if value is None}
                record = {key: value for key, value in {**record, **changed}.items() if key not in gone}
                if HASHES in record and any(
                    key in changed for key in HASHED
                ):  # those of other files stay as they were
                    known = {key: folder / record[key] for key in HASHED if key in changed and record.get(key)}
                    record[HASHES] = {**record[HASHES], **file_hashes(known)}
                text = json.dumps(record, ensure_ascii=False, allow_nan=False)
            lines.append(text + "\n")
    if "".join(lines) != before:  # else its time would change, and whatever depends on it be made again
        with replacing(manifest) as partial:
            partial.write_text("".join(lines), encoding="utf-8", newline="\n")


def file_hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of files, by what they are."""
    return {key: file_digest(path) for key, path in files.items()}


def recorded_method(records: Sequence[Mapping[str, Any]]) -> str:
    """What made pairs: the method that all lines of a manifest name, empty where they name none or several.

    "Ours" stands for Blended AAR KSampler, which leaves its kind of re-weighting there.
    """
    settings = [dict(record.get("settings") or {}) for record in records]
    named = {str(entry.get("method") or (OURS if "reweighting" in entry else "")) for entry in settings}
    return named.pop() if len(named) == 1 else ""


def load_exported_tensors(pairs: Sequence[ExportedPair], size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Read pairs as `object/defect` -> (images [N,3,size,size] in [0,1], masks [N,1,size,size] in {0,1}).

    Raises:
        DatasetError: a file cannot be read, a mask is empty, or image and mask differ in size.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for pair in pairs:
        image, mask = read_image(pair.image, pair.bits)[None], read_mask(pair.mask)[None]
        if image.shape[2:] != mask.shape[2:]:
            raise DatasetError(
                f"{pair.mask}: the mask is {mask.shape[3]}x{mask.shape[2]} px, its image {image.shape[3]}x"
                f"{image.shape[2]} px. Export them at one size."
            )
        if not bool(mask.any()):
            raise DatasetError(f"{pair.mask}: the mask is empty. Remove the pair.")
        found.setdefault(pair.key, []).append((resize_image(image, size), resize_mask(mask, size)))
    return {
        key: (torch.cat([image for image, _ in parts]), torch.cat([mask for _, mask in parts]))
        for key, parts in found.items()
    }


def manifest_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a manifest, checked, with its place for messages.

    Raises DatasetError that names the line for what is no record of a pair.
    """
    try:
        lines = read_text(path, "pairs folder").split("\n")
    except InputError as error:
        raise DatasetError(str(error)) from error
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        where = f"{path} line {number}"
        try:
            record = plain_json(text)
            names = [record["image"], record["mask"], record["object"], record["defect"], record.get("normal") or ""]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{where}: not a record of a pair ({error!r}). Remove or repair the line.") from error
        if not all(isinstance(name, str) for name in names):
            raise DatasetError(f"{where}: image, mask, object and defect must be text. Remove or repair the line.")
        for key in ("effect_score", "fill_share", "outside_max_abs_diff"):
            value = record.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise DatasetError(f"{where}: {key} must be a number or null. Remove or repair the line.")
        if not isinstance(record.get("learned_from") or "", str) or type(record.get("bits") or 0) is not int:
            raise DatasetError(f"{where}: learned_from must be text and bits a number. Remove or repair the line.")
        if not isinstance(record.get("settings") or {}, dict):
            raise DatasetError(f"{where}: settings must be a mapping. Remove or repair the line.")
        yield where, record


def _from_manifest(folder: Path) -> list[ExportedPair]:
    pairs = []
    for where, record in manifest_records(folder / MANIFEST):
        names = [record["image"], record["mask"], record["object"], record["defect"]]
        image, mask = (file_inside(folder, name, where) for name in names[:2])
        normal = file_inside(folder, record["normal"], where) if record.get("normal") else None
        pairs.append(ExportedPair(names[2], names[3], image, mask, normal, record))
    check_lines(folder, pairs)
    return pairs


def file_inside(folder: Path, name: str, where: str) -> Path:
    """A file that a line of a manifest names. Raises DatasetError, which begins with ``where``, when it is missing."""
    path = folder / name.replace("\\", "/")
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        inside = True  # a name that no file has, which is said below
    if not inside:
        raise DatasetError(f"{where}: {name} lies outside of the folder. Use names relative to it.")
    if not is_file(path):
        raise DatasetError(f"{where}: {name} is missing. Restore the file or remove the line.")
    return path


def _from_layout(folder: Path) -> list[ExportedPair]:
    pairs: list[ExportedPair] = []
    problems: list[str] = []
    for base in (folder, *list_folders(folder)):
        kinds = [(kind.name, kind, base / "ground_truth" / kind.name) for kind in list_folders(base / "test")]
        if not kinds:
            kinds = [(kind.name, kind / "image", kind / "mask") for kind in list_folders(base)]
        for defect, images, masks in kinds:
            if defect == GOOD or not images.is_dir() or not masks.is_dir():
                continue
            matched = match_files(list_images(images), list_images(masks))
            problems += matched.problems
            pairs += [ExportedPair(base.name, defect, image, mask) for _, image, mask in matched.pairs]
    if problems:
        raise DatasetError(
            f"{folder}: files without partner. Complete or remove them.\n" + "\n".join(problems), problems
        )
    return pairs
