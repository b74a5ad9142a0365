"""Image-mask pairs written as a data set in the MVTec AD layout with one line of provenance for each pair.

``<folder>/<object>/{test/<defect>/000.png, ground_truth/<defect>/000_mask.png, normal/<defect>/000.png}`` and
``<folder>/manifest.jsonl``. An image only exists together with its mask, its normal image and its line.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import check_name, content_key, highest_number, replacing, tensor_digest
from ..lines import read_lines
from ..options import Settings, option
from .camera import match_camera, measure
from .decoding import decode
from .formats.beside import PairFiles, check_kinds, write_beside
from .formats.described import GOOD
from .image_form import ImageForm
from .image_writing import JPEG_HELP, write_samples
from .images import write_mask
from .manifest_checks import PARTS
from .pairing import IMAGE_SUFFIXES, MASK_ENDING, list_folders
from .pairs import MANIFEST, MANIFEST_VERSION, file_hashes, load_exported, manifest_records
from .provenance import SOURCES, read_marks, write_sources

ENDINGS = ("", MASK_ENDING, "")
"""Endings of the names of image, mask and normal image, in the folders PARTS."""
_RECORD_KEYS = ("seed", "effect_score", "fill_share", "settings", SOURCES)
RECIPE_FILE = "recipe.json"
ROWS = 512
"""Rows of an image that are compared at once."""
RECIPE = 1
"""Part of every content key: raise it when the same pairs are written in another way."""


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Which pairs are written."""

    min_effect: float = option(
        0.0, "Leave out pairs whose effect score is lower than this. Needs effects.", min=0, max=255, step=0.5
    )
    jpeg_quality: int = option(0, JPEG_HELP, min=0, max=100, rare=True)
    match_camera: bool = option(
        False,
        "Give the defect the noise and the sharpness of the normal images, measured on them, so that it does not "
        "stand out as smoother than its surroundings. Nothing changes outside the mask.",
        rare=True,
    )
    also: str = option(
        "",
        "Other labels to write beside the MVTec layout, separated by commas: coco, yolo, anomalib, classes (a map of "
        "class ids for each image).",
        rare=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kinds(self.also)


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one type, ``object/defect``, of one size. One mask or one normal image serves all.

    images, normals: [N, 3, H, W] in [0, 1]. masks: [N, 1, H, W] of {0, 1}. records: for each pair any of seed,
    effect_score, fill_share and settings; other keys go into settings. form: bits and channels to store.
    """

    key: str
    images: Tensor
    masks: Tensor
    normals: Tensor
    records: Sequence[Mapping[str, Any]] | None = None
    form: ImageForm = ImageForm()

    def kept(self, settings: ExportSettings) -> list[int]:
        """The places of the pairs that are written. Raises InputError for a smallest effect without records."""
        least = settings.min_effect
        if least > 0 and self.records is None:
            raise InputError(f"min_effect: is {least:g}, but effects is not connected. Connect it or set 0.")
        records = self.records or [{}] * len(self.images)
        return [i for i, record in enumerate(records) if not least or record.get("effect_score", 0.0) >= least]


def pair_batches(
    types: Sequence[str],
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    normals: Sequence[Tensor],
    records: Sequence[Sequence[Mapping[str, Any]]] | None,
    form: ImageForm = ImageForm(),  # noqa: B008 (frozen)
) -> list[PairBatch]:
    """What belongs together in lists; a list of one entry serves all types. Raises InputError for other lengths."""
    lists: dict[str, Sequence[Any]] = {"images": images, "masks": masks, "normals": normals, "defect_type": types}
    lists["effects"] = records or (None,)
    count = len(images)
    for name, values in lists.items():
        if len(values) not in (1, count):
            raise InputError(
                f"{name}: {len(values)} entries for {count} batches of images. Connect one for each batch."
            )
    if len(types) < count:
        raise InputError(f"defect_type: 1 entry for {count} batches of images. Connect the list types.")
    rows = [[values[i % len(values)] for values in lists.values()] for i in range(count)]
    return [PairBatch(key, one, mask, normal, own, form) for one, mask, normal, key, own in rows]


@dataclass(frozen=True)
class Exported:
    """What an export wrote: its lines of the manifest, of these types."""

    lines: Sequence[Mapping[str, Any]]
    types: Sequence[str]

    @property
    def counts(self) -> dict[str, int]:
        """Pairs of each type."""
        return {
            key: sum(f"{line['object']}/{line['defect']}" == key for line in self.lines)
            for key in dict.fromkeys(self.types)
        }

    @property
    def outside(self) -> int:
        """The largest difference outside the masks, 0 to 255."""
        return max((int(line["outside_max_abs_diff"]) for line in self.lines), default=0)

    def summary(self) -> str:
        """The figures as JSON."""
        return json.dumps({"pairs": len(self.lines), "types": self.counts, "outside_max_abs_diff": self.outside})

    def report(self, where: str) -> str:
        """In one line."""
        listed = ", ".join(f"{count} {key}" for key, count in self.counts.items())
        return (
            f"{len(self.lines)} pairs in {where} ({listed}); largest difference outside the masks "
            f"{self.outside} of 255"
        )


def export_key(batches: Sequence[PairBatch], settings: ExportSettings) -> str:
    """The same for the same pairs: an export that is found by it need not be written again."""
    parts = [
        [
            batch.key,
            tensor_digest(batch.images, batch.masks, batch.normals),
            _plain(batch.records),
            asdict(batch.form),
        ]
        for batch in batches
    ]
    return content_key(RECIPE, parts, asdict(settings))


def exported_before(folder: Path) -> Exported:
    """What an earlier export wrote to a folder."""
    lines = read_lines(folder / MANIFEST)
    return Exported(lines, [f"{line['object']}/{line['defect']}" for line in lines])


def export_batches(
    folder: Path, batches: Sequence[PairBatch], settings: ExportSettings, between: Callable[[], None] = lambda: None
) -> Exported:
    """Write all pairs that reach the effect. Raises InputError when none does, and as `export_pairs`.

    between: called before each pair; may raise to interrupt.
    """
    lines = [line for batch in batches for line in export_batch(folder, batch, settings, between)]
    if not lines:
        raise InputError(f"min_effect: no pair reaches {settings.min_effect:g}. Lower it, nothing was written.")
    return Exported(lines, [batch.key for batch in batches])


def write_also(folder: Path, settings: ExportSettings) -> str:
    """Write the other label files that are wanted, of all pairs of the folder that are used; what was written."""
    if not check_kinds(settings.also):
        return ""
    pairs = [PairFiles(p.object, p.defect, p.image, p.mask, p.normal) for p in load_exported(folder)]
    return "also: " + ", ".join(write_beside(folder, pairs, check_kinds(settings.also)))


def write_recipe(folder: Path, **content: Any) -> None:
    """Keep what the pairs were made with, to make them again: the graph of ComfyUI, or the plan of a command."""
    with replacing(folder / RECIPE_FILE) as partial:
        partial.write_text(json.dumps({"version": 1, **content}, indent=1, default=str) + "\n", encoding="utf-8")


def files_beside(folder: Path) -> list[str]:
    """What else lies in a folder of pairs, relative to it: recipe, sources, drawn masks, other label files."""
    named = {MANIFEST}
    for _, record in manifest_records(folder / MANIFEST):
        named |= {str(record[key]) for key in ("image", "mask", "normal") if record.get(key)}
    found = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in found if name not in named and not name.startswith(".")]


def export_batch(
    folder: Path, batch: PairBatch, settings: ExportSettings, between: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Write the pairs of one type that reach the effect, maybe none, and return their lines of the manifest."""
    parts = batch.key.strip().split("/")
    if len(parts) != 2 or not all(parts):
        raise InputError(
            f"defect_type: {batch.key[:80]!r} is not of the form object/defect. Connect types of the data set."
        )
    count = len(batch.images)
    masks, normals = (
        part.expand(count, -1, -1, -1) if len(part) == 1 else part for part in (batch.masks, batch.normals)
    )
    records = [{}] * count if batch.records is None else batch.records
    if {len(records), len(masks), len(normals)} != {count}:
        raise InputError(
            f"{batch.key}: {count} images, {len(masks)} masks, {len(normals)} normals and {len(records)} effects. "
            "Connect what belongs to the same samples."
        )
    chosen = batch.kept(settings)
    if not chosen:
        return []
    if settings.jpeg_quality and batch.form.bits > 8:
        raise InputError(f"jpeg_quality: the images have {batch.form.bits} bits, which JPEG cannot hold. Set 0.")
    images, picked = batch.images, [records[i] for i in chosen]
    if len(chosen) < count:  # copies, which whole batches of large images can do without
        images, masks, normals = images[chosen], masks[chosen], normals[chosen]
    if settings.match_camera:
        images, picked = _matched(images, masks, normals, picked)
    form = replace(batch.form, quality=settings.jpeg_quality)
    return export_pairs(folder, parts[0], parts[1], images, masks, normals, picked, between, form)


def _matched(
    images: Tensor, masks: Tensor, normals: Tensor, records: Sequence[Mapping[str, Any]]
) -> tuple[Tensor, list[Mapping[str, Any]]]:
    """Images with the noise and sharpness of all normal images of the batch, and their records with what was done."""
    target = measure(normals)
    done, noted = [], list[Mapping[str, Any]]()
    for number, (image, mask, record) in enumerate(zip(images, masks, records, strict=True)):
        seed = record.get("seed")
        changed, entry = match_camera(image, mask, target, number if seed is None else int(seed))
        done.append(changed)
        noted.append({**record, "camera": entry})
    return torch.stack(done), noted


def remove_unlisted(folder: Path) -> None:
    """Remove what an export that was killed left below ``folder``: images and masks that no line of it names."""
    listed = {folder / line[part] for line in read_lines(folder / MANIFEST) for part in ("image", "mask", "normal")}
    for base in list_folders(folder):
        for part in PARTS:
            for kind in list_folders(base / part):
                for path in kind.iterdir():
                    if path.suffix.lower() in IMAGE_SUFFIXES and path not in listed:
                        path.unlink()


def export_pairs(
    folder: Path,
    object: str,
    defect: str,
    images: Tensor,
    masks: Tensor,
    normals: Tensor,
    records: Sequence[Mapping[str, Any]],
    between: Callable[[], None] = lambda: None,
    form: ImageForm = ImageForm(),  # noqa: B008 (frozen)
) -> list[dict[str, Any]]:
    """Write N pairs of one defect type and return their lines of the manifest.

    Numbers continue after the highest in use; nothing is overwritten. Everything is first written under
    temporary names; an error or interrupt on the way takes back all files of this call.

    Args:
        folder: data set root; created when missing.
        images, masks, normals: [N,3,H,W] in [0,1], [N,1,H,W] in {0,1}, [N,3,H,W] in [0,1].
        records: N mappings with any of seed, effect_score, fill_share and settings; other keys go into settings.
        between: called before each pair; may raise to interrupt, and then nothing of this call is left.
        form: bits, channels and codec of images and normal images; masks are always lossless.

    Each line holds the version of its form, the hashes of its files, image, mask, normal (relative, with "/"), object,
    defect, seed, effect_score, fill_share, settings, the name of a file with the marks of what it was learned from,
    where that is known (see `provenance.py`), and `outside_max_abs_diff`: the largest difference (0..255) of image and
    normal outside the mask, read back from the files that were written.

    Raises:
        InputError: no pairs, counts or sizes that differ, an empty mask, non-finite values, an unusable name.
    """
    folder = Path(folder)
    _check(object, defect, images, masks, normals, records)
    targets = [folder / object / part / defect for part in PARTS]
    made_folders = [path for target in targets for path in _make_folder(target)]
    moved: list[Path] = []
    temporary: list[Path] = []
    try:
        start = 1 + max(highest_number(target, suffix=end) for target, end in zip(targets, ENDINGS, strict=True))
        lines: list[dict[str, Any]] = []
        moves: list[tuple[Path, Path]] = []
        for index in range(images.shape[0]):
            between()
            stem = f"{start + index:03d}"
            drafts = _write_drafts(targets, images[index], masks[index], normals[index], form, temporary)
            names = [f"{stem}{end}{draft.suffix}" for end, draft in zip(ENDINGS, drafts, strict=True)]
            finals = [target / name for target, name in zip(targets, names, strict=True)]
            moves += list(zip(drafts, finals, strict=True))
            lines.append(_line(folder, finals, object, defect, records[index]))
            lines[-1]["outside_max_abs_diff"] = outside_difference(drafts[0], drafts[1], drafts[2], form.bits)
            lines[-1]["sha256"] = file_hashes(dict(zip(("image", "mask", "normal"), drafts, strict=True)))
            if form.bits != 8:
                lines[-1]["bits"] = form.bits
        for draft, final in moves:
            if final.exists():
                raise InputError(f"folder: {final} appeared while exporting. Let one export at a time write there.")
            os.replace(draft, final)
            moved.append(final)
        _append_lines(folder / MANIFEST, lines)
    except BaseException:
        for path in (*temporary, *moved):
            path.unlink(missing_ok=True)
        for path in reversed(made_folders):
            with contextlib.suppress(OSError):  # somebody else put a file there meanwhile
                path.rmdir()
        raise
    return lines


def _check(
    object: str,
    defect: str,
    images: Tensor,
    masks: Tensor,
    normals: Tensor,
    records: Sequence[Mapping[str, Any]],
) -> None:
    check_name(object, "object")
    check_name(defect, "defect")
    if defect == GOOD:
        raise InputError("defect: 'good' means no defect in this layout. Choose another name.")
    for label, tensor, channels in (("images", images, 3), ("masks", masks, 1), ("normals", normals, 3)):
        if tensor.ndim != 4 or tensor.shape[1] != channels:
            raise InputError(f"{label}: shape {tuple(tensor.shape)}. Expected [N,{channels},H,W].")
    counts = {"images": len(images), "masks": len(masks), "normals": len(normals), "records": len(records)}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {label}" for label, count in counts.items())
        raise InputError(f"pairs: {listed}. Give the same number of each.")
    if not len(images):
        raise InputError("images: 0 pairs. Nothing was written; check why the sampler returned none.")
    sizes = {tuple(tensor.shape[2:]) for tensor in (images, masks, normals)}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise InputError(f"pairs: images, masks and normals have different sizes ({listed}). Give one size.")
    empty = [str(index) for index in range(len(masks)) if not bool((masks[index] > 0.5).any())]
    if empty:
        raise InputError(f"masks: number {', '.join(empty)} of the batch is empty. Leave these pairs out.")


def _make_folder(target: Path) -> list[Path]:
    """Create a folder and return what had to be made, outermost first."""
    missing = [path for path in (target, *target.parents) if not path.exists()][::-1]
    target.mkdir(parents=True, exist_ok=True)
    return missing


def _write_drafts(
    targets: Sequence[Path], image: Tensor, mask: Tensor, normal: Tensor, form: ImageForm, temporary: list[Path]
) -> list[Path]:
    """Image, mask and normal image under hidden names in their folders, which are added to ``temporary``."""
    drafts = []
    plain = form.samples(normal)
    for place, target in enumerate(targets):
        name = target / f".{uuid.uuid4().hex}"
        if place == 1:
            drafts.append(name.with_suffix(".png"))
            write_mask(drafts[-1], mask)
        else:
            samples = plain if place else form.samples_beside(image, normal, plain)
            drafts.append(write_samples(name, samples, form.quality))
        temporary.append(drafts[-1])
    return drafts


def outside_difference(image: Path, mask: Path, normal: Path, bits: int = 8) -> int:
    """The largest difference of image and normal image outside the mask, of 255; fractions count as a whole one."""
    one, other, inside, largest = decode(image), decode(normal), decode(mask), 0
    for start in range(0, len(one), ROWS):  # in parts: images may be huge
        rows = slice(start, start + ROWS)
        if np.array_equal(one[rows], other[rows]):
            continue
        difference = np.abs(one[rows].astype(np.int32) - other[rows].astype(np.int32))
        if difference.ndim == 3:
            difference = difference.max(axis=2)
        largest = max(largest, int(difference[inside[rows] == 0].max(initial=0)))
    return math.ceil(largest * 255 / (2**bits - 1))


def _line(folder: Path, files: Sequence[Path], object: str, defect: str, record: Mapping[str, Any]) -> dict[str, Any]:
    image, mask, normal = (path.relative_to(folder).as_posix() for path in files)
    settings = dict(record.get("settings") or {})
    settings.update({key: value for key, value in record.items() if key not in _RECORD_KEYS})
    marks = read_marks(record.get(SOURCES))
    known = {SOURCES: write_sources(folder, marks)} if marks else {}
    return {
        "version": MANIFEST_VERSION,
        "image": image,
        "mask": mask,
        "normal": normal,
        "object": object,
        "defect": defect,
        "seed": _plain(record.get("seed")),
        "effect_score": _plain(record.get("effect_score")),
        "fill_share": _plain(record.get("fill_share")),
        "settings": _plain(settings),
        **known,
    }


def _plain(value: Any) -> Any:
    """What JSON can hold: single-element tensors and numpy numbers as numbers, NaN as null, paths with "/"."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError(f"records: {value!r} ({type(value).__name__}) cannot be written as JSON. Use plain values.")


def _append_lines(manifest: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    before = manifest.read_text(encoding="utf-8") if manifest.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    added = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    with replacing(manifest) as partial:
        partial.write_text(before + added, encoding="utf-8", newline="\n")
