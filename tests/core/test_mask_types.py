"""All types in one run are learned as well as each in a run of its own, on the demo prior."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.data.mask_resizing import resize_mask
from anomalydiffusion_core.synthetic.captions import PLACES, SIZES, Caption
from anomalydiffusion_core.synthetic.noise import NoiseBank
from anomalydiffusion_core.synthetic.scene import render_scene
from anomalydiffusion_core.training.mask_embedding import MaskEmbeddingSettings, MaskTrainer

PRIOR = Path(__file__).resolve().parents[2] / "models" / "demo_prior.safetensors"
RENDERED, SIZE, TRAIN, HELD_OUT, STEPS = 128, 64, 6, 6, 18


def rendered_masks(defect: str, seed: int) -> torch.Tensor:
    rng, bank = np.random.default_rng(seed), NoiseBank(0, size=RENDERED)
    masks = []
    for _ in range(TRAIN + HELD_OUT):
        words = Caption("mask", "none", defect, "none", str(rng.choice(SIZES)), str(rng.choice(PLACES)))
        masks.append(render_scene(rng, bank, words, RENDERED).mask)
    return resize_mask(torch.from_numpy(np.stack(masks).astype(np.float32))[:, None], (SIZE, SIZE))


def held_out_loss(denoiser: LdmDenoiser, tokens: torch.Tensor, masks: torch.Tensor) -> float:
    """Eq. 9 on masks that were not learned from, over the whole schedule, with the same noise for every embedding."""
    generator = torch.Generator().manual_seed(99)
    latents = denoiser.encode(masks.expand(-1, 3, -1, -1))
    losses = []
    with torch.no_grad():
        for t in range(31, 1000, 62):
            noise = torch.randn(latents.shape, generator=generator)
            alpha = denoiser.alphas_cumprod[t]
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            context = tokens[None].expand(len(latents), -1, -1)
            predicted = denoiser.predict_noise(noisy, torch.full((len(latents),), t), context)
            losses.append(float((noise - predicted).square().mean()))
    return float(np.mean(losses))


def test_types_together_are_learned_as_well_as_alone() -> None:
    denoiser = load_ldm(PRIOR)
    masks = {f"part/{name}": rendered_masks(name, seed) for seed, name in enumerate(("stain", "scratch"))}
    learned = {key: values[:TRAIN] for key, values in masks.items()}
    settings = MaskEmbeddingSettings(STEPS, learning_rate=0.02, resolution=SIZE, augmented_copies=1)
    # As many images of each type as in a run of its own: batches are shared by the types.
    together = MaskTrainer(denoiser, learned, replace(settings, steps=STEPS * len(masks))).run().bundle
    for key, values in masks.items():
        alone = MaskTrainer(denoiser, {key: learned[key]}, settings).run().bundle
        hardly = replace(settings, steps=1, augmented_copies=0)
        start = MaskTrainer(denoiser, {key: learned[key]}, hardly).run().bundle
        losses = [held_out_loss(denoiser, b.type_tokens(key), values[TRAIN:]) for b in (start, alone, together)]
        before, own, shared = losses
        assert own < 0.9 * before, "a run of its own learns something"
        assert shared == pytest.approx(own, rel=0.1)
