"""What all baselines share: one pair for each normal image, seeded, and changed inside its mask only."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.provenance import SOURCES
from ..errors import InputError
from ..sampling.blending import check_mask
from ..sampling.effect import effect_score

TRIES = 10


@dataclass(frozen=True)
class Made:
    """One image [3, H, W], where it was changed [1, H, W] in {0, 1}, and how, as plain values for the manifest."""

    image: Tensor
    mask: Tensor
    details: Mapping[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """A baseline method."""

    @property
    def name(self) -> str:
        """Its name in manifests and tables."""

    def make(self, normal: Tensor, rng: np.random.Generator, foreground: Tensor | None) -> Made:
        """Put one anomaly on ``normal`` [3, H, W], inside ``foreground`` [1, H, W] in {0, 1} where there is one."""
        ...


@dataclass(frozen=True)
class MadePairs:
    """images [N, 3, H, W] in [0, 1], masks [N, 1, H, W] in {0, 1}, and N records as `export_pairs` takes them."""

    images: Tensor
    masks: Tensor
    records: list[dict[str, Any]]

    def describe(self, method: Method, key: str) -> str:
        """How visible the anomalies are and how much they cover, as lines of plain text."""
        scores = sorted(float(record["effect_score"]) for record in self.records)
        textures = getattr(method, "textures", None)
        return (
            f"{method.name}, {key}: {len(scores)} pairs, effect {scores[len(scores) // 2]:.1f} of 255 in the mask "
            f"(median; {scores[0]:.1f} to {scores[-1]:.1f}), masks cover {float(self.masks.mean()):.2%}"
        ) + (f"\ntextures: {textures.name}" if textures is not None else "")


def make_pairs(
    method: Method,
    normals: Tensor,
    seed: int,
    key: str = "",
    foreground: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
    learned_from: Mapping[str, Any] | None = None,
) -> MadePairs:
    """One pair for each normal image. Pair i uses seed + i and does not depend on the others.

    Args:
        normals: [N, 3, H, W] in [0, 1].
        key: `object/defect`; another type gets other random draws from the same seed.
        foreground: [1 or N, 1, H, W] in {0, 1}, where anomalies may lie; None allows every place.
        on_step: called with the number of finished pairs; exceptions in it propagate.
        learned_from: plain marks of the images that defects are taken from, see `data/provenance.py`.

    Outside its mask every image equals the normal one bit for bit; no mask is empty.

    Raises:
        InputError: shapes that do not fit, an empty foreground, or a method that changes nothing.
    """
    if normals.ndim != 4 or normals.shape[1] != 3 or not len(normals):
        raise InputError(f"normals: shape {tuple(normals.shape)}. Give at least one image as [N,3,H,W].")
    if foreground is not None:
        check_mask(foreground, "foreground")
        if len(foreground) not in (1, len(normals)) or foreground.shape[2:] != normals.shape[2:]:
            raise InputError(
                f"foreground: shape {tuple(foreground.shape)} for images {tuple(normals.shape)}. Give one mask of "
                "their size, or one for each."
            )
    images, masks, details = [], [], []
    for place, normal in enumerate(normals):
        rng = np.random.default_rng([seed + place, zlib.crc32(key.encode()), zlib.crc32(method.name.encode())])
        ground = None if foreground is None else foreground[place % len(foreground)]
        made = _visible(method, normal, rng, ground)
        inside = made.mask > 0
        images.append(torch.where(inside, made.image.clamp(0, 1).to(normal.dtype), normal))
        masks.append(inside.to(normal.dtype))
        details.append(dict(made.details))
        if on_step is not None:
            on_step(place + 1)
    pairs, marked = torch.stack(images), torch.stack(masks)
    records = _records(method.name, pairs, marked, normals, seed, details)
    if learned_from:
        records = [{**record, SOURCES: learned_from} for record in records]
    return MadePairs(pairs, marked, records)


def _visible(method: Method, normal: Tensor, rng: np.random.Generator, foreground: Tensor | None) -> Made:
    """The first attempt that changes a pixel of an 8-bit file: a mask without a change would be a wrong label."""
    for _ in range(TRIES):
        made = method.make(normal, rng, foreground)
        change = (made.image.clamp(0, 1) * 255).round() - (normal * 255).round()
        if bool(((change != 0) & (made.mask > 0)).any()):
            return made
    raise InputError(
        f"{method.name}: {TRIES} tries changed nothing in the image. Use images, defects or textures that differ."
    )


def _records(
    name: str, images: Tensor, masks: Tensor, normals: Tensor, seed: int, details: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    # No autoencoder is involved, so the reconstruction of a normal image is the image itself.
    scores = effect_score(images, normals, normals, masks)
    return [
        {
            "seed": seed + place,
            "effect_score": round(float(scores.effect[place]), 3),
            "fill_share": round(float(scores.fill_share[place]), 4),
            "outside_max_abs_diff": int(scores.outside_max_abs_diff[place]),
            "settings": {"method": name, **detail},
        }
        for place, detail in enumerate(details)
    ]
