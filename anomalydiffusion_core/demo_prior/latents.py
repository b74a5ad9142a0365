"""Latents of rendered images, encoded once and kept on disk, from which the noise predictor draws its batches."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..backends.ldm_autoencoder import Autoencoder
from ..files import replacing
from ..restricted_pickle import read_restricted
from .renderers import Renderer
from .renders import CHUNK, Render, RenderSource, as_tensor
from .stages import Report

SIZE = 256
SHARD = 512
"""Images a file; what an interruption may cost."""
DEFECT_WEIGHT = 3.0
FIRST_CHUNK = 10_000_000
"""The autoencoder has seen those before."""


class LatentSet:
    """All latents with the weights of their cells and their captions, on the device of training.

    Attributes:
        latents: [N, C, h, w], half precision on a GPU.
        weights: [N, 1, h, w], `DEFECT_WEIGHT` on cells with a defect, else 1.
        ids: [N, slots], rows of the word table.
        alone: numbers of the images that show a mask alone; others: of the rest.
    """

    def __init__(self, parts: list[dict[str, Tensor]], mask_word: int, device: torch.device) -> None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.latents = torch.cat([part["latents"] for part in parts]).to(device, dtype)
        self.weights = torch.cat([part["weights"] for part in parts]).to(device, dtype)
        self.ids = torch.cat([part["ids"] for part in parts]).long().to(device)
        masks = self.ids[:, 0] == mask_word
        self.alone, self.others = torch.nonzero(masks).flatten(), torch.nonzero(~masks).flatten()

    def batch(self, generator: torch.Generator, size: int, mask_share: float) -> tuple[Tensor, Tensor, Tensor]:
        """`size` random rows, latents, weights and ids; about `mask_share` of them show a mask alone."""
        device = self.ids.device
        draw = torch.rand(size, 2, generator=generator, device=device)
        picks = self.others[(draw[:, 0] * len(self.others)).long()]
        if len(self.alone):
            alone = self.alone[(draw[:, 0] * len(self.alone)).long()]
            picks = torch.where(draw[:, 1] < mask_share, alone, picks)
        return self.latents[picks].float(), self.weights[picks].float(), self.ids[picks]


def prepare_latents(
    autoencoder: Autoencoder,
    renderer: Renderer,
    folder: Path,
    count: int,
    seed: int,
    report: Report,
    device: torch.device,
    workers: int = 0,
) -> LatentSet:
    """Render and encode `count` images in files of `SHARD`, or read those that an earlier run wrote to `folder`.

    autoencoder: finished, on `device`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, SHARD)
    missing = [start for start in starts if not _file(folder, start).is_file()]
    if missing:
        chunk = FIRST_CHUNK + missing[0] // CHUNK
        with RenderSource(renderer, seed, SIZE, renderer.mask_share, workers, first=chunk) as source:
            for start in range(missing[0], count, SHARD):
                report("latents", start / count, f"image {start} of {count}")
                images = source.take(SHARD if count - start > SHARD else count - start)
                part = _encoded(autoencoder, renderer, images, device)
                with replacing(_file(folder, start)) as partial:
                    torch.save(part, partial)
    parts = [read_restricted(_file(folder, start)) for start in starts]
    return LatentSet(parts, renderer.words.index("surface:mask"), device)


def _file(folder: Path, start: int) -> Path:
    return folder / f"{start:07d}.pt"


@torch.no_grad()
def _encoded(
    autoencoder: Autoencoder, renderer: Renderer, images: list[Render], device: torch.device
) -> dict[str, Tensor]:
    latents, weights = [], []
    for first in range(0, len(images), 16):
        some = images[first : first + 16]
        latents.append(autoencoder.encode(as_tensor(some).to(device)).half().cpu())
        masks = torch.stack([torch.from_numpy(image.mask)[None].float() for image in some])
        weights.append((1 + (DEFECT_WEIGHT - 1) * functional.max_pool2d(masks, SIZE // latents[-1].shape[-1])).half())
    ids = torch.tensor([renderer.ids(image.caption) for image in images], dtype=torch.int16)
    return {"latents": torch.cat(latents), "weights": torch.cat(weights), "ids": ids}
