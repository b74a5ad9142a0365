"""Images of any size, aspect and depth, from masks through sampling to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.data.decoding import decode
from anomalydiffusion_core.data.export import ExportSettings, PairBatch, export_batch
from anomalydiffusion_core.data.image_form import ImageForm
from anomalydiffusion_core.data.images import read_image
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.data.selection import NormalSettings
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.masks.framing import FramedMask, on_whole_images, scattered
from anomalydiffusion_core.masks.procedural import KINDS, AreaDistribution, procedural_masks
from anomalydiffusion_core.masks.sources import MaskOrder, drawn_masks, varied_shapes
from anomalydiffusion_core.masks.variation import VariationSettings
from anomalydiffusion_core.sampling.generation import PairGeneration
from anomalydiffusion_core.sampling.run import BlendingSettings
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.scale import TrainedView


def square(size: tuple[int, int], top: int, left: int, side: int) -> torch.Tensor:
    mask = torch.zeros(1, *size)
    mask[:, top : top + side, left : left + side] = 1
    return mask


def test_shapes_keep_their_pixels_and_their_relative_place() -> None:
    shape = FramedMask.of(square((100, 200), 90, 0, 10))  # lower left corner
    assert torch.equal(shape.on((100, 200))[0], square((100, 200), 90, 0, 10))
    assert torch.equal(shape.on((300, 50))[0], square((300, 50), 290, 0, 10))
    small = shape.on((5, 80))[0, 0]
    assert small[:, :5].all() and small.sum() == 25


def test_masks_of_windows_get_their_size_in_image_pixels() -> None:
    masks = [square((64, 64), 10, 20, 32)] * 20
    found = scattered(masks, (460, 1130), 0.25, seed=3)
    assert {shape.pixels.shape for shape in found} == {(8, 8)} and len({shape.left for shape in found}) > 15
    assert [shape.left for shape in scattered(masks[:2], (460, 1130), 0.25, seed=4)] == [x.left for x in found[1:3]]
    view = TrainedView(False, 64, 144, 6.25, 4.4, 6.25, 40, (400, 900))
    whole = on_whole_images([square((64, 144), 16, 36, 16)], view, (400, 900), 0)[0]
    assert (whole.top, whole.left, whole.pixels.shape) == (100, 225, (100, 100))


@pytest.mark.parametrize("kind", ["grey16", "grey12", "colour16", "grey8", "colour8"])
def test_samples_outside_the_mask_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    full = {"16": 65535, "12": 4095, "8": 255}["".join(c for c in kind if c.isdigit())]
    shape = (60, 90, 3) if kind.startswith("colour") else (60, 90)
    samples = rng.integers(0, full, shape, endpoint=True).astype(np.uint8 if full == 255 else np.uint16)
    source = tmp_path / ("own.tif" if kind == "colour16" else "own.png")
    if kind == "colour16":
        import tifffile

        tifffile.imwrite(source, samples, photometric="rgb")
    else:
        Image.fromarray(samples).save(source)
    bits = full.bit_length()
    normal, mask = read_image(source, bits)[None], square((60, 90), 20, 30, 15)[None]
    image = torch.where(mask > 0, torch.full_like(normal, 0.25), normal)
    batch = PairBatch("part/dent", image, mask, normal, None, ImageForm(bits, grey=samples.ndim == 2))
    line = export_batch(tmp_path / "pairs", batch, ExportSettings())[0]
    assert line["outside_max_abs_diff"] == 0
    written, kept = (decode(tmp_path / "pairs" / line[part]) for part in ("image", "normal"))
    assert written.dtype == samples.dtype and written.shape == samples.shape and np.array_equal(kept, samples)
    inside = mask[0, 0].numpy() > 0
    assert np.array_equal(written[~inside], samples[~inside])
    assert set(np.unique(written[inside]).tolist()) == {round(0.25 * full)}
    pair = load_exported(tmp_path / "pairs")[0]
    assert torch.equal(
        read_image(pair.image, bits)[:, ~torch.from_numpy(inside)], normal[0][:, ~torch.from_numpy(inside)]
    )


def oblong_data(root: Path) -> None:
    """Normal images and defects of two sizes, 12 bits grey."""
    rng = np.random.default_rng(0)
    for part in ("train/good", "test/pit", "ground_truth/pit"):
        (root / "screw" / part).mkdir(parents=True)
    for number in range(4):
        size = (70, 150) if number % 2 else (90, 130)
        samples = rng.integers(0, 4095, size).astype(np.uint16)
        samples[0, 0] = 4095
        for part in ("train/good", "test/pit"):
            Image.fromarray(samples + np.uint16(part == "test/pit")).save(root / "screw" / part / f"{number}.png")
        mask = np.zeros(size, dtype=np.uint8)
        mask[10 : 20 + number, 30 : 40 + number] = 255
        Image.fromarray(mask).save(root / "screw" / "ground_truth" / "pit" / f"{number}_mask.png")


def test_pairs_on_images_of_several_sizes_one_at_a_time(tmp_path: Path) -> None:
    oblong_data(tmp_path / "data")
    dataset = load_dataset(tmp_path / "data", "screw", SplitSettings("first n", 3))
    denoiser = LdmDenoiser.random(0, context_dim=32)
    view = TrainedView(True, 32, 32, 0.5, 0.4, 0.6, 10, (90, 130))
    rows = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    positive = ContextConditioning(rows, torch.ones(4, dtype=torch.bool), None, 32, view=view)
    generation = PairGeneration(
        SchedulerSampler(denoiser),
        dataset,
        ["screw/pit"],
        lambda key: varied_shapes(dataset, key, MaskOrder(5, 0, 1), VariationSettings()),
        lambda key, masks: positive,
        normals=NormalSettings(count=5, size=0),
        sampling=BlendingSettings(sampling=SamplingSettings(steps=1, cfg=1.0, batch_size=4)),
    )
    done = generation.run(tmp_path / "pairs", {})
    assert len(done.exported.lines) == 5 and done.exported.outside == 0
    sizes = set()
    for pair in load_exported(tmp_path / "pairs"):
        assert pair.normal is not None
        image, normal, inside = decode(pair.image), decode(pair.normal), decode(pair.mask)[..., :].reshape(-1) > 0
        originals = [decode(path) for path in dataset.normals]
        assert any(np.array_equal(normal, one) for one in originals) and image.dtype == np.uint16
        assert np.array_equal(image.reshape(-1)[~inside], normal.reshape(-1)[~inside])
        assert (image.reshape(-1)[inside] != normal.reshape(-1)[inside]).any()
        sizes.add(image.shape)
    assert sizes == {(70, 150), (90, 130)}


@pytest.mark.parametrize("kind", KINDS)
def test_procedural_masks_have_any_aspect_and_the_wanted_area(kind: str) -> None:
    masks = procedural_masks(kind, 8, (60, 200), 1, AreaDistribution(0.02, 0.02))
    assert masks.shape == (8, 1, 60, 200)
    assert set(masks.sum(dim=(1, 2, 3)).tolist()) == {0.02 * 60 * 200}
    assert masks[..., 100:].any() and masks[..., :100].any()  # all of the image is used
    whole = procedural_masks(kind, 1, (12, 90), 1, AreaDistribution(1, 1))
    assert whole.min() == 1


def test_blobs_are_as_high_as_wide_on_an_oblong_image() -> None:
    masks = procedural_masks("blob", 60, (100, 300), 0, AreaDistribution(0.01, 0.01))
    sides = [torch.stack([part.max() - part.min() + 1 for part in mask[0].nonzero(as_tuple=True)]) for mask in masks]
    high, wide = torch.stack(sides).float().mean(dim=0)
    assert 0.85 < high / wide < 1.18  # a stretched one would have a third


def test_procedural_masks_without_a_size_take_that_of_the_training_masks(tmp_path: Path) -> None:
    oblong_data(tmp_path / "data")
    data = load_dataset(tmp_path / "data", "screw", SplitSettings("first n", 1))
    masks, _ = drawn_masks("blob", MaskOrder(2, 0, 1), AreaDistribution(), data)
    assert masks.shape == (2, 1, 90, 130)
    assert drawn_masks("blob", MaskOrder(2, 0, 1), AreaDistribution(), data, frame=(40, 64))[0].shape[2:] == (40, 64)
    with pytest.raises(InputError, match="size: is 0"):
        drawn_masks("blob", MaskOrder(2, 0, 1), AreaDistribution())
    mixed = load_dataset(tmp_path / "data", "screw", SplitSettings("first n", 3))
    with pytest.raises(InputError, match="size: is 0"):
        drawn_masks("blob", MaskOrder(2, 0, 1), AreaDistribution(), mixed)
