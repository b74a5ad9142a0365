"""The spatial encoder sees place and shape, and nothing of batch mates."""

from __future__ import annotations

import pytest
import torch

from anomalydiffusion_core.conditioning.spatial_encoder import (
    NO_ENCODER,
    VARIANTS,
    SpatialEncoder,
    build_spatial_encoder,
)
from anomalydiffusion_core.errors import InputError


def boxes() -> torch.Tensor:
    masks = torch.zeros(6, 1, 96, 96)
    masks[0, 0, 5:20, 5:20] = 1
    masks[1, 0, 70:85, 70:85] = 1  # the same shape elsewhere
    masks[2, 0, 5:20, 70:85] = 1
    masks[3, 0, 40:44, 10:80] = 1
    masks[4, 0, 10:80, 40:44] = 1  # the same area turned
    masks[5, 0, 50, 50] = 1  # a single pixel
    return masks


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != NO_ENCODER])
def test_every_mask_gets_tokens_of_its_own(variant: str) -> None:
    encoder = build_spatial_encoder(variant, 3, 16)
    with torch.no_grad():
        tokens = encoder(boxes())
        alone = torch.cat([encoder(mask[None]) for mask in boxes()])
    assert tokens.shape == (6, 3, 16)
    assert torch.allclose(tokens, alone, atol=1e-4)  # no batch statistics, in training mode either
    distances = torch.cdist(tokens.flatten(1), tokens.flatten(1))
    scale = tokens.flatten(1).norm(dim=1).mean()
    assert float((distances + torch.eye(6) * 1e9).min()) > 0.02 * float(scale)


def test_the_light_variant_is_small_and_takes_any_size() -> None:
    encoder = build_spatial_encoder("light", 4, 128)
    assert sum(p.numel() for p in encoder.parameters()) < 400_000
    small, large = torch.zeros(1, 1, 128, 128), torch.zeros(1, 1, 512, 512)
    small[..., 16:64, 32:96] = 1
    large[..., 64:256, 128:384] = 1
    with torch.no_grad():
        assert torch.allclose(encoder(small), encoder(large), atol=1e-4)
        assert encoder(torch.ones(1, 1, 333, 500)).isfinite().all()


def test_the_light_variant_learns_where_a_mask_is() -> None:
    generator = torch.Generator().manual_seed(0)
    encoder = build_spatial_encoder("light", 1, 2)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=5e-3)

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        centres = torch.rand(count, 2, generator=generator) * 48 + 8
        line = torch.arange(64.0)
        near = (line[None, None] - centres[..., None]).abs() < 6
        return (near[:, 0, :, None] & near[:, 1, None, :]).float()[:, None], centres / 32 - 1

    for _ in range(120):
        masks, target = batch(16)
        loss = (encoder(masks)[:, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    masks, target = batch(64)
    with torch.no_grad():
        error = (encoder(masks)[:, 0] - target).square().mean()
    assert error < 0.05 * target.var()


def test_start_rows_are_where_the_output_begins() -> None:
    encoder = build_spatial_encoder("light", 2, 8)
    rows = torch.arange(16.0).view(2, 8)
    encoder.start_near(rows, spread=0.1)
    with torch.no_grad():
        offset = encoder(boxes()) - rows
    assert 0 < offset.abs().mean() < 0.2


def test_building_is_seeded_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = build_spatial_encoder("light", 2, 8, seed=1)
    assert torch.equal(torch.rand(3), expected)
    second, other = build_spatial_encoder("light", 2, 8, seed=1), build_spatial_encoder("light", 2, 8, seed=2)
    state, same, different = first.state_dict(), second.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert not all(torch.equal(state[name], different[name]) for name in state)


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(InputError, match="light, resnet50_fpn"):
        SpatialEncoder("vgg", 4, 8)
    with pytest.raises(InputError, match="0 tokens"):
        SpatialEncoder("light", 0, 8)


def test_no_encoder_gives_no_tokens_and_has_nothing_to_learn() -> None:
    encoder = build_spatial_encoder(NO_ENCODER, 4, 8)
    encoder.start_near(torch.ones(4, 8), spread=0.1)
    assert encoder(boxes()).shape == (6, 0, 8) and encoder.tokens == 0
    assert sum(p.numel() for p in encoder.parameters()) == 0
    assert next(encoder.parameters()).device.type == "cpu"
