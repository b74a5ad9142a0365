"""Training of mask embeddings: the loss covers the whole image, all types in one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.data.mask_files import read_mask
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.training.mask_embedding import MaskEmbeddingSettings, MaskTrainer

SETTINGS = MaskEmbeddingSettings(steps=4, resolution=64, augmented_copies=1, tokens=3)


@pytest.fixture(scope="module")
def denoiser() -> LdmDenoiser:
    return LdmDenoiser.random(0, context_dim=32)


def make_masks() -> dict[str, torch.Tensor]:
    masks = torch.zeros(2, 2, 1, 64, 64)
    masks[0, :, :, 8:24, 16:40] = 1
    masks[1, :, :, 30:34, 4:60] = 1
    return {"part/dent": masks[0], "part/line": masks[1]}


def test_result_is_a_mask_bundle_of_all_types(denoiser: LdmDenoiser) -> None:
    result = MaskTrainer(denoiser, make_masks(), SETTINGS, initial_context=denoiser.empty_context).run()
    bundle = result.bundle
    assert bundle.kind == "mask" and bundle.types == ("part/dent", "part/line") and bundle.spatial_encoder is None
    assert bundle.type_tokens("part/dent").shape == (3, 32)
    assert len(result.losses) == 4 and bundle.metadata["base_fingerprint"] == denoiser.fingerprint()


def test_first_loss_is_equation_9_written_out(denoiser: LdmDenoiser) -> None:
    masks = {"part/dent": make_masks()["part/dent"][:1]}
    settings = replace(SETTINGS, steps=1, batch_size=1, augmented_copies=0)
    trainer = MaskTrainer(denoiser, masks, settings)
    tokens = trainer.result().bundle.type_tokens("part/dent")
    loss = trainer.run().losses[0]
    # The same draws in the same order: image, order of the strata, time, noise.
    generator = torch.Generator().manual_seed(settings.seed)
    torch.rand(1, generator=generator, dtype=torch.float64)
    torch.randperm(1, generator=generator)
    t = (torch.rand(1, generator=generator, dtype=torch.float64) * 1000).long()
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    latents = denoiser.encode(masks["part/dent"].expand(-1, 3, -1, -1))
    alpha = denoiser.alphas_cumprod[t].view(1, 1, 1, 1)
    with torch.no_grad():
        predicted = denoiser.predict_noise(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, t, tokens[None])
    assert loss == pytest.approx(float((noise - predicted).square().mean()), rel=1e-5)


def test_one_type_alone_or_two_in_turns(denoiser: LdmDenoiser) -> None:
    one = MaskTrainer(denoiser, {"part/dent": make_masks()["part/dent"]}, SETTINGS).run()
    again = MaskTrainer(denoiser, {"part/dent": make_masks()["part/dent"]}, SETTINGS).run()
    assert torch.equal(one.bundle.tokens["part/dent"], again.bundle.tokens["part/dent"])


def test_empty_masks_and_zero_steps_are_refused(denoiser: LdmDenoiser) -> None:
    with pytest.raises(InputError, match="part/dent: entry 0 of 1 is empty"):
        MaskTrainer(denoiser, {"part/dent": torch.zeros(1, 1, 64, 64)}, SETTINGS).run()
    with pytest.raises(InputError, match="there are none"):
        MaskTrainer(denoiser, {}, SETTINGS).run()
    with pytest.raises(InputError, match="steps: 0"):
        replace(SETTINGS, steps=0)
    with pytest.raises(InputError, match="tokens: 0"):
        replace(SETTINGS, tokens=0)


def bank_area(denoiser: LdmDenoiser, masks: torch.Tensor, size: int) -> float:
    """Mean area of the masks that are learned."""
    settings = replace(SETTINGS, resolution=size, augmented_copies=8)
    bank = MaskTrainer(denoiser, {"part/any": masks}, settings).loop.bank
    assert len(bank.masks) == 9 * len(masks)
    assert bool(bank.masks.flatten(1).any(dim=1).all())
    return float(bank.masks.float().mean())


def test_the_bank_has_the_areas_of_the_real_masks(denoiser: LdmDenoiser) -> None:
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    masks = torch.stack(
        [
            ((y - 64) ** 2 + (x - 60) ** 2 < 40**2).float()[None],  # a fourth of the image, in its middle
            ((y - 10) ** 2 + (x - 12) ** 2 < 10**2).float()[None],  # in a corner
            ((y > 90) & (x > 20) & (x < 100)).float()[None],  # at a border
            ((y - x).abs() < 4).float()[None],  # across all of it: turned, it would not fit
        ]
    )
    assert bank_area(denoiser, masks, 128) == pytest.approx(float(masks.mean()), rel=0.03)


@pytest.mark.parametrize("defect", ["broken_large", "broken_small", "contamination"])
def test_the_bank_has_the_areas_of_real_bottles(denoiser: LdmDenoiser, shared_data: Path, defect: str) -> None:
    paths = sorted((shared_data / "bottle" / "ground_truth" / defect).glob("*.png"))[:7]
    masks = torch.stack([read_mask(path) for path in paths])
    assert bank_area(denoiser, masks, 256) == pytest.approx(float(masks.mean()), rel=0.03)
