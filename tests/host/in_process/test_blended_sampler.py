"""Blended AAR KSampler: images of any size and number, and nothing changed outside of the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.mark.parametrize("height,width", [(64, 64), (50, 83), (41, 32)])
def test_outside_of_the_mask_nothing_changes_at_any_size(
    extension: Any, loaded: Any, bundle: Any, height: int, width: int
) -> None:
    image = torch.rand(1, height, width, 3)
    mask = torch.zeros(2, height, width)
    mask[0, 10:30, 5:20] = 1
    mask[1, 7, 9] = 1  # one pixel still makes a defect
    images, masks, latent, effects, report = extension.blend(loaded, bundle, image, mask).args
    assert images.shape == (2, height, width, 3)
    assert torch.equal(masks, mask)
    outside = (mask == 0)[..., None].expand_as(images)
    assert torch.equal(images[outside], image.expand_as(images)[outside])
    assert (images - image).abs().amax(dim=(1, 2, 3)).min() > 0.01
    assert latent["samples"].shape == (2, 4, -(-height // 8), -(-width // 8))
    assert [entry["seed"] for entry in effects] == [0, 1]
    assert all(entry["outside_max_abs_diff"] == 0 and entry["effect_score"] > 0 for entry in effects)
    assert "2 samples" in report


def test_batches_of_images_and_masks(extension: Any, loaded: Any, bundle: Any) -> None:
    images = torch.rand(3, 64, 64, 3)
    assert len(extension.blend(loaded, bundle, images, extension.box_mask()).args[0]) == 3
    assert len(extension.blend(loaded, bundle, images[:1], extension.box_mask(3)).args[0]) == 3
    all_three = extension.blend(loaded, bundle, images, extension.box_mask(3), batch_size=2).args[0]
    last = extension.blend(loaded, bundle, images[2:], extension.box_mask(3)[2:], seed=2).args[0]
    torch.testing.assert_close(all_three[2:], last, rtol=0, atol=1e-4)
    with pytest.raises(extension.errors.InputError, match="3 images and 2 masks"):
        extension.blend(loaded, bundle, images, extension.box_mask(2))


def test_sizes_of_masks(extension: Any, loaded: Any, bundle: Any) -> None:
    image = torch.rand(1, 64, 96, 3)
    result = extension.blend(loaded, bundle, image, extension.box_mask(size=(32, 48)))
    assert result.args[1].shape == (1, 64, 96)
    assert "the mask is 48x32 px, the image 96x64 px" in result.args[4]
    with pytest.raises(extension.errors.InputError, match="64x64 px, the image 96x64 px"):
        extension.blend(loaded, bundle, image, extension.box_mask())


def test_control_is_reported_beside_the_effect(extension: Any, loaded: Any, bundle: Any) -> None:
    image = torch.rand(1, 64, 64, 3)
    plain = extension.blend(loaded, bundle, image, extension.box_mask(3))
    result = extension.blend(loaded, bundle, image, extension.box_mask(3), control=loaded.normal, control_samples=2)
    assert torch.equal(result.args[0], plain.args[0])
    scores = [entry["control_score"] for entry in result.args[3]]
    assert scores[0] > 0 and scores[1] > 0 and scores[2] is None
    rows = [[loaded.empty[0][0].repeat(3, 1, 1), {}]]
    more = {"control": loaded.normal, "control_samples": 2, "cfg": 1.5, "negative": rows}
    assert "control, 2 samples" in extension.blend(loaded, bundle, image, extension.box_mask(3), **more).args[4]
    # a model of random weights draws the same noise whatever the caption says
    assert "control, 2 samples" in result.args[4] and "Warning" in result.args[4]


def test_sampler_refuses_what_cannot_work(extension: Any, loaded: Any, bundle: Any) -> None:
    image, mask = torch.rand(1, 64, 64, 3), extension.box_mask()
    for values, message in (
        ({"cfg": 2.0}, "cfg: 2 requires a negative"),
        ({"sampler_name": "nonsense"}, "sampler_name: unknown value 'nonsense'"),
        ({"reweighting": "nonsense"}, "reweighting: unknown value 'nonsense'"),
        ({"positive": [[torch.zeros(2, 12, 128), {}]]}, "has 2 rows for 1 samples"),
        ({"positive": [[torch.zeros(1, 77, 768), {}]]}, "its width is 768, the model's context has 128"),
    ):
        with pytest.raises(extension.errors.InputError, match=message):
            extension.blend(loaded, bundle, image, mask, **values)
