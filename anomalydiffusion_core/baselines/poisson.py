"""Poisson blending: a real defect keeps its gradients and takes the colours of the normal image.

Perez et al., "Poisson Image Editing", SIGGRAPH 2003, Eq. 7 (seamless cloning) and Eq. 12 to 13 (mixed gradients). For
self-supervised anomalies Schlueter et al., "Natural Synthetic Anomalies", ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..options import Settings, option
from .making import Made
from .moving import Moves, Source, check_sources, move

STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class PoissonBlending(Settings):
    """With mixed gradients the structure of the normal image stays visible."""

    sources: Sequence[Source]
    moves: Moves = field(default_factory=Moves)
    mixed_gradients: bool = option(False, "Take the stronger gradient of defect and normal image at each pixel.")
    name: str = "Poisson Blending"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sources(self.sources)

    def make(self, normal: Tensor, rng: np.random.Generator, foreground: Tensor | None) -> Made:
        """See `Method.make`."""
        placed = move(self.sources, self.moves, (normal.shape[1], normal.shape[2]), rng, foreground)
        image = poisson_paste(placed.pixels, normal, placed.shape, placed.known, self.mixed_gradients)
        return Made(image, placed.shape, {**placed.details, "mixed_gradients": self.mixed_gradients})


def poisson_paste(
    source: Tensor, target: Tensor, mask: Tensor, known: Tensor | None = None, mixed: bool = False
) -> Tensor:
    """Solve for the pixels of ``mask`` so that their differences are those of ``source``, their border ``target``.

    For every masked pixel p with neighbours q (4 of them, fewer at the image's border):
    sum over q of (f_p - f_q) = sum over q of v_pq, with f_q = target where q is not masked (Perez, Eq. 7), and
    v_pq = source_p - source_q, or with ``mixed`` the target's difference where that is larger.

    Args:
        source, target: [3, H, W] in [0, 1].
        mask: [1, H, W] in {0, 1}; must not cover the whole image.
        known: [1, H, W], where the source has pixels; elsewhere its differences count as 0. All by default.

    Returns:
        [3, H, W], clipped to [0, 1]; target outside of the mask.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import splu

    inside = mask[0].numpy() > 0
    if inside.all():
        raise InputError("mask: covers the whole image, so no border is left to blend with. Give a smaller one.")
    height, width = inside.shape
    here = np.argwhere(inside)
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(len(here))
    given = source.double().numpy()
    fixed = target.double().numpy()
    has_source = np.ones_like(inside) if known is None else known[0].numpy() > 0
    own = np.arange(len(here))
    diagonal = np.zeros(len(here))
    right_side = np.zeros((len(here), 3))
    rows, columns = [], []
    for step in STEPS:
        there = here + step
        exists = ((there >= 0) & (there < (height, width))).all(axis=1)
        p, q, unknowns = here[exists].T, there[exists].T, own[exists]
        diagonal[unknowns] += 1
        both = has_source[p[0], p[1]] & has_source[q[0], q[1]]
        wanted = (given[:, p[0], p[1]] - given[:, q[0], q[1]]) * both
        if mixed:
            kept = fixed[:, p[0], p[1]] - fixed[:, q[0], q[1]]
            wanted = np.where(np.abs(kept) > np.abs(wanted), kept, wanted)
        border = ~inside[q[0], q[1]]
        right_side[unknowns] += (wanted + fixed[:, q[0], q[1]] * border).T
        rows.append(unknowns[~border])
        columns.append(number[q[0], q[1]][~border])
    row, column = np.concatenate([own, *rows]), np.concatenate([own, *columns])
    values = np.concatenate([diagonal, -np.ones(len(row) - len(own))])
    solved = splu(coo_matrix((values, (row, column))).tocsc()).solve(right_side)
    result = target.clone()
    result[:, mask[0] > 0] = torch.from_numpy(solved.T.clip(0, 1)).to(target.dtype)
    return result
