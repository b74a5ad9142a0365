"""What is computed in the box of a mask alone, for large images, is bit for bit what the whole image gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anomalydiffusion_core.data.export import outside_difference
from anomalydiffusion_core.data.image_form import ImageForm
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.sampling.blending import eroded, inward_feather

pytestmark = pytest.mark.core


def masks() -> list[Tensor]:
    """In the middle, at borders and corners, two parts, thin, several of a batch, everything, nothing."""
    found = []
    for boxes in (
        [(10, 30, 12, 40)],
        [(0, 9, 0, 7)],
        [(33, 40, 50, 60), (0, 3, 20, 60)],
        [(5, 6, 0, 60)],
        [(0, 40, 0, 60)],
        [],
    ):
        mask = torch.zeros(1, 1, 40, 60)
        for top, bottom, left, right in boxes:
            mask[..., top:bottom, left:right] = 1
        found.append(mask)
    generator = torch.Generator().manual_seed(0)
    found += [(torch.rand(1, 1, 40, 60, generator=generator) > share).float() for share in (0.05, 0.5, 0.97)]
    return [*found, torch.cat(found)]


def plainly_eroded(mask: Tensor, pixels: int) -> Tensor:
    for _ in range(pixels):
        mask = 1 - F.max_pool2d(1 - mask, 3, stride=1, padding=1)
    return mask


def plain_feather(mask: Tensor, feather: int) -> Tensor:
    depth = mask.clone()
    for pixels in range(1, feather + 1):
        depth = depth + plainly_eroded(mask, pixels)
    reach = F.max_pool2d(depth, 2 * feather + 1, stride=1, padding=feather)
    return torch.where(mask > 0, depth / reach.clamp_min(1), mask)


@pytest.mark.parametrize("pixels", [0, 1, 2, 5])
def test_masks_are_eroded_and_feathered_as_on_the_whole_image(pixels: int) -> None:
    for mask in masks():
        assert torch.equal(eroded(mask, pixels), plainly_eroded(mask, pixels))
        assert torch.equal(inward_feather(mask, pixels), plain_feather(mask, pixels))


@pytest.mark.parametrize("form", [ImageForm(), ImageForm(grey=True), ImageForm(16), ImageForm(12, grey=True)])
def test_samples_beside_a_known_image_are_those_of_the_whole_conversion(form: ImageForm) -> None:
    normal = torch.rand(3, 1100, 70, generator=torch.Generator().manual_seed(1))
    known = form.samples(normal)
    for box in ((0, 0, 0, 0), (0, 3, 0, 2), (500, 530, 20, 44), (1090, 1100, 69, 70), (0, 1100, 0, 70)):
        image = normal.clone()
        image[:, box[0] : box[1], box[2] : box[3]] = 0.3
        made = form.samples_beside(image, normal, known)
        assert made.dtype == known.dtype and np.array_equal(made, form.samples(image))
    assert np.array_equal(known, form.samples(normal))  # was not written to
    broken = normal.clone()
    broken[0, 7, 7] = float("nan")
    with pytest.raises(InputError):
        form.samples_beside(broken, normal, known)


def test_differences_outside_are_found_in_any_part(tmp_path: Path) -> None:
    normal = np.random.default_rng(0).integers(0, 200, (1300, 40), dtype=np.uint8)
    mask = np.zeros_like(normal)
    mask[600:640] = 255
    paths = [tmp_path / name for name in ("image.png", "mask.png", "normal.png")]
    Image.fromarray(mask).save(paths[1])
    Image.fromarray(normal).save(paths[2])
    for row, expected in ((None, 0), (610, 0), (0, 7), (550, 7), (1299, 7)):
        image = normal.copy()
        if row is not None:
            image[row, 39] += 7
        Image.fromarray(image).save(paths[0])
        assert outside_difference(*paths) == expected
