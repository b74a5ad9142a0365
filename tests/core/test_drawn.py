"""Images and drawn masks as a data set on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.data.drawn import DrawnSettings, drawn_dataset
from anomalydiffusion_core.data.mvtec import load_images, load_pairs
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.errors import InputError

pytestmark = pytest.mark.core
SPLIT = SplitSettings("first n", 6)


def _images(count: int, seed: int, size: tuple[int, int] = (12, 20)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=generator).float() / 255


def _masks(count: int, size: tuple[int, int] = (12, 20)) -> Tensor:
    masks = torch.zeros(count, 1, *size)
    masks[:, :, 3:7, 5:11] = 1
    return masks


def test_what_was_drawn_is_what_is_read(tmp_path: Path) -> None:
    images, normals = _images(2, 1), _images(10, 2)
    made = drawn_dataset(tmp_path, images, _masks(2), normals, DrawnSettings("cup", "crack"), SPLIT)
    assert [kind.key for kind in made.types] == ["cup/crack"]
    assert (len(made.normals), len(made.test_normals)) == (8, 2)
    read, masks = load_pairs(made.types[0].train, None)
    assert torch.equal(read, images) and torch.equal(masks, _masks(2))
    assert torch.equal(load_images([*made.normals, *made.test_normals], None), normals)
    again = drawn_dataset(tmp_path, images, _masks(2), normals, DrawnSettings("cup", "crack"), SPLIT)
    assert again.root == made.root and again.fingerprint() == made.fingerprint()
    assert len(list(tmp_path.iterdir())) == 1


def test_nodes_in_a_row_add_images_and_types(tmp_path: Path) -> None:
    first = drawn_dataset(tmp_path, _images(1, 1), _masks(1), _images(1, 2), DrawnSettings("cup", "crack"), SPLIT)
    more = drawn_dataset(tmp_path, _images(2, 3), _masks(2), None, DrawnSettings("cup", "crack"), SPLIT, first)
    other = _images(1, 4, (30, 8))
    box = torch.zeros(1, 1, 30, 8)
    box[..., 20:25, 2:6] = 1
    last = drawn_dataset(tmp_path, other, box, _images(1, 5), DrawnSettings("cup", "hole"), SPLIT, more)
    assert {kind.defect: [pair.name for pair in kind.train] for kind in last.types} == {
        "crack": ["000", "001", "002"],
        "hole": ["000"],
    }
    assert torch.equal(load_pairs(last.defect_type("crack").train, None)[0], torch.cat([_images(1, 1), _images(2, 3)]))
    assert int(load_pairs(last.defect_type("hole").train, None)[1].sum()) == 20
    assert len(last.normals) == 2
    assert len(first.types[0].train) == 1, "the first one is as it was"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    images, masks, normals = _images(2, 1), _masks(2), _images(1, 2)
    known = DrawnSettings("cup", "crack")
    made = drawn_dataset(tmp_path, images, masks, normals, known, SPLIT)
    cases = (
        ("normals: not connected", images, masks, None, known, None),
        ("masks: 1 for 2 images", images, masks[:1], normals, known, None),
        ("masks: 20x11 px, the images have 20x12 px", images, masks[:, :, :11], normals, known, None),
        ("object: 'mug', but add_to is of 'cup'", images, masks, None, DrawnSettings("mug", "crack"), made),
        ("defect: 'good' means no defect", images, masks, normals, DrawnSettings("cup", "good"), None),
        ("object: '../x'", images, masks, normals, DrawnSettings("../x", "crack"), None),
    )
    for message, *arguments, settings, before in cases:
        with pytest.raises(InputError, match=message):
            drawn_dataset(tmp_path, *arguments, settings, SPLIT, before)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 1
