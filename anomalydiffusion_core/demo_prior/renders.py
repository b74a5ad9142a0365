"""Endless training images, rendered in chunks: in the training process, or ahead of it in others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count as counting
from multiprocessing import get_context
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..synthetic.captions import Caption
from .renderers import RENDERERS, Renderer, bank_of, sampled

CHUNK = 16
"""Images that are rendered together; the images of a chunk depend on the seed and its number alone."""


@dataclass(frozen=True)
class Render:
    """uint8 [H, W, 3] with the mask of its defect, bool [H, W] (all False on good parts), and its caption."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    caption: Caption


class RenderSource:
    """The images of one seed in their order, the same with any number of workers.

    Args:
        workers: processes that render ahead; 0 renders here, when an image is asked for.
        first: chunk to begin at.
    """

    def __init__(
        self, renderer: Renderer, seed: int, size: int, mask_share: float, workers: int = 0, first: int = 0
    ) -> None:
        self._what = (renderer.name, seed, size, mask_share)
        self._chunks = counting(first)
        self._left: Iterator[Render] = iter(())
        self._pool: ProcessPoolExecutor | None = None
        self._ahead: deque[Future[list[Render]]] = deque()
        if workers:
            context = get_context("spawn")  # forks of a process with threads or a GPU may hang
            arguments = (renderer.name, seed)
            self._pool = ProcessPoolExecutor(workers, context, initializer=bank_of, initargs=arguments)
            self._ahead.extend(self._submit() for _ in range(3 * workers))

    def __enter__(self) -> RenderSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def take(self, count: int) -> list[Render]:
        """The next `count` images."""
        taken: list[Render] = []
        while len(taken) < count:
            image = next(self._left, None)
            if image is None:
                self._left = self._next_chunk()
            else:
                taken.append(image)
        return taken

    def ready(self) -> bool:
        """Whether the next chunk would not have to be waited for."""
        return self._pool is None or self._ahead[0].done()

    def _next_chunk(self) -> Iterator[Render]:
        if self._pool is None:
            return _rendered(*self._what, next(self._chunks))
        self._ahead.append(self._submit())
        return iter(self._ahead.popleft().result())

    def _submit(self) -> Future[list[Render]]:
        assert self._pool is not None
        return self._pool.submit(_render_chunk, *self._what, next(self._chunks))


def _rendered(name: str, seed: int, size: int, mask_share: float, chunk: int) -> Iterator[Render]:
    for scene in sampled(RENDERERS[name], seed, chunk, CHUNK, size, mask_share):
        yield Render(scene.image, scene.mask, scene.caption)


def _render_chunk(*what: Any) -> list[Render]:
    return list(_rendered(*what))


def random_crops(rng: np.random.Generator, renders: list[Render], count: int, size: int) -> tuple[Tensor, Tensor]:
    """Crops [count, 3, size, size] in [0, 1] and their masks [count, 1, size, size].

    Half of them are centred on a defect, since those are the rare pixels.
    """
    crops = np.empty((count, size, size, 3), np.float32)
    masks = np.empty((count, 1, size, size), np.float32)
    for index in range(count):
        image = renders[rng.integers(len(renders))]
        limit = image.pixels.shape[0] - size
        top, left = (int(v) for v in rng.integers(0, limit + 1, 2))
        if index % 2 == 0 and image.mask.any():
            rows, columns = np.nonzero(image.mask)
            pick = rng.integers(len(rows))
            top = int(np.clip(rows[pick] - size // 2 + rng.integers(-12, 13), 0, limit))
            left = int(np.clip(columns[pick] - size // 2 + rng.integers(-12, 13), 0, limit))
        window = slice(top, top + size), slice(left, left + size)
        step = -1 if rng.random() < 0.5 else 1
        crops[index], masks[index, 0] = image.pixels[window][:, ::step], image.mask[window][:, ::step]
    return torch.from_numpy(crops / 255).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(masks)


def as_tensor(renders: list[Render]) -> Tensor:
    """Images of one size as [B, 3, H, W] in [0, 1]."""
    pixels = np.stack([image.pixels for image in renders]).astype(np.float32) / 255
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
