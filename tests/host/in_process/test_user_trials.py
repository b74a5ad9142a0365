"""Ten kinds of input at which comparable tools were seen to fail, each with inputs of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 88, 104, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["column", "diagonal", "dots"])
def test_thin_masks_do_not_vanish(extension: Any, loaded: Any, bundle: Any, image: torch.Tensor, kind: str) -> None:
    mask = torch.zeros(1, 88, 104)
    if kind == "column":
        mask[0, 3:80, 51] = 1
    elif kind == "diagonal":
        mask[0, range(10, 70), range(20, 80)] = 1
    else:
        mask[0, 10, 11] = mask[0, 70:72, 90:92] = 1
    images, out, _, effects, _ = extension.blend(loaded, bundle, image, mask).args
    assert torch.equal(out, mask)
    changed = (images != image).any(dim=-1)
    assert float(changed[mask == 1].float().mean()) > 0.9 and not bool(changed[mask == 0].any())
    assert effects[0]["effect_score"] > 0


def test_a_mask_of_an_image_without_alpha(extension: Any, loaded: Any, bundle: Any, image: torch.Tensor) -> None:
    positive = [[torch.zeros(1, 4, 128), {}]]
    with pytest.raises(extension.errors.InputError, match="mask: entry 0 of 1 is empty.*Connect a mask"):
        extension.blend(loaded, bundle, image, torch.zeros(1, 64, 64), positive=positive)


def test_one_empty_mask_in_a_batch(extension: Any, loaded: Any, bundle: Any, image: torch.Tensor) -> None:
    masks = extension.box_mask(4, (88, 104))
    masks[2] = 0
    with pytest.raises(extension.errors.InputError, match="mask: entry 2 of 4 is empty"):
        extension.blend(loaded, bundle, image, masks)


def test_a_mask_half_over_the_background(extension: Any, loaded: Any, bundle: Any, image: torch.Tensor) -> None:
    mask, ground = torch.zeros(1, 88, 104), torch.zeros(1, 88, 104)
    mask[0, 20:50, 30:70] = 1
    ground[0, :, 50:] = 1
    images, out, *_ = extension.blend(loaded, bundle, image, mask, foreground=ground).args
    assert torch.equal(out, mask * ground)
    assert torch.equal(images[:, :, :50], image[:, :, :50])


def test_masks_of_other_values(extension: Any, loaded: Any, bundle: Any, image: torch.Tensor) -> None:
    mask = extension.box_mask(1, (88, 104))
    whole = extension.blend(loaded, bundle, image, mask)
    grey = extension.blend(loaded, bundle, image, mask * 236 / 255)
    assert torch.equal(grey.args[1], mask) and torch.equal(grey.args[0], whole.args[0])
    faint = mask * 0.3
    with pytest.raises(extension.errors.InputError, match="its largest value is 0.30, a region counts above 0.5"):
        extension.blend(loaded, bundle, image, faint)


def test_masks_of_another_size(extension: Any, loaded: Any, bundle: Any, image: torch.Tensor) -> None:
    result = extension.blend(loaded, bundle, image, extension.box_mask(1, (44, 52)))
    assert "the mask is 52x44 px, the image 104x88 px: it was resized" in result.args[4]
    assert result.args[1].shape == (1, 88, 104)
    with pytest.raises(extension.errors.InputError, match="mask: is 64x64 px, the image 104x88 px"):
        extension.blend(loaded, bundle, image, extension.box_mask())


def test_embeddings_of_another_width(extension: Any, loaded: Any, bundle: Any, image: torch.Tensor) -> None:
    wide = extension.conditioning.to_conditioning(torch.zeros(1, 12, 1280))
    with pytest.raises(extension.errors.InputError, match="its width is 1280, the model's context has 128"):
        extension.blend(loaded, bundle, image, extension.box_mask(1, (88, 104)), positive=wide)


def test_a_mask_embedding_where_an_anomaly_embedding_belongs(
    extension: Any, mask_bundle: Any, image: torch.Tensor
) -> None:
    with pytest.raises(extension.errors.BundleError, match="of kind 'mask', kind 'anomaly' is required"):
        extension.run("SpatialAnomalyEmbedding", bundle=mask_bundle, defect_type="part/dot", mask=extension.box_mask())


@pytest.mark.parametrize("length", [1, 3, 5, 12])
@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_negatives_of_another_length(
    extension: Any, loaded: Any, bundle: Any, image: torch.Tensor, length: int, cfg: float
) -> None:
    """Batch 3; with cfg 1 the negative has no part in it."""
    masks = extension.box_mask(3, (88, 104))
    context = torch.randn(1, length, 128, generator=torch.Generator().manual_seed(length))
    negative = extension.conditioning.to_conditioning(context)
    result = extension.blend(loaded, bundle, image, masks, cfg=cfg, negative=negative).args[0]
    if cfg == 1:
        assert torch.equal(result, extension.blend(loaded, bundle, image, masks).args[0])
    alone = extension.blend(loaded, bundle, image, masks[2:], cfg=cfg, negative=negative, seed=2).args[0]
    torch.testing.assert_close(result[2:], alone, rtol=0, atol=1e-3)


def test_re_weighting_can_be_left_out_entirely(extension: Any, loaded: Any, bundle: Any, image: torch.Tensor) -> None:
    mask = extension.box_mask(1, (88, 104))
    off = extension.blend(loaded, bundle, image, mask, reweighting="off")
    for mode in ("monotone", "paper", "authors"):
        zero = extension.blend(loaded, bundle, image, mask, reweighting=mode, strength=0.0, difference="same step")
        assert torch.equal(zero.args[0], off.args[0])
        assert torch.equal(zero.args[2]["samples"], off.args[2]["samples"])


def test_a_bundle_of_the_future(extension: Any, bundle: Any) -> None:
    other = replace(bundle, metadata={**bundle.metadata, "token_route": "t5"})
    with pytest.raises(extension.errors.BundleError, match="token route 't5', this version knows context, clip"):
        extension.run("SpatialAnomalyEmbedding", bundle=other, defect_type="part/dot", mask=extension.box_mask())
