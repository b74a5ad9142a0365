"""Image-mask pairs written as a data set in the MVTec AD layout with one line of provenance for each pair.

``<folder>/<object>/{test/<defect>/000.png, ground_truth/<defect>/000_mask.png, normal/<defect>/000.png}`` and
``<folder>/manifest.jsonl``. A picture only exists together with its mask, its normal picture and its line.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..files import replacing
from .images import write_image, write_mask
from .mvtec import GOOD
from .pairs import MANIFEST

_RECORD_KEYS = ("seed", "effect_score", "fill_share", "settings")
_FORBIDDEN = set('/\\:*?"<>|\0')


def export_pairs(
    folder: Path,
    object: str,
    defect: str,
    images: Tensor,
    masks: Tensor,
    normals: Tensor,
    records: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Write N pairs of one defect type and return their lines of the manifest.

    Numbers go on after the highest that is there; nothing is overwritten. Everything is first written under
    temporary names; an error or interrupt on the way takes back all files of this call.

    Args:
        folder: data set root; created when missing.
        images, masks, normals: [N,3,H,W] in [0,1], [N,1,H,W] in {0,1}, [N,3,H,W] in [0,1].
        records: N mappings with any of seed, effect_score, fill_share and settings; other keys go into settings.

    Each line holds image, mask, normal (relative, with "/"), object, defect, seed, effect_score, fill_share, settings
    and `outside_max_abs_diff`: the largest difference (0..255) of image and normal outside the mask, read back from
    the files that were written.

    Raises:
        InputError: no pairs, counts or sizes that differ, an empty mask, non-finite values, an unusable name.
    """
    folder = Path(folder)
    _check(object, defect, images, masks, normals, records)
    base = folder / object
    targets = [base / "test" / defect, base / "ground_truth" / defect, base / "normal" / defect]
    made_folders = [path for target in targets for path in _make_folder(target)]
    moved: list[Path] = []
    temporary: list[Path] = []
    try:
        start = _next_number(targets)
        lines: list[dict[str, Any]] = []
        moves: list[tuple[Path, Path]] = []
        for index in range(images.shape[0]):
            stem = f"{start + index:03d}"
            finals = [targets[0] / f"{stem}.png", targets[1] / f"{stem}_mask.png", targets[2] / f"{stem}.png"]
            drafts = [path.with_name(f".{path.stem}.{uuid.uuid4().hex}.png") for path in finals]
            temporary += drafts
            write_image(drafts[0], images[index])
            write_mask(drafts[1], masks[index])
            write_image(drafts[2], normals[index])
            moves += list(zip(drafts, finals, strict=True))
            lines.append(_line(folder, finals, object, defect, records[index], _outside_difference(*drafts)))
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
    for label, name in (("object", object), ("defect", defect)):
        unusable = not name or name.strip(". ") != name or bool(_FORBIDDEN & set(name))
        if unusable or any(ord(character) < 32 for character in name):
            raise InputError(f"{label}: '{name}' cannot be a folder name. Use letters, digits, spaces, - and _.")
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


def _next_number(targets: Sequence[Path]) -> int:
    highest = -1
    for target in targets:
        for path in target.iterdir():
            digits = path.stem.removesuffix("_mask")
            if digits.isdecimal():
                highest = max(highest, int(digits))
    return highest + 1


def _outside_difference(image: Path, mask: Path, normal: Path) -> int:
    with Image.open(image) as a, Image.open(mask) as m, Image.open(normal) as b:
        difference = np.abs(np.asarray(a).astype(np.int16) - np.asarray(b).astype(np.int16)).max(axis=2)
        outside = np.asarray(m) == 0
    return int(difference[outside].max(initial=0))


def _line(
    folder: Path, files: Sequence[Path], object: str, defect: str, record: Mapping[str, Any], difference: int
) -> dict[str, Any]:
    image, mask, normal = (path.relative_to(folder).as_posix() for path in files)
    settings = dict(record.get("settings") or {})
    settings.update({key: value for key, value in record.items() if key not in _RECORD_KEYS})
    return {
        "image": image,
        "mask": mask,
        "normal": normal,
        "object": object,
        "defect": defect,
        "seed": _plain(record.get("seed")),
        "effect_score": _plain(record.get("effect_score")),
        "fill_share": _plain(record.get("fill_share")),
        "settings": _plain(settings),
        "outside_max_abs_diff": difference,
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
