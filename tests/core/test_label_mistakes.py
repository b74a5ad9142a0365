"""Mistakes in labels and masks that would be learned as if they were right: each is named, none is read in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.data.mask_files import inspect_mask
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.errors import DatasetError

pytestmark = pytest.mark.core

HEIGHT, WIDTH = 48, 64
BOX = np.zeros((HEIGHT, WIDTH), bool)
BOX[10:20, 12:30] = True
CORNERS = [[12.0, 10.0], [30.0, 10.0], [30.0, 20.0], [12.0, 20.0]]
FLAT = [number for corner in CORNERS for number in corner]


def load(part: Path) -> AnomalyDataset:
    return load_dataset(part.parent, part.name, SplitSettings("first n", 100))


def drawn(dataset: AnomalyDataset) -> np.ndarray:
    (kind,) = dataset.types
    return kind.train[0].read_mask()[0].numpy() > 0


def image(path: Path, seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def labelme(part: Path, name: str = "a", **shape: Any) -> None:
    image(part / "good" / "0.png", 0)
    image(part / f"{name}.png", ord(name[0]))
    shapes = [{"label": "dent", "points": CORNERS, "shape_type": "polygon"} | shape]
    (part / f"{name}.json").write_text(json.dumps({"shapes": shapes, "imagePath": f"{name}.png"}), encoding="utf-8")


def coco(part: Path, **changed: Any) -> None:
    """Image 0 with a defect, image 1 without."""
    for number in range(2):
        image(part / f"{number}.png", number)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(2)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "segmentation": [FLAT]}],
        "categories": [{"id": 1, "name": "dent"}],
    }
    (part / "labels.json").write_text(json.dumps(content | changed), encoding="utf-8")


@pytest.mark.parametrize("kind", ["rectangle", "circle", "line"])
def test_a_shape_of_one_point_is_a_mistake(kind: str, tmp_path: Path) -> None:
    labelme(tmp_path / "part", shape_type=kind, points=[[20, 20]])
    with pytest.raises(DatasetError, match=rf"a\.json: .*{kind}: 1 point is not enough"):
        load(tmp_path / "part")


def test_corners_in_shares_are_no_pixels(tmp_path: Path) -> None:
    shares = [[x / WIDTH, y / HEIGHT] for x, y in CORNERS]
    labelme(tmp_path / "part", points=shares)
    with pytest.raises(DatasetError, match=r"a\.json: .*within 0 to 1, as shares of the image"):
        load(tmp_path / "part")
    flat = [number for corner in shares for number in corner]
    coco(tmp_path / "coco", annotations=[{"id": 1, "image_id": 0, "category_id": 1, "segmentation": [flat]}])
    with pytest.raises(DatasetError, match=r"annotation 1 of 0\.png: .*within 0 to 1"):
        load(tmp_path / "coco")
    # the first pixel alone, as we write it ourselves
    corner = [0, 0, 1, 0, 1, 1, 0, 1]
    coco(tmp_path / "pixel", annotations=[{"id": 1, "image_id": 0, "category_id": 1, "segmentation": [corner]}])
    mask = drawn(load(tmp_path / "pixel"))
    assert mask[0, 0] and mask.sum() == 1


def test_ids_of_coco_occur_once(tmp_path: Path) -> None:
    entries = [{"id": 0, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(2)]
    coco(tmp_path / "images", images=entries)  # the defect of image 0 would be that of image 1 too
    with pytest.raises(DatasetError, match=r"labels\.json: two of its images have the id 0"):
        load(tmp_path / "images")
    coco(tmp_path / "names", categories=[{"id": 1, "name": "dent"}, {"id": 1, "name": "hole"}])
    with pytest.raises(DatasetError, match=r"labels\.json: two of its categories have the id 1"):
        load(tmp_path / "names")


def test_labels_that_differ_in_case_alone_are_named(tmp_path: Path) -> None:
    labelme(tmp_path / "part")
    labelme(tmp_path / "part", "b", label="Dent")
    with pytest.raises(DatasetError, match="defect types Dent, dent differ in case or accents only"):
        load(tmp_path / "part")


def test_a_label_of_yolo_without_its_image_is_named(tmp_path: Path) -> None:
    part = tmp_path / "part"
    for name in ("a", "n"):
        image(part / "images" / f"{name}.png", ord(name))
    line = "0 " + " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in CORNERS)
    (part / "labels").mkdir()
    for name in ("a", "gone"):
        (part / "labels" / f"{name}.txt").write_text(line, encoding="utf-8-sig")  # with a byte order mark
    (part / "data.yaml").write_text("names: [dent]")
    dataset = load(part)
    assert np.array_equal(drawn(dataset), BOX)
    assert "left out, labels without image: 1 files (labels/gone.txt)" in dataset.notices


def test_tracks_of_a_cvat_video_are_not_read_as_a_set_without_defects(tmp_path: Path) -> None:
    part = tmp_path / "part"
    image(part / "images" / "0.png", 0)
    points = ";".join(f"{x},{y}" for x, y in CORNERS)
    track = f'<track id="0" label="dent"><polygon frame="0" points="{points}"/></track>'
    (part / "annotations.xml").write_text(f"<annotations>{track}</annotations>")
    with pytest.raises(DatasetError, match=r"annotations\.xml: holds tracks of a video"):
        load(part)
    (part / "annotations.xml").write_text("<annotations></annotations>")
    with pytest.raises(DatasetError, match="read as CVAT for images, but it holds no defect and no normal image"):
        load(part)


def test_labels_without_any_normal_image_say_so(tmp_path: Path) -> None:
    coco(tmp_path / "part", images=[{"id": 0, "file_name": "0.png", "height": HEIGHT, "width": WIDTH}])
    assert any(notice.startswith("no normal images") for notice in load(tmp_path / "part").notices)


def _mask(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_a_speck_beside_a_defect_of_255_makes_it_no_void(tmp_path: Path) -> None:
    pixels = np.zeros((100, 100))
    pixels[20:60, 30:70] = 255
    pixels[5, 5] = 3
    found = inspect_mask(_mask(tmp_path / "m.png", pixels))
    assert found.mask[0, 20:60, 30:70].all() and found.void == 0
    pixels[70:90, 70:90] = 3  # 401 of 2,001: ids, and 255 beside them is void
    found = inspect_mask(_mask(tmp_path / "n.png", pixels))
    assert (int(found.mask.sum()), found.void, len(found.notices)) == (401, 1600, 1)


def test_void_that_is_asked_for_is_a_defect(tmp_path: Path) -> None:
    pixels = np.zeros((100, 100))
    pixels[20:60, 30:70], pixels[70:90, 70:90] = 255, 1
    path = _mask(tmp_path / "m.png", pixels)
    assert np.array_equal(inspect_mask(path, ("255",)).mask[0].numpy() > 0, pixels == 255)
    assert np.array_equal(inspect_mask(path, ("1", "255")).mask[0].numpy() > 0, pixels > 0)
    assert np.array_equal(inspect_mask(path, ("1",)).mask[0].numpy() > 0, pixels == 1)


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """Category `part` with two normal images and a crack."""
    part = tmp_path / "part"
    for number, place in enumerate(("train/good/0", "test/good/0", "test/crack/0")):
        image(part / f"{place}.png", number)
    _mask(part / "ground_truth" / "crack" / "0_mask.png", BOX * 255)
    return part


def test_an_image_in_which_nothing_is_visible_is_found_at_load(mvtec: Path) -> None:
    magenta = np.full((HEIGHT, WIDTH, 4), (255, 0, 255, 0), np.uint8)
    Image.fromarray(magenta).save(mvtec / "train" / "good" / "1.png")
    with pytest.raises(DatasetError, match=r"1\.png: is wholly transparent"):
        load(mvtec)


@pytest.mark.parametrize("rows", [HEIGHT - 1, HEIGHT + 1])
def test_a_mask_one_row_off_is_named_with_both_sizes(mvtec: Path, rows: int) -> None:
    _mask(mvtec / "ground_truth" / "crack" / "0_mask.png", np.resize(BOX * 255, (rows, WIDTH)))
    with pytest.raises(DatasetError, match=rf"0_mask\.png: the mask is 64x{rows} px, its image 0\.png is 64x48 px"):
        load(mvtec)


def test_an_image_of_20000_by_300_is_not_squashed_in_silence(mvtec: Path) -> None:
    Image.new("L", (20000, 300), 90).save(mvtec / "train" / "good" / "long.png")
    assert any("long.png has 20000x300 px: resizing to a square squashes" in one for one in load(mvtec).notices)


@pytest.mark.parametrize("size", [(512, 512), (640, 480)])
def test_a_mask_on_the_raw_pixels_of_a_turned_image(mvtec: Path, size: tuple[int, int]) -> None:
    width, height = size
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", size, "grey").save(mvtec / "test" / "crack" / "0.png", exif=exif)
    raw = np.zeros((height, width), bool)
    raw[100:200, 30:300] = True
    _mask(mvtec / "ground_truth" / "crack" / "0_mask.png", raw * 255)
    dataset = load(mvtec)
    if size == (640, 480):  # its size tells that it lies on the stored pixels
        assert np.array_equal(drawn(dataset), np.rot90(raw, -1))
        assert any("lies on the pixels as stored" in notice for notice in dataset.notices)
    else:
        assert any("turned by its EXIF tag" in one and "mask_rotation" in one for one in dataset.notices)
        split = SplitSettings("first n", 100, mask_rotation="as stored")
        assert np.array_equal(drawn(load_dataset(mvtec.parent, "part", split)), np.rot90(raw, -1))
