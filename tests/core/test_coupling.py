"""What a user must not have to notice: foreign conditioning, faded defects, brightness that is no defect."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.bundles.bundle import AnomalyBundle
from anomalydiffusion_core.bundles.conditioning import anomaly_conditioning
from anomalydiffusion_core.conditioning.spatial_encoder import build_spatial_encoder
from anomalydiffusion_core.evaluation.generation.scores import inception_score
from anomalydiffusion_core.evaluation.localization.testing import ScoredImages
from anomalydiffusion_core.evaluation.metrics.pixels import StreamingPixelMetrics
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.sampling.effect import effect_score
from anomalydiffusion_core.sampling.run import BlendedSampling, BlendingSettings
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.sampling.windows import CropSettings


@pytest.fixture(scope="module")
def model() -> LdmDenoiser:
    return LdmDenoiser.random(0, context_dim=32)


@pytest.fixture(scope="module")
def bundle() -> AnomalyBundle:
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    encoder = build_spatial_encoder("light", 2, 32, seed=5).eval().requires_grad_(False)
    return AnomalyBundle("anomaly", {"part/dot": rows}, encoder, {"settings": {"resolution": 64}})


def _masks(*lefts: int, width: int = 24) -> Tensor:
    masks = torch.zeros(len(lefts), 1, 64, 64)
    for mask, left in zip(masks, lefts, strict=True):
        mask[:, 8:40, left : left + width] = 1
    return masks


SETTINGS = BlendingSettings(
    sampling=SamplingSettings(3, 2, cfg=1.0), window=CropSettings(crop="off"), control_samples=0
)
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_conditioning_of_other_masks_is_made_anew(model: LdmDenoiser, bundle: AnomalyBundle) -> None:
    sampling, drawn = BlendedSampling(SchedulerSampler(model), SETTINGS), _masks(30, 4)
    right = sampling.run(IMAGE, drawn, anomaly_conditioning(bundle, "part/dot", drawn))
    assert "made anew" not in right.report
    # Other masks, the same in another order, and one row for two masks.
    for wrong in (_masks(2, 6), drawn.flip(0), drawn[:1]):
        made = sampling.run(IMAGE, drawn, anomaly_conditioning(bundle, "part/dot", wrong))
        assert "made anew" in made.report
        assert torch.equal(made.images, right.images)
    # One mask on two images is one mask, whichever way it is given.
    two = IMAGE.expand(2, -1, -1, -1)
    assert "made anew" not in sampling.run(two, drawn[:1], anomaly_conditioning(bundle, "part/dot", drawn[:1])).report


def test_a_wide_feather_and_weak_samplers_are_told(model: LdmDenoiser, bundle: AnomalyBundle) -> None:
    line = _masks(20, width=3)
    positive = anomaly_conditioning(bundle, "part/dot", line)
    finish = replace(SETTINGS.finish, feather=2)
    report = (
        BlendedSampling(SchedulerSampler(model), replace(SETTINGS, finish=finish)).run(IMAGE, line, positive).report
    )
    assert "feather 2 is wider than 1 of 1 masks" in report
    finish = replace(SETTINGS.finish, feather=1)
    report = (
        BlendedSampling(SchedulerSampler(model), replace(SETTINGS, finish=finish)).run(IMAGE, line, positive).report
    )
    assert "feather" not in report and "half of the effect" not in report
    slow = replace(SETTINGS, sampling=SamplingSettings(3, 2, cfg=1.0, sampler_name="ddim"))
    assert "the sampler ddim" in BlendedSampling(SchedulerSampler(model), slow).run(IMAGE, line, positive).report


def test_a_brightness_shift_of_the_whole_image_is_no_effect() -> None:
    normal, mask = torch.full((1, 3, 32, 32), 0.4), torch.zeros(1, 1, 32, 32)
    mask[..., 10:20, 10:20] = 1
    brighter = normal + 20 / 255
    assert float(effect_score(brighter, normal, normal, mask).effect) == pytest.approx(0, abs=1e-4)
    # A defect on top of the shift keeps its own size, and one on the image itself too.
    assert float(effect_score(brighter + mask * 50 / 255, normal, normal, mask).effect) == pytest.approx(50, abs=1e-3)
    assert float(effect_score(normal + mask * 50 / 255, normal, normal, mask).effect) == pytest.approx(50, abs=1e-3)


def test_without_good_images_image_metrics_are_undefined() -> None:
    maps, masks = np.random.default_rng(0).random((3, 32, 32), np.float32), np.zeros((3, 32, 32), bool)
    masks[:, 4:9, 4:9] = True
    pixels = StreamingPixelMetrics()
    for values, mask in zip(maps, masks, strict=True):
        pixels.update(values, mask)
    found = ScoredImages(maps, masks, maps.mean(axis=(1, 2)), pixels).measure()
    assert math.isnan(found.image_auroc) and math.isnan(found.image_ap) and math.isnan(found.image_f1)
    assert 0 < found.pixel_ap < 1


def test_too_few_images_leave_only_the_inception_score_undefined() -> None:
    assert all(math.isnan(value) for value in inception_score(torch.randn(3, 10), 4))


class Uncapped(Quiet):
    """Counts beyond its total, too."""

    def at(self, done: int, preview: object = None) -> None:
        self.done = done


def test_a_long_thin_line_is_drawn_in_tiles(model: LdmDenoiser, bundle: AnomalyBundle) -> None:
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, 30, 2:62] = 1  # 60 x 1 px
    masks[1, :, 20:40, 20:40] = 1
    settings = BlendingSettings(
        sampling=SamplingSettings(0, 2, 1.0), window=CropSettings(crop_margin=7, crop_size=32, crop_cells=4)
    )
    positive = replace(anomaly_conditioning(bundle, "part/dot", masks), view=None)
    counted: list[Uncapped] = []

    def make(total: int = 0) -> Uncapped:
        counted.append(Uncapped(total))
        return counted[-1]

    both = BlendedSampling(SchedulerSampler(model), settings, make).run(IMAGE, masks, positive)
    line, square = both.records
    # 1 px with 7 px around is 15 px, of which 3 are shared: every 12 px another tile, 32 px a side.
    assert line["tiles"] == 5 and line["scale"] == pytest.approx(15 / 32, abs=1e-3)
    assert "tiles" not in square and square["window"] is None
    assert line["outside_max_abs_diff"] == 0 and "1 long thin masks in 5 tiles along them" in both.report
    assert counted[0].done == counted[0].total, "each tile counts as a sample"
    own = replace(anomaly_conditioning(bundle, "part/dot", masks[:1]), view=None)
    alone = BlendedSampling(SchedulerSampler(model), settings).run(IMAGE, masks[:1], own)
    assert (alone.images[0] - both.images[0]).abs().max() <= 1 / 255, "a sample does not depend on the others"
