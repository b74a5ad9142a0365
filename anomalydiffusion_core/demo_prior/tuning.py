"""A small base model that gets to know an object: all weights of a file of this layout, tuned on its normal images.

A LoRA can only shift what a network knows. A network of seven million weights that has seen rendered surfaces knows no
bottle, and its autoencoder blurs what it never had to keep. So the autoencoder is tuned first, with the loss of
pretraining, then the noise predictor and the words, under the caption of a normal part. A share of each batch is
rendered images with their own captions: without them the defects, and the places that words name, would be forgotten.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.ldm import LdmDenoiser, load_ldm
from ..backends.ldm_autoencoder import Autoencoder
from ..backends.ldm_schedule import alphas_cumprod
from ..conditioning.context import ContextConditioning
from ..data.mvtec import AnomalyDataset
from ..data.training import normal_views
from ..errors import InputError
from ..files import content_key, file_digest, numbered, write_json
from ..options import LARGEST_SEED, Settings, option
from ..progress import MakeProgress, Progress
from ..sampling.control import measure_control
from ..sampling.sampler import SamplingSettings
from ..sampling.schedulers import SchedulerSampler
from ..synthetic.captions import normal_caption_ids
from ..training.adaptation import EMPTY_EVERY, random_masks
from ..training.plans import CONTROL_CFG, CONTROL_STEPS
from .autoencoder_training import reconstruction_loss
from .latents import DEFECT_WEIGHT, SIZE
from .pretrain import stored_prior
from .renders import RenderSource, as_tensor, random_crops
from .settings import PretrainSettings
from .stages import Stage
from .storing import store
from .unet_training import Prior, denoising_loss, drop_words

AUTOENCODER_RATE, RATE = 2e-4, 2e-4
CROP, CROPS = 64, 12
REPLAYED = 96
"""Rendered images that batches are filled up from."""
ENCODED_AT_ONCE = 8


@dataclass(frozen=True)
class TuneSettings(Settings):
    """How all weights are tuned on normal images."""

    autoencoder_steps: int = option(600, "Steps of the autoencoder. 0 leaves it as it is.", min=0, max=1_000_000)
    steps: int = option(1200, "Steps of the noise predictor.", min=1, max=1_000_000)
    batch_size: int = option(8, "Images in each step of the noise predictor.", min=2, max=1024)
    replay: float = option(
        0.25, "Share of rendered images in each batch, so that defects are not forgotten.", min=0, max=0.9, step=0.05
    )
    images: int = option(60, "How many normal images are learned from, chosen with the seed.", min=1, max=100_000)
    control_samples: int = option(
        4,
        "Normal images, other than those learned from if there are any, on which the autoencoder and the control are "
        "measured before and after. 0 measures nothing.",
        min=0,
        max=1000,
    )
    resolution: int = option(256, "Side in pixels at which images are learned.", min=64, max=1024, step=8)
    seed: int = option(0, "Seed of everything that is drawn.", min=0, max=LARGEST_SEED)

    def replayed_of(self, batch: int) -> int:
        """Rendered images in a batch: at least one where any are wanted, and never all."""
        return min(max(round(self.replay * batch), 1), batch - 1) if self.replay else 0


@dataclass(frozen=True)
class Tuned:
    """The new file and what was measured: PSNR of the autoencoder in dB and the control, before and after."""

    path: Path
    figures: dict[str, Any]

    def describe(self) -> str:
        """The figures as sentences."""
        told = f"Learned from {self.figures['images']} normal images."
        if "control_before" not in self.figures:
            return f"{told} Nothing was measured."
        names = ("psnr_before", "psnr_after", "control_before", "control_after")
        first, second, third, fourth = (self.figures[name] for name in names)
        return (
            f"{told} Autoencoder: {first:.1f} dB before, {second:.1f} dB after. Control: {third:.1f} before, "
            f"{fourth:.1f} after; the lower, the better a normal part is redrawn."
        )


def tune_file(
    path: Path,
    dataset: AnomalyDataset,
    settings: TuneSettings,
    out: Path,
    name: str,
    make_progress: MakeProgress,
) -> Tuned:
    """Tune the model in the file ``path`` and write ``<out>/<name>_00001.safetensors``, or the next number.

    An interrupted call resumes from its last save, with the numbers of an uninterrupted one; its state lies in a
    hidden folder of ``out`` until it is finished. Same inputs and seed give the same file on the CPU.

    Raises:
        InputError: a data set without normal images.
        BundleError: the file is not of this layout.
    """
    if not dataset.normals:
        raise InputError(f"dataset: {dataset.object} has no normal images. Add some to train/good.")
    shuffled = random.Random(settings.seed).sample(list(dataset.normals), len(dataset.normals))
    chosen, others = shuffled[: settings.images], shuffled[settings.images :]
    files = {p.relative_to(dataset.folder).as_posix(): file_digest(p)[:16] for p in chosen}
    about = {"model": file_digest(path), "object": dataset.object, "files": files, **asdict(settings)}
    work = out / ".training" / f"tune_{content_key(about)}"
    work.mkdir(parents=True, exist_ok=True)
    progress = make_progress(settings.autoencoder_steps + settings.steps)
    views = normal_views(dataset, chosen, len(chosen), settings.resolution)
    autoencoder, prior, before, shapes = stored_prior(path, PretrainSettings())
    with RenderSource(shapes.source, settings.seed, SIZE, shapes.source.mask_share) as source:
        renders = source.take(REPLAYED)
    figures: dict[str, Any] = {"images": len(chosen)}
    tested = (others or chosen)[: settings.control_samples]
    if tested:
        seen = normal_views(dataset, tested, len(tested), settings.resolution, seed=settings.seed + 1)
        measured = _measured(load_ldm(path), seen, settings, make_progress)
        figures |= {"psnr_before": measured[0], "control_before": measured[1]}
    _tune_autoencoder(autoencoder, views, renders, settings, work, progress)
    encoded = _Encoded(autoencoder, views, renders, shapes)
    _tune_prior(prior, encoded, settings, work, progress)
    told = {"tuned": about, "from": {"file": path.name, "training": before}}
    target = numbered(out, name, ".safetensors")
    store(target, autoencoder, prior.unet, prior.words.weight, told, renderer=shapes.source)
    if tested:
        measured = _measured(load_ldm(target), seen, settings, make_progress)
        figures |= {"psnr_after": measured[0], "control_after": measured[1]}
    write_json(target.with_suffix(".json"), {**figures, **about})
    shutil.rmtree(work)
    return Tuned(target, figures)


def _drawn_at(settings: TuneSettings, stage: Stage) -> torch.Generator:
    """The random numbers of a step, which depend on the seed and its number alone: a resumed training has them too."""
    return torch.Generator().manual_seed(settings.seed * 1_000_003 + stage.step)


def _tune_autoencoder(
    model: Autoencoder, images: Tensor, renders: Any, settings: TuneSettings, work: Path, progress: Progress
) -> None:
    """The decoder and the encoder on crops of the images, a part of them of renders."""
    if not settings.autoencoder_steps:
        model.eval().requires_grad_(False)
        return
    model.train().requires_grad_(True)
    stage = Stage(work / "autoencoder.pt", model, AUTOENCODER_RATE, 0.98, 0.0, steps=settings.autoencoder_steps)
    progress.step(stage.step)
    replayed = settings.replayed_of(CROPS)
    with stage:
        while stage.share < 1:
            generator = _drawn_at(settings, stage)
            own = _crops(images, CROPS - replayed, generator)
            masks = torch.zeros(len(own), 1, CROP, CROP)
            if replayed:
                rng = np.random.default_rng([settings.seed, stage.step])
                others, their_masks = random_crops(rng, renders, replayed, CROP)
                own, masks = torch.cat([own, others]), torch.cat([masks, their_masks])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
                loss = reconstruction_loss(model, own, masks, PretrainSettings().texture)
            stage.advance(loss)
            progress.step()
    stage.finish()


def _crops(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random squares of CROP pixels, half of them mirrored; [count, 3, CROP, CROP]."""
    draw = torch.rand(count, 4, generator=generator)
    found = []
    for which, down, right, turn in draw.tolist():
        image = images[int(which * len(images))]
        top = int(down * (image.shape[-2] - CROP + 1))
        left = int(right * (image.shape[-1] - CROP + 1))
        part = image[:, top : top + CROP, left : left + CROP]
        found.append(part.flip(-1) if turn < 0.5 else part)
    return torch.stack(found)


class _Encoded:
    """Latents of the images and of the renders, with captions and the weights of defects."""

    @torch.no_grad()
    def __init__(self, autoencoder: Autoencoder, images: Tensor, renders: Any, shapes: PretrainSettings) -> None:
        self.words = shapes.source.words
        self.latents = torch.cat([autoencoder.encode(part) for part in images.split(ENCODED_AT_ONCE)])
        pixels = as_tensor(renders)
        self.replayed = torch.cat([autoencoder.encode(part) for part in pixels.split(ENCODED_AT_ONCE)])
        masks = torch.stack([torch.from_numpy(one.mask)[None].float() for one in renders])
        cells = masks.shape[-1] // self.replayed.shape[-1]
        self.weights = 1 + (DEFECT_WEIGHT - 1) * torch.nn.functional.max_pool2d(masks, cells)
        self.ids = torch.tensor([shapes.source.ids(one.caption) for one in renders])
        self.empty = torch.tensor(shapes.source.ids(None))
        self.normal = torch.tensor(normal_caption_ids(self.words))

    def batch(self, settings: TuneSettings, generator: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Latents, weights and captions of the images' part of a batch, and of the renders' part."""
        replayed = settings.replayed_of(settings.batch_size)
        own = settings.batch_size - replayed
        rows = torch.randint(len(self.latents), (own,), generator=generator)
        empty = torch.rand(own, 1, generator=generator) < 1 / EMPTY_EVERY
        latents = self.latents[rows]
        found = [(latents, torch.ones_like(latents[:, :1]), torch.where(empty, self.empty, self.normal))]
        if replayed:
            rows = torch.randint(len(self.replayed), (replayed,), generator=generator)
            found.append((self.replayed[rows], self.weights[rows], drop_words(self.ids[rows], self.words, generator)))
        return found


def _tune_prior(model: Prior, encoded: _Encoded, settings: TuneSettings, work: Path, progress: Progress) -> None:
    model.train().requires_grad_(True).to(memory_format=torch.channels_last)
    stage = Stage(work / "prior.pt", model, RATE, 0.99, 0.0, steps=settings.steps)
    schedule, min_snr = alphas_cumprod(), PretrainSettings().min_snr
    progress.at(settings.autoencoder_steps + stage.step)
    with stage:
        while stage.share < 1:
            generator = _drawn_at(settings, stage)
            parts = encoded.batch(settings, generator)
            losses = [
                denoising_loss(model, schedule, *part, generator, min_snr=min_snr) * len(part[0]) for part in parts
            ]
            stage.advance(torch.stack(losses).sum() / settings.batch_size)
            progress.step()
    stage.finish()


def _measured(
    model: LdmDenoiser, images: Tensor, settings: TuneSettings, make_progress: MakeProgress
) -> tuple[float, float]:
    """PSNR in dB of the autoencoder, and the control under the normal caption, on images it did not learn from."""
    errors = [(model.decode(model.encode(one[None])) - one).square().mean() for one in images]
    psnr = float(torch.stack([-10 * torch.log10(error) for error in errors]).mean())
    masks = random_masks(len(images), images.shape[-2:], settings.seed + 1)
    normal, empty = ContextConditioning(model.normal_context), ContextConditioning(model.empty_context)
    sampling = SamplingSettings(settings.seed + 1, CONTROL_STEPS, CONTROL_CFG)
    control = measure_control(SchedulerSampler(model), images, masks, normal, empty, sampling, make_progress)
    return round(psnr, 2), float(control or 0.0)
