"""Label formats and layouts that people have, each with a defect whose pixels are known."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.errors import DatasetError

pytestmark = pytest.mark.core

HEIGHT, WIDTH = 16, 24
BOX = np.zeros((HEIGHT, WIDTH), bool)
BOX[4:10, 5:13] = True
"""Rows 4 to 9, columns 5 to 12; the outline of its pixels runs from (5, 4) to (13, 10)."""
RING = BOX.copy()
RING[6:8, 8:10] = False
CORNERS = [[5, 4], [13, 4], [13, 10], [5, 10]]
FLAT = [float(number) for corner in CORNERS for number in corner]
ALL_TRAIN = SplitSettings("first n", 100)


def image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, inside: np.ndarray, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(inside.astype(np.uint8) * np.uint8(value)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def column_runs(inside: np.ndarray) -> list[int]:
    """COCO's uncompressed counts, counted one pixel after the other."""
    counts, current = [0], False
    for value in inside.T.ravel():
        if bool(value) != current:
            counts.append(0)
            current = bool(value)
        counts[-1] += 1
    return counts


def labelme(folder: Path) -> None:
    for index in range(5):
        image(folder / "good" / f"{index}.png", index)
    for index in range(2):
        image(folder / "photos" / f"d{index}.png", 50 + index)
        polygon = {"label": "dent", "points": CORNERS, "shape_type": "polygon", "group_id": None}
        other = {"label": "spot", "points": [[1.5, 1.5]], "shape_type": "point"}
        shapes = [polygon, other] if index else [polygon]
        content = {"version": "5.1", "shapes": shapes, "imagePath": f"C:\\work\\d{index}.png", "imageData": None}
        text(folder / "json" / f"d{index}.json", json.dumps({**content, "imageHeight": HEIGHT, "imageWidth": WIDTH}))


def coco(folder: Path) -> None:
    for index in range(5):
        image(folder / "images" / f"{index}.png", index)
    entries = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(5)]
    ring = {"counts": column_runs(RING), "size": [HEIGHT, WIDTH]}
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 7, "segmentation": [FLAT], "iscrowd": 0, "bbox": [5, 4, 8, 6]},
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": ring, "iscrowd": 1},
    ]
    content = {"images": entries, "annotations": annotations, "categories": [{"id": 7, "name": "dent"}]}
    text(folder / "annotations" / "instances.json", json.dumps(content))


def yolo(folder: Path) -> None:
    shares = " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in CORNERS)
    for index in range(4):
        image(folder / "images" / ("train" if index < 3 else "val") / f"{index}.png", index)
    text(folder / "labels" / "train" / "0.txt", f"1 {shares}\n")
    text(folder / "labels" / "train" / "1.txt", "\n")
    text(
        folder / "data.yaml", "path: /elsewhere\ntrain: images/train\nval: images/val\nnames:\n  0: spot\n  1: dent\n"
    )


def cvat(folder: Path) -> None:
    for index in range(3):
        image(folder / "images" / f"{index}.png", index)
    points = ";".join(f"{x}.00,{y}.00" for x, y in CORNERS)
    small = RING[4:10, 5:13]
    changes = np.flatnonzero(np.diff(np.concatenate([[0], small.ravel().astype(int)])))
    runs = np.diff(np.concatenate([[0], changes, [small.size]])).tolist()
    rle = ", ".join(str(run) for run in runs)
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    text(
        folder / "annotations.xml",
        f'<?xml version="1.0"?><annotations><version>1.1</version><image id="0" name="0.png" {size}>'
        f'<polygon label="dent" occluded="0" points="{points}" z_order="0"/></image>'
        f'<image id="1" name="1.png" {size}>'
        f'<mask label="dent" rle="{rle}" left="5" top="4" width="8" height="6"/></image>'
        f'<image id="2" name="2.png" {size}></image></annotations>',
    )


def voc(folder: Path) -> None:
    palette = [0, 0, 0, 128, 0, 0] + [0] * 660 + [224, 224, 192]
    for index in range(3):
        image(folder / "JPEGImages" / f"{index}.png", index)
    indices = np.where(BOX, 1, 0).astype(np.uint8)
    indices[:2, :2] = 222  # the colour of void
    stored = Image.fromarray(indices).convert("P")
    stored.putpalette(palette)
    (folder / "SegmentationClass").mkdir()
    stored.save(folder / "SegmentationClass" / "0.png")
    text(folder / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndent:128,0,0::\n")
    text(folder / "ImageSets" / "Segmentation" / "train.txt", "0\n1\n")
    text(folder / "ImageSets" / "Segmentation" / "val.txt", "2\n")


def loco(folder: Path) -> None:
    image(folder / "train" / "good" / "0.png", 0)
    image(folder / "validation" / "good" / "0.png", 1)
    image(folder / "test" / "good" / "0.png", 2)
    image(folder / "test" / "dent" / "000.png", 3)
    left, right = BOX.copy(), BOX.copy()
    left[:, 8:], right[:, :8] = False, False
    mask(folder / "ground_truth" / "dent" / "000" / "000.png", left, 251)
    mask(folder / "ground_truth" / "dent" / "000" / "001.png", right, 249)


def mvtec_3d(folder: Path) -> None:
    for index, place in enumerate(("train/good", "test/good", "test/dent")):
        image(folder / place / "rgb" / "000.png", index)
        text(folder / place / "xyz" / "000.tiff", "points")
    mask(folder / "test" / "good" / "gt" / "000.png", BOX & False)
    mask(folder / "test" / "dent" / "gt" / "000.png", BOX)


def btad(folder: Path) -> None:
    image(folder / "train" / "ok" / "0000.bmp", 0)
    image(folder / "test" / "ok" / "0001.bmp", 1)
    image(folder / "test" / "dent" / "0000.bmp", 2)
    mask(folder / "ground_truth" / "dent" / "0000.png", BOX)


def visa(folder: Path) -> None:
    for index in range(2):
        image(folder / "Data" / "Images" / "Normal" / f"{index:04d}.JPG", index)
    rows = ["image,label,mask"]
    split = ["object,split,label,image,mask"]
    for index, part in enumerate(("train", "test")):
        rows.append(f"part/Data/Images/Normal/{index:04d}.JPG,normal,")
        split.append(f"part,{part},normal,part/Data/Images/Normal/{index:04d}.JPG,")
    for index, label in enumerate(("dent", '"dent,scratch"')):
        image(folder / "Data" / "Images" / "Anomaly" / f"{index:03d}.JPG", 9 + index)
        mask(folder / "Data" / "Masks" / "Anomaly" / f"{index:03d}.png", BOX, 1 + index)
        rows.append(f"part/Data/Images/Anomaly/{index:03d}.JPG,{label},part/Data/Masks/Anomaly/{index:03d}.png")
    text(folder / "image_anno.csv", "\n".join(rows))
    text(folder.parent / "split_csv" / "1cls.csv", "\n".join(split))


def two_folders(folder: Path) -> None:
    for index in range(5):
        image(folder / "normal" / f"{index}.jpg", index)
    image(folder / "dent" / "a.png", 10)
    mask(folder / "dent" / "a_mask.png", BOX)


def masks_in_a_folder(folder: Path) -> None:
    image(folder / "OK" / "0.png", 0)
    image(folder / "dent" / "a.jpg", 10)
    mask(folder / "masks" / "a.png", BOX)


def twins(folder: Path) -> None:
    """The layout of the Magnetic Tile Defect set."""
    image(folder / "MT_Free" / "good" / "0.jpg", 0)
    image(folder / "MT_x" / "dent" / "Imgs" / "exp1.jpg", 10)
    mask(folder / "MT_x" / "dent" / "Imgs" / "exp1.png", BOX)


def class_ids(folder: Path) -> None:
    for index in range(3):
        image(folder / "images" / f"{index}.png", index)
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask(folder / "masks" / "0.png", BOX, 2)
    ids[BOX], ids[0, 0], ids[:, -1] = 2, 1, 255  # a void column
    Image.fromarray(ids).save(folder / "masks" / "1.png")
    mask(folder / "masks" / "2.png", BOX & False)
    text(folder / "classes.txt", "spot\ndent\n")


CASES: dict[str, tuple[Callable[[Path], None], str, list[np.ndarray], int, int]] = {
    # name: how it is made, what the report calls it, masks of the dents, normal images to train and to test
    "labelme": (labelme, "LabelMe", [BOX, BOX], 4, 1),
    "coco": (coco, "COCO", [BOX, RING], 3, 0),
    "yolo": (yolo, "YOLO segmentation", [BOX], 2, 1),
    "cvat": (cvat, "CVAT for images", [BOX, RING], 1, 0),
    "voc": (voc, "Pascal VOC", [BOX], 1, 1),
    "loco": (loco, "MVTec LOCO", [BOX], 2, 1),
    "mvtec_3d": (mvtec_3d, "MVTec 3D-AD", [BOX], 1, 1),
    "btad": (btad, "MVTec AD, normal images in 'ok'", [BOX], 1, 1),
    "visa": (visa, "VisA", [BOX], 1, 1),
    "two_folders": (two_folders, "folders of images with masks", [BOX], 4, 1),
    "masks_in_a_folder": (masks_in_a_folder, "folders of images with masks", [BOX], 1, 0),
    "twins": (twins, "folders of images with masks", [BOX], 1, 0),
    "class_ids": (class_ids, "images with masks of class ids", [BOX, BOX], 1, 0),
}


def load(root: Path, split: SplitSettings = ALL_TRAIN) -> AnomalyDataset:
    return load_dataset(root, "part", split)


@pytest.mark.parametrize("name", CASES)
def test_each_form_is_recognised_and_drawn_exactly(name: str, tmp_path: Path) -> None:
    make, form, expected, train, test = CASES[name]
    (tmp_path / "part").mkdir()
    make(tmp_path / "part")
    dataset = load(tmp_path)
    assert dataset.form == form and f"; read as {form}" in dataset.describe()
    assert (len(dataset.normals), len(dataset.test_normals)) == (train, test)
    drawn = [pair.read_mask()[0].numpy().astype(bool) for pair in dataset.defect_type("dent").train]
    assert len(drawn) == len(expected)
    assert all(np.array_equal(one, other) for one, other in zip(drawn, expected, strict=True))


def test_several_types_of_one_image_are_pairs_of_their_own(tmp_path: Path) -> None:
    labelme(tmp_path / "part")
    dataset = load(tmp_path)
    spot = dataset.defect_type("spot").train[0]
    assert spot.image_path == dataset.defect_type("dent").train[1].image_path
    # a point at (1.5, 1.5) is a disc of diameter 10 around it: centres of pixels at most 5 away
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    assert np.array_equal(spot.read_mask()[0].numpy() > 0, np.hypot(x - 1, y - 1) <= 5)


def test_labelme_rectangles_circles_lines_and_bitmaps(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    encoded = io.BytesIO()
    Image.fromarray(RING[4:10, 5:13]).save(encoded, format="PNG")
    bitmap = base64.b64encode(encoded.getvalue()).decode()
    shapes = [
        {"label": "box", "points": [[13, 10], [5, 4]], "shape_type": "rectangle"},
        {"label": "ring", "points": [[5, 4], [12, 9]], "shape_type": "mask", "mask": bitmap},
        {"label": "disc", "points": [[12, 8], [12, 4]], "shape_type": "circle"},
        {"label": "line", "points": [[2, 8], [22, 8]], "shape_type": "line"},
        {"label": "thin", "points": [[3.2, 3.1], [9.3, 3.2], [9.3, 3.3]], "shape_type": "polygon"},
        {"label": "_background_", "points": CORNERS, "shape_type": "polygon"},
    ]
    image(folder / "good" / "0.png", 0)
    image(folder / "a.png", 1)
    text(folder / "a.json", json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    dataset = load(tmp_path)
    drawn = {kind.defect: kind.train[0].read_mask()[0].numpy() > 0 for kind in dataset.types}
    assert sorted(drawn) == ["box", "disc", "line", "ring", "thin"]
    assert np.array_equal(drawn["box"], BOX) and np.array_equal(drawn["ring"], RING)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert np.array_equal(drawn["disc"], np.hypot(x - 12, y - 8) < 4)
    assert np.array_equal(np.flatnonzero(drawn["line"][:, 10]), np.arange(3, 13))  # 10 px wide around y = 8
    assert drawn["thin"].sum() >= 6  # encloses no centre of a pixel, yet is not lost
    assert any("1 rectangles are used as masks" in notice for notice in dataset.notices)


def test_rings_of_coco_text_and_of_several_files(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    # cocoapi's text of 84 zeros, 8 columns of 6 ones with 10 zeros between them, and 182 zeros (pycocotools 2.0.10)
    packed = "d26:" + "0" * 13 + "\\5"
    for part, index in (("train", 0), ("val", 1)):
        image(folder / part / f"{index}.png", index)
        image(folder / part / f"n{index}.png", 8 + index)
        content: dict[str, Any] = {
            "images": [{"id": 1, "file_name": f"{index}.png"}, {"id": 2, "file_name": f"n{index}.png"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "segmentation": {"counts": packed, "size": [16, 24]}}
            ],
            "categories": [{"id": 1, "name": "dent"}],
        }
        text(folder / part / "_annotations.coco.json", json.dumps(content))
    dataset = load(tmp_path)
    assert [pair.name for pair in dataset.defect_type("dent").train] == ["0", "1"]
    assert all(np.array_equal(p.read_mask()[0].numpy() > 0, BOX) for p in dataset.defect_type("dent").train)
    assert [path.name for path in (*dataset.normals, *dataset.test_normals)] == ["n0.png", "n1.png"]


def test_labels_for_another_size_are_refused_with_both_sizes(tmp_path: Path) -> None:
    labelme(tmp_path / "part")
    path = tmp_path / "part" / "json" / "d0.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "imageHeight": WIDTH, "imageWidth": HEIGHT}))
    with pytest.raises(DatasetError, match=r"d0\.json: drawn for 16x24 px, but d0\.png has 24x16 px\."):
        load(tmp_path)


def test_labels_of_the_stored_pixels_turn_with_their_image(tmp_path: Path) -> None:
    """An image of 24 x 16 stored pixels that is shown upright as 16 x 24; LabelMe files of either."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    for name, corners, size in (
        ("stored", CORNERS, (HEIGHT, WIDTH)),
        ("shown", [[HEIGHT - y, x] for x, y in CORNERS], (WIDTH, HEIGHT)),
    ):
        folder = tmp_path / name / "part"
        image(folder / "good" / "0.png", 0)
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(folder / "a.png", exif=exif)
        shape = {"label": "dent", "points": corners, "shape_type": "polygon"}
        content = {"shapes": [shape], "imagePath": "a.png", "imageHeight": size[0], "imageWidth": size[1]}
        text(folder / "a.json", json.dumps(content))
        pair = load(tmp_path / name).defect_type("dent").train[0]
        assert np.array_equal(pair.read_mask()[0].numpy() > 0, np.rot90(BOX, -1))


def test_the_division_of_the_data_set_itself(tmp_path: Path) -> None:
    yolo(tmp_path / "part")
    shares = (tmp_path / "part" / "labels" / "train" / "0.txt").read_text()
    text(tmp_path / "part" / "labels" / "val" / "3.txt", shares)
    kind = load(tmp_path, SplitSettings("own")).defect_type("dent")
    assert kind.split_names == {"train": ["0"], "test": ["3"]}
    assert any("the split 'own' uses it" in notice for notice in load(tmp_path).notices)
    labelme(tmp_path / "other" / "part")
    with pytest.raises(DatasetError, match="'own' leaves no training pair"):
        load(tmp_path / "other", SplitSettings("own"))


def test_boxes_alone_are_no_masks(tmp_path: Path) -> None:
    coco(tmp_path / "part")
    path = tmp_path / "part" / "annotations" / "instances.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="2 annotations are boxes without segmentation"):
        load(tmp_path)
    yolo(tmp_path / "yolo" / "part")
    text(tmp_path / "yolo" / "part" / "labels" / "train" / "0.txt", "1 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DatasetError, match="1 labels are boxes"):
        load(tmp_path / "yolo")


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    labelme(tmp_path / "part")
    image(tmp_path / "part" / "photos" / "unlabelled.png", 77)
    notices = load(tmp_path).notices
    assert any("left out" in one and "1 files (photos/unlabelled.png)" in one for one in notices)


@pytest.mark.parametrize(
    ("make", "seen", "advice"),
    [
        (lambda folder: image(folder / "a.png", 0), r"the folder itself \(1 \.png\)", "train/good"),
        (lambda folder: text(folder / "notes" / "a.txt", "x"), r"notes/ \(1 \.txt\)", "no images"),
        (lambda folder: image(folder / "inner" / "train" / "good" / "0.png", 0), r"inner/train/good/", "one of inner"),
        (lambda folder: image(folder / "pics" / "0.png", 0), r"pics/ \(1 \.png\)", "MVTec layout"),
    ],
)
def test_a_wrong_layout_is_answered_with_what_was_seen(
    make: Callable[[Path], object], seen: str, advice: str, tmp_path: Path
) -> None:
    (tmp_path / "part").mkdir()
    make(tmp_path / "part")
    with pytest.raises(DatasetError, match=seen) as caught:
        load(tmp_path)
    assert advice in str(caught.value)


def test_damaged_label_files_are_named(tmp_path: Path) -> None:
    labelme(tmp_path / "part")
    text(tmp_path / "part" / "json" / "d1.json", '{"shapes": [')
    with pytest.raises(DatasetError, match=r"d1\.json: not a readable JSON file"):
        load(tmp_path)
    text(tmp_path / "part" / "json" / "d1.json", '{"shapes": [{"label": "x"}], "imagePath": "d1.png"}')
    with pytest.raises(DatasetError, match=r"d1\.json: a shape that cannot be read"):
        load(tmp_path)
    (tmp_path / "part" / "json" / "d1.json").unlink()
    text(tmp_path / "part" / "json" / "e.json", '{"shapes": [], "imagePath": "gone.png"}')
    with pytest.raises(DatasetError, match=r"e\.json: its image 'gone\.png' is not in"):
        load(tmp_path)


def test_ball_screws_load_as_their_owner_stored_them(shared_data: Path) -> None:
    from skimage.draw import polygon2mask

    dataset = load_dataset(shared_data, "ball_screw", ALL_TRAIN)
    assert (dataset.form, len(dataset.normals), len(dataset.test_normals)) == ("LabelMe", 48, 12)
    (kind,) = dataset.types
    assert (kind.key, len(kind.train)) == ("ball_screw/Pitting", 40)
    for pair in kind.train[::4]:
        shapes = json.loads(pair.mask_path.read_text())["shapes"]
        expected = np.zeros((460, 1130), bool)
        for shape in shapes:
            expected |= polygon2mask((460, 1130), np.array(shape["points"])[:, ::-1] - 0.5)
        drawn = pair.read_mask()[0].numpy() > 0
        assert expected.any() and (drawn & expected).sum() / (drawn | expected).sum() >= 0.98


def labelled(folder: Path, *shapes: dict[str, Any]) -> None:
    """An image with these shapes beside a normal one, as LabelMe stores them."""
    image(folder / "good" / "0.png", 0)
    image(folder / "a.png", 1)
    text(folder / "a.json", json.dumps({"shapes": list(shapes), "imagePath": "a.png"}))


def test_every_point_counts_and_what_has_no_area_is_said(tmp_path: Path) -> None:
    spots = [[6.5, 8.5], [17.5, 8.5]]
    labelled(tmp_path / "part", {"label": "pit", "points": spots, "shape_type": "points"})
    dataset = load(tmp_path)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    discs = (np.hypot(x - 6, y - 8) <= 5) | (np.hypot(x - 17, y - 8) <= 5)
    assert np.array_equal(dataset.types[0].train[0].read_mask()[0].numpy() > 0, discs)
    assert any("1 lines and points are drawn 10 px wide" in notice for notice in dataset.notices)
    cvat = tmp_path / "cvat" / "part"
    points = ";".join(f"{x},{y}" for x, y in spots)
    shape = f'<points label="pit" points="{points}"/>'
    rows = f'<image name="a.png" width="{WIDTH}" height="{HEIGHT}">{shape}</image><image name="n.png"/>'
    text(cvat / "annotations.xml", f"<annotations>{rows}</annotations>")
    image(cvat / "images" / "a.png", 1)
    image(cvat / "images" / "n.png", 0)
    dataset = load(tmp_path / "cvat")
    assert np.array_equal(dataset.types[0].train[0].read_mask()[0].numpy() > 0, discs)
    assert any("1 lines and points" in notice for notice in dataset.notices)


def test_a_polygon_of_two_points_is_a_mistake_in_every_form(tmp_path: Path) -> None:
    labelled(tmp_path / "part", {"label": "x", "points": CORNERS[:2], "shape_type": "polygon"})
    with pytest.raises(DatasetError, match=r"a\.json: .*polygon: 2 points"):
        load(tmp_path)


def test_an_image_without_shapes_outside_of_good_is_named(tmp_path: Path) -> None:
    labelled(tmp_path / "part", {"label": "dent", "points": CORNERS, "shape_type": "polygon"})
    image(tmp_path / "part" / "forgotten.png", 2)
    text(tmp_path / "part" / "forgotten.json", json.dumps({"shapes": [], "imagePath": "forgotten.png"}))
    dataset = load(tmp_path)
    assert any("1 images whose label file has no shapes" in one and "forgotten.png" in one for one in dataset.notices)


def test_annotations_of_no_category_or_image_are_named(tmp_path: Path) -> None:
    coco(tmp_path / "part")
    path = tmp_path / "part" / "annotations" / "instances.json"
    content = json.loads(path.read_text())
    first = content["annotations"][0]
    content["annotations"] = [{**first, "category_id": 77}, {**first, "id": 99, "image_id": 4242}]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError) as caught:
        load(tmp_path)
    assert "no category has the id 77" in str(caught.value) and "image_id 4242" in str(caught.value)


def yolo_of(folder: Path, line: str, names: str = "") -> None:
    image(folder / "images" / "a.png", 1)
    image(folder / "images" / "n.png", 0)
    text(folder / "labels" / "a.txt", f"{line}\n")
    if names:
        text(folder / "data.yaml", names)


def test_names_alone_in_a_yaml_file_are_those_of_the_classes(tmp_path: Path) -> None:
    corners = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in CORNERS)
    for number, names in enumerate(("names: [dent]", "names:\n  0: dent")):
        yolo_of(tmp_path / str(number) / "part", f"0 {corners}", names)
        dataset = load(tmp_path / str(number))
        assert [kind.defect for kind in dataset.types] == ["dent"]
        assert np.array_equal(dataset.types[0].train[0].read_mask()[0].numpy() > 0, BOX)
    yolo_of(tmp_path / "none" / "part", f"0 {corners}")
    dataset = load(tmp_path / "none")
    assert [kind.defect for kind in dataset.types] == ["class 0"]
    assert any("no names of the classes" in notice for notice in dataset.notices)
    yolo_of(tmp_path / "beyond" / "part", f"3 {corners}", "names: [dent]")
    with pytest.raises(DatasetError, match=r"a\.txt line 1: class 3 has no name, the names are those of 0 to 0"):
        load(tmp_path / "beyond")


@pytest.mark.parametrize("line", ["crack 0.1 0.1 0.2 0.2 0.3 0.1", "0 nan 0.1 0.2 0.2 0.3 0.1"])
def test_a_line_of_yolo_that_is_no_numbers_is_named(line: str, tmp_path: Path) -> None:
    yolo_of(tmp_path / "part", line)
    with pytest.raises(DatasetError, match=r"a\.txt line 1: not numbers"):
        load(tmp_path)
