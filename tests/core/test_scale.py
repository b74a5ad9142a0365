"""The scale that defects are learned and drawn at: chosen, recorded, and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.bundles.bundle import AnomalyBundle, load_bundle
from anomalydiffusion_core.bundles.conditioning import anomaly_conditioning, on_canvas
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.data.training import fit_view, training_views
from anomalydiffusion_core.sampling.run import BlendedSampling, BlendingSettings
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.sampling.windows import CropSettings, Window, plan_windows
from anomalydiffusion_core.scale import WHOLE, WINDOWS, TrainedView, proposed_view, whole_canvas, window_scale
from anomalydiffusion_core.training.augment import WINDOW_MOVES, augment_view
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings


@pytest.fixture(scope="module")
def denoiser() -> LdmDenoiser:
    return LdmDenoiser.random(0, context_dim=32)


def write_dataset(root: Path, size: tuple[int, int], side: int, count: int = 4) -> AnomalyDataset:
    """Grey images with a bright square defect of ``side`` pixels, each at another place."""
    height, width = size
    rng = np.random.default_rng(1)
    for part in ("train/good", "test/pit", "ground_truth/pit"):
        (root / "screw" / part).mkdir(parents=True)
    for number in range(count):
        image = rng.integers(90, 110, (height, width, 1)).repeat(3, axis=2).astype(np.uint8)
        mask = np.zeros((height, width), dtype=np.uint8)
        top = (number * 37) % (height - side)
        left = width - side if number == 0 else (number * 91) % (width - side)  # one at the border
        mask[top : top + side, left : left + side] = 255
        Image.fromarray(image).save(root / "screw" / "train" / "good" / f"{number}.png")
        Image.fromarray(np.where(mask[..., None] > 0, 220, image).astype(np.uint8)).save(
            root / "screw" / "test" / "pit" / f"{number}.png"
        )
        Image.fromarray(mask).save(root / "screw" / "ground_truth" / "pit" / f"{number}_mask.png")
    return load_dataset(root, "screw", SplitSettings("first n", count))


def test_canvas_and_scale_by_hand() -> None:
    assert whole_canvas([(900, 900)], 256) == (256, 256)
    # 460 / 1130 of the area of 256 x 256: 163.3 x 401.2
    assert whole_canvas([(460, 1130)], 256) == (160, 400)
    # 19 px over a fifth of 256 px; 61 px over three quarters of it would allow 0.32
    assert window_scale([19.0], 256) == pytest.approx(19 / 51.2)
    # nine of ten defects fit: 120 px of ten on three quarters of the window
    assert window_scale([20.0] * 8 + [120.0] * 2, 256) == pytest.approx(120 / 192)
    assert window_scale([1.0], 256) == 1 / 8
    assert proposed_view([19.0], [(460, 1130)], 256) == WINDOWS
    assert proposed_view([200.0], [(900, 900)], 256) == WHOLE
    assert proposed_view([5.0], [(256, 256)], 256) == WHOLE  # nothing is made smaller


def test_windows_show_each_defect_at_one_scale_and_without_distortion(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, (230, 560), 12)
    looked = training_views(dataset.types, 64)
    trained = looked.trained["screw/pit"]
    # a defect of 12 px on 0.4 of 64 px: the least share that has the six cells of 48 px is more than the most
    assert looked.windows and looked.canvas == (64, 64) and trained.scale == pytest.approx(12 / 25.6, rel=0.02)
    for number, view in enumerate(looked.views["screw/pit"]):
        image, mask = fit_view(view, looked.canvas)
        rows, columns = (mask[0].amax(dim=axis).nonzero().flatten() for axis in (1, 0))
        spans = [int(found.max() - found.min()) + 1 for found in (rows, columns)]
        assert spans[0] == pytest.approx(25.6, abs=2) and spans[1] == pytest.approx(25.6, abs=2)
        assert float(image[:, mask[0] > 0].mean()) > 0.75 > 0.5 > float(image[:, mask[0] == 0].mean())
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            _, moved = augment_view(view, generator, looked.canvas, WINDOW_MOVES)
            # turned by up to 15 degrees a square keeps its area; the zoom is 0.9 to 1.1
            assert 0.75 < float(moved.sum()) / 25.6**2 < (1.3 if number else 1.8)


def test_whole_images_keep_their_aspect(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, (96, 240), 48)
    looked = training_views(dataset.types, 64, WHOLE)
    assert looked.canvas == (40, 104)
    scale = max(96 / 40, 240 / 104)
    assert looked.trained["screw/pit"].scale == pytest.approx(scale, rel=0.01)
    for view in looked.views["screw/pit"]:
        mask = fit_view(view, looked.canvas)[1]
        # mirrored defects at the border are labelled too, so the square is the smallest of what there is
        assert float(mask.sum()) == pytest.approx((48 / scale) ** 2, rel=0.12)


def test_a_bundle_records_its_scale(denoiser: LdmDenoiser, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, (230, 560), 12)
    settings = InversionSettings(steps=1, batch_size=1, resolution=64, augmented_copies=0)
    looked = training_views(dataset.types, 64, zooms={WINDOWS: (0.9, 1.1)})
    bundle: AnomalyBundle = AnomalyTrainer(denoiser, looked, settings).run().bundle
    bundle.save(tmp_path / "own.safetensors")
    view = load_bundle(tmp_path / "own.safetensors").trained_view("screw/pit")
    assert view is not None and view.windows and (view.height, view.width) == (64, 64) and view.images == (230, 560)
    assert view.low == pytest.approx(0.9 * view.scale, rel=0.05) and view.high == pytest.approx(
        1.1 * view.scale, rel=0.05
    )
    assert view.context == pytest.approx((64 * view.scale - 12) / 2, abs=1.5)
    assert "windows of 64x64 px" in bundle.summary()
    old = AnomalyBundle("anomaly", bundle.tokens, bundle.spatial_encoder, {**bundle.metadata, "scale": None})
    assert old.trained_view("screw/pit") is None and "scale not recorded" in old.summary()


def box(size: tuple[int, int], top: int, left: int, tall: int, wide: int) -> torch.Tensor:
    mask = torch.zeros(1, *size)
    mask[:, top : top + tall, left : left + wide] = 1
    return mask


SMALL = TrainedView(True, 64, 64, 0.5, 0.45, 0.55, 10, (400, 900))
LARGE = TrainedView(True, 64, 64, 4.0, 3.6, 4.4, 40, (400, 900))
ENTIRE = TrainedView(False, 64, 144, 6.25, 4.4, 6.25, 40, (400, 900))


def plan_window(mask: torch.Tensor, settings: CropSettings, downscale: int, view: TrainedView) -> Window | None:
    """The only window, None for the whole image."""
    windows = plan_windows(mask, settings, downscale, view)
    assert len(windows) <= 1
    return windows[0] if windows else None


def test_windows_are_enlarged_and_reduced_to_the_trained_scale() -> None:
    small = plan_window(box((400, 900), 100, 200, 8, 10), CropSettings(), 8, SMALL)
    assert small is not None and small.box == (88, 189, 32, 32) and small.sampled == (64, 64)
    large = plan_window(box((400, 900), 100, 200, 80, 100), CropSettings(), 8, LARGE)
    assert large is not None and large.box == (12, 122, 256, 256) and large.sampled == (64, 64)
    # 300 px of 4 px each and a margin of 32 px: a larger part at the same scale
    wide = plan_window(box((400, 900), 100, 200, 20, 300), CropSettings(), 8, LARGE)
    assert wide is not None and wide.width == 364 and wide.sampled == (64, 91)
    # twice the trained side is the most; beyond it the scale grows
    huge = plan_window(box((400, 900), 10, 10, 100, 800), CropSettings(), 8, LARGE)
    assert huge is not None and huge.sampled[1] == 128 and huge.scale == pytest.approx(864 / 128, rel=0.02)


def test_whole_images_are_reduced_as_in_training() -> None:
    window = plan_window(box((400, 900), 100, 200, 80, 100), CropSettings(crop_cells=2), 8, ENTIRE)
    assert window is not None and window.box == (0, 0, 400, 900) and window.sampled == (64, 144)
    # few cells: as near as augmentation came, 4.4 px
    near = plan_window(box((400, 900), 100, 200, 8, 8), CropSettings(), 8, ENTIRE)
    assert near is not None and near.scale == pytest.approx(4.4, rel=0.02) and near.sampled == (64, 144)
    assert plan_window(box((64, 144), 10, 10, 40, 40), CropSettings(), 8, ENTIRE) is None


def test_the_encoder_sees_masks_with_their_aspect() -> None:
    masks = torch.ones(1, 1, 50, 200)
    fitted = on_canvas(masks, (64, 64))[0, 0]
    assert fitted[24:40].all() and not fitted[:24].any() and not fitted[40:].any()


def test_sampling_at_native_scale_and_the_notice_of_a_forced_one(denoiser: LdmDenoiser, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, (230, 560), 12)
    settings = InversionSettings(steps=1, batch_size=1, resolution=64, augmented_copies=0)
    bundle = AnomalyTrainer(denoiser, training_views(dataset.types, 64), settings).run().bundle
    image = torch.rand(1, 3, 230, 560)
    mask = box((230, 560), 20, 500, 10, 14)[None]
    positive = anomaly_conditioning(bundle, "screw/pit", mask)

    def sampled(crop: CropSettings, conditioning: ContextConditioning = positive, pixels: torch.Tensor = image):  # type: ignore[no-untyped-def]
        own = BlendingSettings(sampling=SamplingSettings(steps=2, cfg=1.0), window=crop)
        return BlendedSampling(SchedulerSampler(denoiser), own).run(pixels, mask, conditioning)

    made = sampled(CropSettings())
    assert made.records[0]["scale"] == pytest.approx(12 / 25.6, rel=0.03) == made.records[0]["trained_scale"]
    assert made.images.shape == image.shape and not made.notices
    assert torch.equal(made.images[0][:, mask[0, 0] == 0], image[0][:, mask[0, 0] == 0])
    assert made.records[0]["outside_max_abs_diff"] == 0 and made.records[0]["effect_score"] > 0
    forced = sampled(CropSettings("off"))
    assert forced.records[0]["scale"] == 1.0
    assert any("at 1 to 1 image pixels" in text and "learned at 0.46" in text for text in forced.notices)
    old = AnomalyBundle("anomaly", bundle.tokens, bundle.spatial_encoder, {**bundle.metadata, "scale": None})
    plain = sampled(CropSettings(), anomaly_conditioning(old, "screw/pit", mask))
    assert any("does not record its scale" in text for text in plain.notices)
