"""Data sets written as each other: what comes back is what was there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from PIL.JpegImagePlugin import JpegImageFile
from real_data import REAL

from anomalydiffusion_core.data.convert import ConvertSettings, convert, open_source
from anomalydiffusion_core.data.formats.raster import Rings, fill, packed, runs_of, unpacked, unrolled
from anomalydiffusion_core.data.formats.tracing import keyholed, parts_of
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.errors import InputError

pytestmark = pytest.mark.core
ALL = SplitSettings("first n", 10000)


def _masks(dataset: AnomalyDataset) -> dict[str, np.ndarray]:
    return {
        f"{kind.defect}/{pair.name}": pair.read_mask()[0].numpy() > 0
        for kind in dataset.types
        for pair in (*kind.train, *kind.test)
    }


def _blots(seed: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Boxes upon each other, so that there are holes, islands in holes, and parts that touch at corners only."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(size, bool)
    for _ in range(12):
        y, x = generator.integers(0, size[0]), generator.integers(0, size[1])
        height, width = generator.integers(1, 16, 2)
        mask[y : y + height, x : x + width] ^= True
    mask[3, 3] = mask[4, 4] = True
    mask[20:34, 20:34] = True
    mask[24:30, 24:30] = False
    mask[26, 26] = True
    return mask


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """`part` in the MVTec layout with 3 + 2 normal images and 2 types of 4 images, the last one in both."""
    base = tmp_path / "part"
    number = 0
    for place, count in (("train/good", 3), ("test/good", 2), ("test/dent", 4), ("test/spot", 4)):
        for index in range(count):
            number += 1
            path = base / place / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            if place.endswith(("dent", "spot")):
                mask = base / "ground_truth" / path.parent.name / f"{index:03d}_mask.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(_blots(number).astype(np.uint8) * 255).save(mask)
    return base


def _round(source: Path, via: str, tmp_path: Path) -> AnomalyDataset:
    for place, target, form in ((source, tmp_path / via / "there", via), (tmp_path / via / "there", None, "mvtec")):
        settings = ConvertSettings(form)
        convert(open_source(place, settings, SplitSettings()), target or tmp_path / via / "back", settings)
    return load_dataset(tmp_path / via, "back", ALL)


@pytest.mark.parametrize("via", ["coco", "yolo"])
def test_masks_come_back_exactly_with_their_holes(via: str, source: Path, tmp_path: Path) -> None:
    before, after = load_dataset(tmp_path, "part", ALL), _round(source, via, tmp_path)
    known, found = _masks(before), _masks(after)
    assert list(known) == list(found)
    assert all(np.array_equal(known[key], found[key]) for key in known)
    assert any(part.holes for mask in known.values() for part in parts_of(mask))
    for name in ("normals", "test_normals"):
        old, new = getattr(before, name), getattr(after, name)
        assert [path.read_bytes() for path in old] == [path.read_bytes() for path in new]


def test_coco_is_what_pycocotools_reads(source: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    convert(open_source(source, ConvertSettings("coco"), SplitSettings()), tmp_path / "out", ConvertSettings("coco"))
    known = _masks(load_dataset(tmp_path, "part", ALL))
    kinds, seen = set(), 0
    for part in ("train", "test"):
        read = coco.COCO(str(tmp_path / "out" / "annotations" / f"instances_{part}.json"))
        names = {entry["id"]: entry["name"] for entry in read.loadCats(read.getCatIds())}
        for image in read.loadImgs(read.getImgIds()):
            assert (tmp_path / "out" / "images" / image["file_name"]).is_file()
            masks: dict[str, np.ndarray] = {}
            for entry in read.loadAnns(read.getAnnIds(imgIds=image["id"])):
                drawn = read.annToMask(entry).astype(bool)
                rows, columns = np.nonzero(drawn)
                box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert drawn.sum() == entry["area"] and box == entry["bbox"]
                kinds.add(type(entry["segmentation"]))
                name = names[entry["category_id"]]
                masks[name] = masks.get(name, np.zeros_like(drawn)) | drawn
            for name, mask in masks.items():
                seen += 1
                assert np.array_equal(mask, known[f"{name}/{Path(image['file_name']).stem}"])
    assert seen == len(known) and kinds == {list, dict}


def test_yolo_is_what_its_rules_say(source: Path, tmp_path: Path) -> None:
    settings = ConvertSettings("yolo")
    convert(open_source(source, settings, SplitSettings()), tmp_path / "out", settings)
    config = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert config == {"path": ".", "train": "images/train", "val": "images/test", "names": {0: "dent", 1: "spot"}}
    known, seen = _masks(load_dataset(tmp_path, "part", ALL)), 0
    for part in (config["train"], config["val"]):
        for path in (tmp_path / "out" / part).rglob("*.png"):
            # ultralytics: the last /images/ of the path becomes /labels/, the suffix .txt
            label = Path("/labels/".join(path.as_posix().rsplit("/images/", 1))).with_suffix(".txt")
            rows = [line.split() for line in label.read_text().splitlines()]
            assert rows or path.parent.name == "good"
            masks: dict[int, Image.Image] = {}
            for row in rows:
                values = np.array([float(number) for number in row[1:]])
                assert values.min() >= 0 and values.max() <= 1 and len(values) >= 8 and len(values) % 2 == 0
                drawn = masks.setdefault(int(row[0]), Image.new("1", (600, 400)))
                # an independent drawing at ten times the size, where outlines do not matter much
                ImageDraw.Draw(drawn).polygon([(x * 600 - 0.5, y * 400 - 0.5) for x, y in values.reshape(-1, 2)], 1)
            for number, canvas in masks.items():
                shrunk = np.asarray(canvas).reshape(40, 10, 60, 10).mean(axis=(1, 3)) > 0.5
                own = known[f"{config['names'][number]}/{path.stem}"]
                assert (shrunk & own).sum() / (shrunk | own).sum() >= 0.98
                seen += 1
    assert seen == len(known)
    # the lowest third of 4 is one image of each type
    assert len(list((tmp_path / "out" / "labels" / "train" / "dent").iterdir())) == 1


def test_anomalib_reads_the_folder_by_its_rules(source: Path, tmp_path: Path) -> None:
    """anomalib 2.x, make_folder_dataset: defects and masks are paired in the order of their paths; names must fit."""
    settings = ConvertSettings("mvtec")
    convert(open_source(source, settings, ALL), tmp_path / "out", settings)
    arguments = json.loads((tmp_path / "out" / "anomalib_folder.json").read_text())
    root = tmp_path / "out" / arguments["root"]

    def files(folders: list[str]) -> list[Path]:
        return sorted(path for folder in folders for path in (root / folder).glob("**/*") if path.is_file())

    images, masks = files(arguments["abnormal_dir"]), files(arguments["mask_dir"])
    assert len(images) == len(masks) == 8
    pairs = list(zip(images, masks, strict=True))
    assert all(image.stem in mask.stem and image.parent.name == mask.parent.name for image, mask in pairs)
    assert (len(files([arguments["normal_dir"]])), len(files([arguments["normal_test_dir"]]))) == (3, 2)
    assert set(arguments) == {"name", "root", "normal_dir", "abnormal_dir", "mask_dir", "normal_test_dir"}


def test_one_image_of_two_types_is_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    shapes = [
        {"label": name, "points": [[x, 5], [x + 8, 5], [x + 8, 20], [x, 20]], "shape_type": "polygon"}
        for name, x in (("dent", 5), ("spot", 30))
    ]
    for place in ("good", "labelled"):
        (folder / place).mkdir(parents=True)
        Image.new("RGB", (60, 40), "grey" if place == "good" else "red").save(folder / place / "a.png")
    (folder / "labelled" / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    convert(open_source(folder, ConvertSettings("coco"), ALL), tmp_path / "out", ConvertSettings("coco"))
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["train/good/a.png", "train/dent/a.png"]
    assert [(entry["image_id"], entry["category_id"], entry["area"]) for entry in content["annotations"]] == [
        (2, 1, 120),
        (2, 2, 120),
    ]
    assert content["annotations"][0]["segmentation"] == [[5, 5, 13, 5, 13, 20, 5, 20]]


def test_a_class_map_of_one_image_holds_all_of_its_types(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    shapes = [
        {"label": name, "points": [[x, 5], [x + 8, 5], [x + 8, 20], [x, 20]], "shape_type": "polygon"}
        for name, x in (("dent", 5), ("spot", 30))
    ]
    for place in ("good", "labelled"):
        (folder / place).mkdir(parents=True)
        Image.new("RGB", (60, 40), "grey" if place == "good" else "red").save(folder / place / "a.png")
    (folder / "labelled" / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    settings = ConvertSettings("mvtec", class_map=True)
    convert(open_source(folder, settings, ALL), tmp_path / "out", settings)
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["dent", "spot"]
    expected = np.zeros((40, 60), np.uint8)
    expected[5:20, 5:13], expected[5:20, 30:38] = 1, 2
    for name in ("dent", "spot"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "class_map" / name / "a.png")), expected)
    before, after = _masks(load_dataset(tmp_path, "part", ALL)), _masks(load_dataset(tmp_path, "out", ALL))
    assert sorted(after) == ["dent/a", "spot/a"] and all(np.array_equal(before[key], after[key]) for key in after)
    with pytest.raises(InputError, match="class_map: not with 'coco'"):
        ConvertSettings("coco", class_map=True)


def test_all_images_pass_one_codec(source: Path, tmp_path: Path) -> None:
    settings = ConvertSettings("mvtec", 85)
    convert(open_source(source, settings, ALL), tmp_path / "out", settings)
    tables = set()
    for path in (tmp_path / "out").rglob("*.jpg"):
        with Image.open(path) as image:
            assert isinstance(image, JpegImageFile)
            tables.add(tuple(tuple(table) for table in image.quantization.values()))
    reference = tmp_path / "reference.jpg"
    Image.new("RGB", (8, 8)).save(reference, quality=85)
    with Image.open(reference) as image:
        assert isinstance(image, JpegImageFile)
        assert tables == {tuple(tuple(table) for table in image.quantization.values())}
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 13
    before, after = _masks(load_dataset(tmp_path, "part", ALL)), _masks(load_dataset(tmp_path, "out", ALL))
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_depth_and_colour_mode_are_kept_and_turned_images_are_written_upright(source: Path, tmp_path: Path) -> None:
    deep = np.random.default_rng(1).integers(0, 4096, (40, 60), dtype=np.uint16)
    Image.fromarray(deep).save(source / "train" / "good" / "000.png")
    Image.new("L", (60, 40), 77).save(source / "train" / "good" / "001.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.random.default_rng(2).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    Image.fromarray(turned).save(source / "train" / "good" / "002.png", exif=exif)
    convert(open_source(source, ConvertSettings(), ALL), tmp_path / "out", ConvertSettings())
    out = tmp_path / "out" / "train" / "good"
    assert np.array_equal(np.asarray(Image.open(out / "000.png")), deep)
    assert Image.open(out / "001.png").mode == "L"
    with Image.open(out / "002.png") as upright:
        assert upright.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(upright), np.rot90(turned, -1))
    with pytest.raises(InputError, match=r"jpeg_quality: 000 has 16 bits, which JPEG cannot hold"):
        convert(open_source(source, ConvertSettings(), ALL), tmp_path / "jpeg", ConvertSettings("mvtec", 90))
    assert not (tmp_path / "jpeg").exists()
    with pytest.raises(InputError, match="is not empty, and nothing is overwritten"):
        convert(open_source(source, ConvertSettings(), ALL), tmp_path / "out", ConvertSettings())


def test_tracing_is_exact() -> None:
    for seed in range(60):
        generator = np.random.default_rng(seed)
        size = tuple(int(n) for n in generator.integers(1, 24, 2))
        mask = generator.random(size) < generator.choice([0.2, 0.5, 0.8, 1])
        runs = runs_of(mask.T.ravel())
        assert unpacked(packed(runs)) == runs
        assert np.array_equal(unrolled(runs, mask.size).reshape(size[::-1]).T, mask)
        separate = parts_of(mask, diagonal=False)
        assert all(len(part.outlines) == 1 for part in separate)
        assert np.array_equal(fill([Rings((keyholed(part),)) for part in separate], mask.shape), mask)
        whole = [Rings((*part.outlines, *part.holes)) for part in parts_of(mask)]
        assert np.array_equal(fill(whole, mask.shape), mask)


def test_polygons_are_filled_as_scikit_image_fills_them() -> None:
    if importlib.util.find_spec("skimage") is None:
        pytest.skip("scikit-image is not installed")
    from skimage.draw import polygon2mask

    for seed in range(20):
        points = np.random.default_rng(seed).uniform(-5, 45, (7, 2))  # x, y, partly outside
        expected = polygon2mask((40, 38), points[:, ::-1] - 0.5)
        assert np.array_equal(fill([Rings((points,))], (40, 38)), expected)


@pytest.mark.skipif(not (REAL / "bottle").is_dir(), reason=f"no real images at {REAL}")
@pytest.mark.parametrize("via", ["coco", "yolo"])
def test_all_masks_of_bottle_survive_the_round_trip(via: str, tmp_path: Path) -> None:
    part = tmp_path / "part"
    (part / "train" / "good").mkdir(parents=True)
    (part / "train" / "good" / "000.png").symlink_to(REAL / "bottle" / "train" / "good" / "000.png")
    for name in ("test", "ground_truth"):
        (part / name).symlink_to(REAL / "bottle" / name)
    known, found = _masks(load_dataset(tmp_path, "part", ALL)), _masks(_round(part, via, tmp_path))
    assert list(known) == list(found) and len(known) == 63
    for key, mask in known.items():
        assert (mask & found[key]).sum() / (mask | found[key]).sum() >= 0.98
        assert sum(len(part.holes) for part in parts_of(mask)) == sum(len(p.holes) for p in parts_of(found[key]))
