"""Real images of 900 x 900 and 384 x 288 pixels keep their size and aspect from training to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.bundles.conditioning import anomaly_conditioning
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.data.selection import NormalSettings
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.data.training import fit_view, training_views
from anomalydiffusion_core.masks.framing import on_whole_images
from anomalydiffusion_core.masks.procedural import AreaDistribution
from anomalydiffusion_core.masks.sources import MaskOrder, drawn_masks, varied_shapes
from anomalydiffusion_core.masks.variation import VariationSettings
from anomalydiffusion_core.sampling.generation import PairGeneration
from anomalydiffusion_core.sampling.run import BlendingSettings
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings

SIDE = 64
OBJECTS = {"bottle_full_size": (900, 900), "cookie": (384, 288)}

pytestmark = pytest.mark.core


def load(shared_data: Path, name: str) -> AnomalyDataset:
    return load_dataset(shared_data, name, SplitSettings("first n", 1))


def box(mask: torch.Tensor) -> tuple[int, int]:
    """Height and width of what is marked of [H, W]."""
    where = mask.nonzero()
    spans = where.amax(dim=0) - where.amin(dim=0) + 1
    return int(spans[0]), int(spans[1])


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("view", ["whole image", "windows"])
def test_training_reduces_both_sides_by_one_factor(shared_data: Path, name: str, view: str) -> None:
    dataset = load(shared_data, name)
    looked = training_views(dataset.types, SIDE, view)
    for kind in dataset.types:
        trained, first = looked.trained[kind.key], looked.views[kind.key][0]
        assert trained.images == OBJECTS[name]
        if view == "whole image":
            image, mask = fit_view(first, looked.canvas, mirror=False)
            known = image.sum(dim=0) > 0
            # an image of 900 x 900 or 384 x 288 pixels lies in the canvas with its own aspect, to a pixel at each end
            tall, wide = box(known)
            assert abs(tall * OBJECTS[name][1] / OBJECTS[name][0] - wide) <= 2.5
            real = box(kind.train[0].read_mask()[0])
            ratios = [learned / own for learned, own in zip(box(mask[0]), real, strict=True)]
            assert ratios[0] == pytest.approx(ratios[1], abs=2 / min(real))
        frame = first.frame
        assert frame.height / looked.canvas[0] == pytest.approx(frame.width / looked.canvas[1], rel=0.02)


@pytest.mark.parametrize("name", OBJECTS)
def test_masks_have_the_size_and_the_aspect_of_the_images(shared_data: Path, name: str) -> None:
    dataset, size = load(shared_data, name), OBJECTS[name]
    kind = dataset.types[0]
    plain = VariationSettings(max_degrees=0, min_scale=1, max_scale=1, max_shift=0, flips=False)
    shapes, _ = varied_shapes(dataset, kind.key, MaskOrder(1, 0, 0), plain)
    assert torch.equal(shapes[0].on(size)[0], kind.train[0].read_mask())
    drawn, _ = drawn_masks("blob", MaskOrder(2, 0, 0), AreaDistribution(), dataset, kind.key)
    assert tuple(drawn.shape[-2:]) == size
    # a square that a mask embedding draws on its canvas is a square on the image
    trained = training_views(dataset.types, SIDE, "whole image").trained[kind.key]
    square = torch.zeros(1, trained.height, trained.width)
    square[:, 20:40, 20:40] = 1
    tall, wide = box(on_whole_images([square], trained, size, 0)[0].on(size)[0, 0])
    scale = max(size[0] / trained.height, size[1] / trained.width)
    assert tall == wide == pytest.approx(20 * scale, abs=2)


@pytest.mark.parametrize("name", OBJECTS)
def test_pairs_differ_from_the_files_of_normal_images_inside_masks_only(
    shared_data: Path, name: str, tmp_path: Path
) -> None:
    dataset, size = load(shared_data, name), OBJECTS[name]
    denoiser = LdmDenoiser.random(0, context_dim=32)
    key = dataset.types[-1].key
    settings = InversionSettings(steps=1, batch_size=1, resolution=SIDE, augmented_copies=0)
    bundle = AnomalyTrainer(denoiser, training_views([dataset.types[-1]], SIDE), settings).run().bundle
    view = bundle.trained_view(key)
    assert view is not None and view.images == size
    generation = PairGeneration(
        SchedulerSampler(denoiser),
        dataset,
        [key],
        lambda key: varied_shapes(dataset, key, MaskOrder(2, 0, 0), VariationSettings()),
        lambda key, masks: anomaly_conditioning(bundle, key, masks),
        normals=NormalSettings(count=2, size=0),
        sampling=BlendingSettings(sampling=SamplingSettings(steps=1, cfg=1.0)),
    )
    done = generation.run(tmp_path / "pairs", {})
    assert len(done.exported.lines) == 2 and done.exported.outside == 0
    originals = [np.asarray(Image.open(path)) for path in dataset.normals]
    for pair, line in zip(load_exported(tmp_path / "pairs"), done.exported.lines, strict=True):
        image, mask = np.asarray(Image.open(pair.image)), np.asarray(Image.open(pair.mask)) > 0
        assert image.shape[:2] == mask.shape == size
        same = [(image == one).all(axis=2) for one in originals]
        assert any(one[~mask].all() and not one[mask].all() for one in same)
        assert line["settings"]["scale"] == pytest.approx(view.scale, rel=0.3)
