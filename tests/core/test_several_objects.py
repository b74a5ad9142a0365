"""Several objects in one training: one spatial encoder, and each learned as well as alone."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.data.merging import merge_datasets
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.data.training import scale_lines, training_files, training_views
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings


def write_object(root: Path, name: str, light: int) -> AnomalyDataset:
    rng = np.random.default_rng(light)
    for part in ("train/good", "test/dent", "ground_truth/dent"):
        (root / name / part).mkdir(parents=True)
    for number in range(2):
        image = rng.integers(light, light + 20, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / name / "train" / "good" / f"{number}.png")
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[10:40, 20:50] = 255
        Image.fromarray(np.where(mask[..., None] > 0, 250, image).astype(np.uint8)).save(
            root / name / "test" / "dent" / f"{number}.png"
        )
        Image.fromarray(mask).save(root / name / "ground_truth" / "dent" / f"{number}_mask.png")
    return load_dataset(root, name, SplitSettings("first n", 2))


def test_two_objects_have_one_encoder_and_are_learned_as_alone(tmp_path: Path) -> None:
    denoiser = LdmDenoiser.random(0, context_dim=32)
    own = [write_object(tmp_path, name, light) for name, light in (("cup", 60), ("plate", 150))]
    merged = merge_datasets(own)
    assert [kind.key for kind in merged.types] == ["cup/dent", "plate/dent"] and merged.object == "cup + plate"
    assert len(merged.normals) == 4 and merged.split_rule == "first n" and merged.split_options == {"count": 2}
    names = training_files(merged)
    assert len(names) == 8 and all("/ground_truth/" in name or "/test/" in name for name in names)

    def losses(dataset: AnomalyDataset, steps: int) -> tuple[list[float], object]:
        settings = InversionSettings(steps=steps, batch_size=4, resolution=64, augmented_copies=1)
        trained = AnomalyTrainer(denoiser, training_views(dataset.types, 64), settings).run()
        return list(trained.losses), trained.bundle

    # Types take turns within a batch, so 60 steps of both are 30 of each.
    together, bundle = losses(merged, 60)
    assert bundle.types == ("cup/dent", "plate/dent") and bundle.spatial_encoder is not None  # type: ignore[attr-defined]
    alone = [statistics.fmean(losses(one, 30)[0]) for one in own]
    assert statistics.fmean(together) == pytest.approx(statistics.fmean(alone), rel=0.1)


def test_what_cannot_be_merged_is_named(tmp_path: Path) -> None:
    one = write_object(tmp_path, "cup", 60)
    with pytest.raises(InputError, match="at least two"):
        merge_datasets([one])
    with pytest.raises(InputError, match="cup/dent"):
        merge_datasets([one, one])


def test_sizes_and_the_proposed_scale_are_told(shared_data: Path) -> None:
    dataset = load_dataset(shared_data, "ball_screw", SplitSettings("random", 13))
    text = "\n".join(scale_lines(dataset))
    assert "images 1130x460 px" in text and "median" in text and "windows of" in text
    bottle = load_dataset(shared_data, "bottle", SplitSettings())
    assert "whole images" in "\n".join(scale_lines(bottle))
