"""The pictures of a training step: half good, half defective, with the ordinary augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.images import resize_image, resize_mask
from ...errors import InputError
from .settings import LocalizerSettings

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""`object/defect` -> (images [N,3,H,W] in [0,1], masks [N,1,H,W] in {0,1})."""


class BatchSampler:
    """Draws batches: the second half defective, source, then type, then picture each drawn uniformly."""

    def __init__(self, real: Pairs, generated: Pairs, normals: Tensor, settings: LocalizerSettings) -> None:
        self.settings = settings
        self.real = _prepared(real, "real", settings.size)
        self.generated = _prepared(generated, "generated", settings.size)
        if normals.ndim != 4 or normals.shape[1] != 3 or not len(normals):
            raise InputError(f"normals: shape {tuple(normals.shape)}. Give at least one picture as [N,3,H,W].")
        self.normals = resize_image(_ordinary(normals), settings.size)
        self.no_mask = torch.zeros(1, settings.size, settings.size)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """[B,3,s,s] and [B,1,s,s], augmented."""
        defective = self.settings.batch_size // 2 if self.real or self.generated else 0
        samples = []
        for _ in range(self.settings.batch_size - defective):
            samples.append((self.normals[_pick(len(self.normals), generator)], self.no_mask))
        for _ in range(defective):
            source = self.real or self.generated
            if self.real and self.generated:
                share = float(torch.rand((), generator=generator))
                source = self.generated if share < self.settings.generated_share else self.real
            images, masks = source[_pick(len(source), generator)]
            index = _pick(len(images), generator)
            samples.append((images[index], masks[index]))
        augmented = [self._augment(image, mask, generator) for image, mask in samples]
        return torch.stack([image for image, _ in augmented]), torch.stack([mask for _, mask in augmented])

    def _augment(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mirrors = [axis for axis in (1, 2) if self.settings.flips and _pick(2, generator)]
        turns = _pick(4, generator) if self.settings.rotations else 0
        image, mask = (torch.rot90(torch.flip(part, mirrors), turns, (1, 2)) for part in (image, mask))
        # Half stay as sharp as the pictures of the test: turning by an odd angle blurs.
        if self.settings.any_angle and _pick(2, generator):
            turned, label = turn(image, mask, float(torch.rand((), generator=generator)) * math.tau)
            # A defect near a corner may leave the picture, which then shows nothing to find.
            if bool(label.any()) == bool(mask.any()):
                return turned, label
        return image, mask


def turn(image: Tensor, mask: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Turn a picture and its mask about the centre, anticlockwise as seen; beyond the border both are mirrored.

    Args:
        image: [C,s,s], sampled bilinearly; mask: [1,s,s] in {0,1}, by the nearest pixel, so that it stays in {0,1}.
        angle: radians.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    grid = F.affine_grid(torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]]), [1, 1, *image.shape[1:]], False)
    turned = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    label = F.grid_sample(mask[None], grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return turned[0], label[0]


def _prepared(pairs: Pairs, label: str, size: int) -> list[tuple[Tensor, Tensor]]:
    prepared = []
    for key in sorted(pairs):
        images, masks = pairs[key]
        fits = images.ndim == 4 and masks.ndim == 4 and images.shape[1] == 3 and masks.shape[1] == 1
        if not fits or len(images) != len(masks) or images.shape[2:] != masks.shape[2:]:
            shapes = f"images {tuple(images.shape)}, masks {tuple(masks.shape)}"
            raise InputError(f"{label} pairs: {key} has {shapes}. Give [N,3,H,W] and [N,1,H,W] of equal N and size.")
        if not len(images):
            continue
        empty = [str(index) for index in range(len(masks)) if not bool(masks[index].any())]
        if empty:
            raise InputError(f"{label} pairs: mask {', '.join(empty)} of {key} is empty. Leave these pairs out.")
        prepared.append((resize_image(_ordinary(images), size), resize_mask(_ordinary(masks), size)))
    return prepared


def _ordinary(tensor: Tensor) -> Tensor:
    # a tensor made in inference mode may not take part in a backward pass
    plain = tensor.detach().to(device="cpu", dtype=torch.float32)
    return plain.clone() if plain.is_inference() else plain


def _pick(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
