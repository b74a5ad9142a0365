"""Folders of generated images of any method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.generated import load_folders, load_generated, of_object
from anomalydiffusion_core.data.images import write_image, write_mask
from anomalydiffusion_core.errors import DatasetError

pytestmark = pytest.mark.core

IMAGE, MASK = torch.rand(3, 8, 8), torch.ones(1, 8, 8)


def found(folder: Path) -> list[tuple[str, str, str, bool]]:
    return [(p.object, p.defect, p.image.name, p.mask is not None) for p in load_generated(folder)]


def test_layouts_with_and_without_masks(tmp_path: Path) -> None:
    write_image(tmp_path / "gan" / "bottle" / "crack" / "2.png", IMAGE)
    write_image(tmp_path / "gan" / "bottle" / "crack" / "10.png", IMAGE)
    write_image(tmp_path / "gan" / "bottle" / "good" / "0.png", IMAGE)
    assert found(tmp_path / "gan") == [("bottle", "crack", "2.png", False), ("bottle", "crack", "10.png", False)]
    assert found(tmp_path / "gan" / "bottle") == found(tmp_path / "gan")
    write_image(tmp_path / "mvtec" / "test" / "hole" / "0.png", IMAGE)
    assert found(tmp_path / "mvtec") == [("mvtec", "hole", "0.png", False)]
    write_mask(tmp_path / "mvtec" / "ground_truth" / "hole" / "0_mask.png", MASK)
    assert found(tmp_path / "mvtec") == [("mvtec", "hole", "0.png", True)]
    write_image(tmp_path / "mvtec" / "test" / "hole" / "1.png", IMAGE)
    with pytest.raises(DatasetError, match="without partner"):
        load_generated(tmp_path / "mvtec")
    write_image(tmp_path / "authors" / "pill" / "crack" / "image" / "0.png", IMAGE)
    write_mask(tmp_path / "authors" / "pill" / "crack" / "mask" / "0.png", MASK)
    assert found(tmp_path / "authors") == [("pill", "crack", "0.png", True)]
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        with pytest.raises(DatasetError, match=name):
            load_generated(tmp_path / name)


def test_method_and_object_come_from_the_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "run_00001"
    arrays = (IMAGE[None], MASK[None], IMAGE[None])
    export_pairs(folder, "bottle", "crack", *arrays, [{"settings": {"method": "CutPaste"}}])
    images = load_generated(folder)
    assert load_folders([folder], "bottle")[1] == "CutPaste"
    export_pairs(folder, "pill", "crack", *arrays, [{"settings": {"method": "DRAEM"}}])
    images = load_generated(folder)
    assert load_folders([folder], "pill")[1] == "run_00001"
    assert [image.object for image in of_object(images, "pill")] == ["pill"]
    with pytest.raises(DatasetError, match="of bottle, pill, none of cable"):
        of_object(images, "cable")
    write_image(tmp_path / "gan" / "crack" / "0.png", IMAGE)
    assert len(of_object(load_generated(tmp_path / "gan"), "cable")) == 1
