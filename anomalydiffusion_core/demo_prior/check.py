"""Measure what the demo prior can do, on fresh renders that no training has seen.

Questions: does the autoencoder keep the image; do images from noise obey their captions; does the normal caption leave
a normal part normal; does inversion on a combination that pretraining held out draw the defect; are its colours those
of the real defects; and is it taken for one (see `recognition`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..backends.ldm import LdmDenoiser, load_ldm
from ..bundles.conditioning import anomaly_conditioning
from ..conditioning.context import ContextConditioning
from ..figures import to_bytes
from ..progress import Quiet
from ..sampling.blending import composite
from ..sampling.sampler import SamplingSettings, sample_from_noise
from ..sampling.scene import Recipe, sample_blended
from ..sampling.schedulers import SchedulerSampler
from ..synthetic import Caption
from ..training.inversion import AnomalyTrainer, InversionSettings
from ..training.settings import StepReport
from . import obedience
from .recognition import Defects, Look, Recogniser, look, recogniser_of
from .renderers import Renderer, renderer_of

INVERSION = InversionSettings()
SUPPORT, SAMPLES, REAL = 6, 16, 20
SHOWN = 8
SIZE, STEPS, CFG = 256, 25, 2.5
PLAIN_COUNT, PLAIN_CFG, PLAIN_BATCH = 36, 2.0, 6
FRESH_SEED = 900_000


@dataclass(frozen=True)
class Figures:
    """Figures of one held-out combination; differences are means of absolute values on the scale 0..255.

    `control`: the same sampling under the normal caption. `colour_distance`: first Wasserstein distance between the
    values of mask pixels and those of real defects, mean over the three channels. `recognised`: share whose type the
    classifier names right. `look`: of generated defects; names ending in `_real`: the same for renders.
    """

    combination: str
    control: float
    inversion: float
    outside: float
    colour_distance_control: float
    colour_distance: float
    recognised: float
    recognised_real: float
    look: Look
    look_real: Look
    training_seconds: float


Progress = Callable[[str], None]


def run(
    path: Path,
    out: Path | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
    photographs: Path | None = None,
) -> dict[str, object]:
    """Measure the stored prior at `path`; returns figures, and writes contact sheets below `out` when given.

    Args:
        photographs: a folder of real images, on which the autoencoder is measured too.

    Raises:
        ValueError: the file is not a demo prior.
    """
    say = on_progress or (lambda text: None)
    model = load_ldm(path)
    renderer = renderer_of(model.names)
    rng, bank = np.random.default_rng([FRESH_SEED, seed]), renderer.bank(FRESH_SEED + seed)
    say("autoencoder")
    psnr = reconstruction_psnr(model, rng, bank, renderer)
    say(f"autoencoder {psnr:.2f} dB")
    real = {} if photographs is None else {"photographs_psnr_db": round(folder_psnr(model, photographs), 2)}
    say("captions")
    obeyed = obedience.measure(
        _images_from_noise(model, renderer, np.random.default_rng([FRESH_SEED, seed, 1])), renderer.colours
    )
    say(f"captions: {obeyed}")
    say("training the classifier")
    recogniser = recogniser_of(renderer, np.random.default_rng([FRESH_SEED, seed, 2]), bank, SIZE)
    combinations = []
    for caption in renderer.checked:
        figures, sheet = _check_combination(model, renderer, recogniser, caption, rng, bank, say)
        combinations.append(asdict(figures))
        if out is not None:
            _save_sheet(sheet, out / f"{caption.surface}_{caption.defect}.png")
    if out is not None:
        say("samples of captions")
        _save_sheet(_caption_samples(model, renderer, rng), out / "captions.png")
    return {
        "file": path.name,
        "autoencoder_psnr_db": round(psnr, 2),
        **real,
        "captions": {name: round(value, 3) for name, value in asdict(obeyed).items()},
        "combinations": combinations,
    }


def reconstruction_psnr(
    model: LdmDenoiser, rng: np.random.Generator, bank: Any, renderer: Renderer, count: int = 48
) -> float:
    """Mean peak signal-to-noise ratio in dB of encode-decode over fresh 256 px surfaces (no mask images)."""
    fresh = (renderer.render(rng, bank, renderer.sample(rng, 0.0), SIZE).image for _ in range(count))
    return float(np.mean([_psnr(model, _tensor(image)) for image in fresh]))


def folder_psnr(model: LdmDenoiser, folder: Path) -> float:
    """The same over all images below a folder, scaled to 256 x 256 px. Raises ValueError if there are none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise ValueError(f"photographs: {folder} holds no images.")
    images = (Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS) for path in paths)
    return float(np.mean([_psnr(model, _tensor(np.asarray(image))) for image in images]))


def _psnr(model: LdmDenoiser, image: Tensor) -> float:
    return float(-10 * torch.log10((model.decode(model.encode(image)) - image).square().mean()))


def _images_from_noise(
    model: LdmDenoiser, renderer: Renderer, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, Caption]]:
    captions = obedience.captions(PLAIN_COUNT, rng, renderer.clear)
    for start in range(0, PLAIN_COUNT, PLAIN_BATCH):
        part = captions[start : start + PLAIN_BATCH]
        images = _of_captions(model, renderer, part, PLAIN_CFG, int(rng.integers(2**31)))
        yield from zip(images.permute(0, 2, 3, 1).numpy(), part, strict=True)


def _of_captions(model: LdmDenoiser, renderer: Renderer, captions: Sequence[Caption], cfg: float, seed: int) -> Tensor:
    """Images [n, 3, SIZE, SIZE] of captions, from noise."""
    rows = model.words[torch.tensor([renderer.ids(caption) for caption in captions])]
    settings = SamplingSettings(seed, STEPS, cfg, scheduler="simple")
    contexts = ContextConditioning(rows), ContextConditioning(model.empty_context)
    return sample_from_noise(SchedulerSampler(model), len(captions), (SIZE, SIZE), *contexts, settings, Quiet())


def _check_combination(
    model: LdmDenoiser,
    renderer: Renderer,
    recogniser: Recogniser,
    caption: Caption,
    rng: np.random.Generator,
    bank: Any,
    say: Progress,
) -> tuple[Figures, list[Tensor]]:
    scenes = [renderer.render(rng, bank, obedience.with_extent(caption, rng), SIZE) for _ in range(SUPPORT + REAL)]
    support, real = scenes[:SUPPORT], scenes[SUPPORT:]
    key = f"{caption.surface}/{caption.defect}"
    pairs = {key: (torch.cat([_tensor(s.image) for s in support]), torch.cat([_mask(s.mask) for s in support]))}
    # What is known of the defect beforehand: that it is one. Textual inversion usually starts from a coarse word, too.
    initial = ", ".join(word for word in renderer.words if word.startswith("defect:") and word != "defect:good")
    started = time.monotonic()

    def on_step(report: StepReport) -> None:
        if report.step % 50 == 0:
            say(f"{key}: inversion step {report.step}, loss {report.loss:.4f}")

    trained = AnomalyTrainer(model, pairs, INVERSION, initial_context=model.caption_context(initial)).run(
        on_step=on_step
    )
    seconds = time.monotonic() - started
    good = Caption(caption.surface, caption.surface_colour)
    normals = torch.cat([_tensor(renderer.render(rng, bank, good, SIZE).image) for _ in range(SAMPLES)])
    targets = [renderer.render(rng, bank, obedience.with_extent(caption, rng), SIZE) for _ in range(SAMPLES)]
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
    renders = Defects(
        torch.cat([_tensor(s.image) for s in real]),
        torch.cat([_tensor(s.normal) for s in real]),
        torch.cat([_mask(s.mask) for s in real]),
    )
    finished = composite(drawn["inversion"], normals, masks, feather=0)
    figures = Figures(
        key,
        control=_difference(drawn["control"], rebuilt, masks),
        inversion=_difference(drawn["inversion"], rebuilt, masks),
        outside=_difference(drawn["inversion"], rebuilt, 1 - masks),
        colour_distance_control=colour_distance(_values(drawn["control"], masks), real_values),
        colour_distance=colour_distance(_values(drawn["inversion"], masks), real_values),
        recognised=recogniser.recognised(finished, masks, caption.defect),
        recognised_real=recogniser.recognised(renders.images, renders.masks, caption.defect),
        look=look(Defects(drawn["inversion"], rebuilt, masks)),
        look_real=look(renders),
        training_seconds=round(seconds, 1),
    )
    rows = [normals, masks.expand(-1, 3, -1, -1), rebuilt, drawn["control"], drawn["inversion"], renders.images]
    return figures, [row[:SHOWN] for row in rows]


def colour_distance(values: Tensor, reference: Tensor) -> float:
    """First Wasserstein distance of two sets of colours [3, n] on the scale 0..255, mean over channels."""
    from scipy.stats import wasserstein_distance

    return float(np.mean([wasserstein_distance(a.numpy(), b.numpy()) for a, b in zip(values, reference, strict=True)]))


def _caption_samples(model: LdmDenoiser, renderer: Renderer, rng: np.random.Generator) -> list[Tensor]:
    """Images from noise: rows of defects over columns of surfaces."""
    rows = []
    painted = {"good": "none", "stain": "dark", "hole": "none", "dent": "none", "scratch": "light"}
    if "defect:crack" in renderer.words:
        painted |= {"crack": "none", "residue": "yellow", "chip": "none"}
    for defect, paint in painted.items():
        extent = ("none", "none") if defect == "good" else ("large", "middle-centre")
        captions = [Caption(part.surface, part.surface_colour, defect, paint, *extent) for part in renderer.gallery]
        rows.append(_of_captions(model, renderer, captions, CFG, int(rng.integers(1000))))
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
