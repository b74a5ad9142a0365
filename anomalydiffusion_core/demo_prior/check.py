"""Measure what the demo prior can do, on fresh renders that no training has seen.

Five questions: does the autoencoder keep the image; do images from noise obey their captions; does the normal
caption leave a normal part normal; does inversion on a combination that pretraining held out draw the defect; are its
colours those of the real defects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..backends.ldm import LdmDenoiser, load_ldm
from ..bundles.conditioning import anomaly_conditioning
from ..conditioning.context import ContextConditioning
from ..figures import to_bytes
from ..progress import Quiet
from ..sampling.sampler import SamplingSettings, sample_from_noise
from ..sampling.scene import Recipe, sample_blended
from ..sampling.schedulers import SchedulerSampler
from ..synthetic import Caption, NoiseBank, caption_ids, render_scene, sample_caption
from ..synthetic.captions import DEFECTS
from ..training.inversion import AnomalyTrainer, InversionSettings
from ..training.settings import StepReport
from . import obedience

# What is known of the defect beforehand: that it is one. The usual start of textual inversion is a coarse word, too.
INITIAL = ", ".join(word for word in DEFECTS if word != "good")
CHECKED = (Caption("leather", "brown", "scratch", "light"), Caption("leather", "brown", "stain", "blue"))
INVERSION = InversionSettings()
SUPPORT, SAMPLES, REAL = 6, 8, 20
SIZE, STEPS, CFG = 256, 25, 2.5
PLAIN_COUNT, PLAIN_CFG, PLAIN_BATCH = 36, 2.0, 6
FRESH_SEED = 900_000


@dataclass(frozen=True)
class Figures:
    """Figures of one held-out combination; differences are means of absolute values on the scale 0..255.

    `control`: the same sampling under the normal caption. `colour_distance`: first Wasserstein distance between the
    values of mask pixels and those of real defects, mean over the three channels.
    """

    combination: str
    control: float
    inversion: float
    outside: float
    colour_distance_control: float
    colour_distance: float
    training_seconds: float


Progress = Callable[[str], None]


def run(path: Path, out: Path | None = None, seed: int = 0, on_progress: Progress | None = None) -> dict[str, object]:
    """Measure the stored prior at `path`; returns figures, and writes contact sheets below `out` when given.

    Raises:
        ValueError: the file is not a demo prior.
    """
    say = on_progress or (lambda text: None)
    model = load_ldm(path)
    rng, bank = np.random.default_rng([FRESH_SEED, seed]), NoiseBank(seed=FRESH_SEED + seed)
    say("autoencoder")
    psnr = reconstruction_psnr(model, rng, bank)
    say(f"autoencoder {psnr:.2f} dB")
    say("captions")
    obeyed = obedience.measure(_images_from_noise(model, np.random.default_rng([FRESH_SEED, seed, 1])))
    say(f"captions: {obeyed}")
    combinations = []
    for caption in CHECKED:
        figures, sheet = _check_combination(model, caption, rng, bank, say)
        combinations.append(asdict(figures))
        if out is not None:
            _save_sheet(sheet, out / f"{caption.surface}_{caption.defect}.png")
    if out is not None:
        say("samples of captions")
        _save_sheet(_caption_samples(model, rng), out / "captions.png")
    return {
        "file": path.name,
        "autoencoder_psnr_db": round(psnr, 2),
        "captions": {name: round(value, 3) for name, value in asdict(obeyed).items()},
        "combinations": combinations,
    }


def reconstruction_psnr(model: LdmDenoiser, rng: np.random.Generator, bank: NoiseBank, count: int = 48) -> float:
    """Mean peak signal-to-noise ratio in dB of encode-decode over fresh 256 px surfaces (no mask images)."""
    values = []
    for _ in range(count):
        image = _tensor(render_scene(rng, bank, sample_caption(rng, mask_share=0.0), SIZE).image)
        error = (model.decode(model.encode(image)) - image).square().mean()
        values.append(float(-10 * torch.log10(error)))
    return float(np.mean(values))


def _images_from_noise(model: LdmDenoiser, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, Caption]]:
    captions = obedience.captions(PLAIN_COUNT, rng)
    for start in range(0, PLAIN_COUNT, PLAIN_BATCH):
        part = captions[start : start + PLAIN_BATCH]
        images = _of_captions(model, part, PLAIN_CFG, int(rng.integers(2**31)))
        yield from zip(images.permute(0, 2, 3, 1).numpy(), part, strict=True)


def _of_captions(model: LdmDenoiser, captions: Sequence[Caption], cfg: float, seed: int) -> Tensor:
    """Images [n, 3, SIZE, SIZE] of captions, from noise."""
    rows = model.words[torch.tensor([caption_ids(caption) for caption in captions])]
    settings = SamplingSettings(seed, STEPS, cfg, scheduler="simple")
    contexts = ContextConditioning(rows), ContextConditioning(model.empty_context)
    return sample_from_noise(SchedulerSampler(model), len(captions), (SIZE, SIZE), *contexts, settings, Quiet())


def _check_combination(
    model: LdmDenoiser, caption: Caption, rng: np.random.Generator, bank: NoiseBank, say: Progress
) -> tuple[Figures, list[Tensor]]:
    scenes = [render_scene(rng, bank, obedience.with_extent(caption, rng), SIZE) for _ in range(SUPPORT + REAL)]
    support, real = scenes[:SUPPORT], scenes[SUPPORT:]
    key = f"{caption.surface}/{caption.defect}"
    pairs = {key: (torch.cat([_tensor(s.image) for s in support]), torch.cat([_mask(s.mask) for s in support]))}
    started = time.monotonic()

    def on_step(report: StepReport) -> None:
        if report.step % 50 == 0:
            say(f"{key}: inversion step {report.step}, loss {report.loss:.4f}")

    trained = AnomalyTrainer(model, pairs, INVERSION, initial_context=model.caption_context(INITIAL)).run(
        on_step=on_step
    )
    seconds = time.monotonic() - started
    good = Caption(caption.surface, caption.surface_colour)
    normals = torch.cat([_tensor(render_scene(rng, bank, good, SIZE).image) for _ in range(SAMPLES)])
    targets = [render_scene(rng, bank, obedience.with_extent(caption, rng), SIZE) for _ in range(SAMPLES)]
    masks = torch.cat([_mask(s.mask) for s in targets])
    conditionings = {
        "control": ContextConditioning(model.normal_context),
        "inversion": anomaly_conditioning(trained.bundle, key, masks),
    }
    sampler, empty = SchedulerSampler(model), ContextConditioning(model.empty_context)
    recipe = Recipe(SamplingSettings(1, STEPS, CFG, scheduler="simple"))
    drawn = {}
    for name, positive in conditionings.items():
        say(f"{key}: sampling {name}")
        samples = sample_blended(sampler, normals, masks, positive, empty, recipe, Quiet())
        # Before the composite, which would hide a change outside the mask.
        drawn[name] = sampler.decode(torch.stack(samples.latents), Quiet())
    rebuilt = model.decode(model.encode(normals))
    real_values = torch.cat([_values(_tensor(s.image), _mask(s.mask)) for s in real], 1)
    figures = Figures(
        key,
        control=_difference(drawn["control"], rebuilt, masks),
        inversion=_difference(drawn["inversion"], rebuilt, masks),
        outside=_difference(drawn["inversion"], rebuilt, 1 - masks),
        colour_distance_control=colour_distance(_values(drawn["control"], masks), real_values),
        colour_distance=colour_distance(_values(drawn["inversion"], masks), real_values),
        training_seconds=round(seconds, 1),
    )
    rows = [normals, masks.expand(-1, 3, -1, -1), rebuilt, drawn["control"], drawn["inversion"]]
    rows.append(torch.cat([_tensor(s.image) for s in real[:SAMPLES]]))
    return figures, rows


def colour_distance(values: Tensor, reference: Tensor) -> float:
    """First Wasserstein distance of two sets of colours [3, n] on the scale 0..255, mean over channels."""
    from scipy.stats import wasserstein_distance

    return float(np.mean([wasserstein_distance(a.numpy(), b.numpy()) for a, b in zip(values, reference, strict=True)]))


def _caption_samples(model: LdmDenoiser, rng: np.random.Generator) -> list[Tensor]:
    """Images from noise: rows of defects over columns of surfaces, the colours drawn at random."""
    rows = []
    painted = {"good": "none", "stain": "dark", "hole": "none", "dent": "none", "scratch": "light"}
    for defect, paint in painted.items():
        captions = []
        for surface, colour in zip(
            ("leather", "fabric", "stone", "metal", "plastic"), ("brown", "blue", "grey", "red", "green"), strict=True
        ):
            extent = ("none", "none") if defect == "good" else ("large", "middle-centre")
            captions.append(Caption(surface, colour, defect, paint, *extent))
        rows.append(_of_captions(model, captions, CFG, int(rng.integers(1000))))
    return rows


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]


def _mask(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]


def _values(images: Tensor, masks: Tensor) -> Tensor:
    inside = masks[:, 0] > 0
    return torch.stack([images[:, channel][inside] for channel in range(3)]) * 255


def _difference(images: Tensor, reference: Tensor, masks: Tensor) -> float:
    change = (images - reference).abs().mean(1, keepdim=True) * 255
    return float((change * masks).sum() / masks.sum())


def _save_sheet(rows: list[Tensor], path: Path) -> None:
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(to_bytes(sheet).transpose(1, 2, 0))
    image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(path)
