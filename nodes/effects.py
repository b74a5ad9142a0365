"""Drawing again what shows too little, and the records and the report of what was drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..anomalydiffusion_core.sampling.effect import Effect
from ..anomalydiffusion_core.sampling.windows import Window
from .host import conditioning as host_conditioning
from .host import denoiser as host_models
from .host.progress import Progress
from .scene import Drawing, Drawn, Scene

ALIKE = 2.0
"""A control whose effect is more than 1 / ALIKE of the defect's earns a warning."""
RETRY_STRIDE = 1_000_003
"""Distance of the seeds of two tries of one sample. Far from the seeds of other samples, which are neighbours."""


@dataclass(frozen=True)
class Kept:
    """The best try of each sample: what was drawn, with which seed, and how many tries there were."""

    drawn: Drawn
    seeds: list[int]
    tries: list[int]


def retry_seed(seed: int, attempt: int) -> int:
    """Seed of a sample's try; try 0 is the sample's own seed. Depends on nothing else, so batches do not matter."""
    return (seed + attempt * RETRY_STRIDE) % 2**63 if attempt else seed


def draw_best(
    scene: Scene,
    positive: host_models.Conditioning,
    negative: host_models.Conditioning | None,
    drawing: Drawing,
    min_effect: float,
    retries: int,
    progress: Progress,
) -> Kept:
    """Draw every sample, and those whose effect is below ``min_effect`` again, up to ``retries`` times, other seeds.

    Of a sample's tries the one with the largest effect is kept. A sample's result does not depend on the others.
    """
    count = len(scene)
    own = [drawing.settings.seed + place for place in range(count)]
    best = scene.draw(positive, negative, drawing, range(count), own, progress)
    images, latents = best.images, best.latents
    columns = {name: value.clone() for name, value in asdict(best.scores).items()}
    seeds, tries = list(own), [1] * count
    for attempt in range(1, retries + 1):
        weak = [place for place, score in enumerate(columns["effect"].tolist()) if score < min_effect]
        if not weak:
            break
        progress.expect(len(weak) * (drawing.settings.steps + host_models.VAE_STEPS))
        again = [retry_seed(own[place], attempt) for place in weak]
        own_positive = host_conditioning.select(positive, weak, count)
        own_negative = None if negative is None else host_conditioning.select(negative, weak, count)
        drawn = scene.draw(own_positive, own_negative, drawing, weak, again, progress)
        for number, place in enumerate(weak):
            tries[place] += 1
            if drawn.scores.effect[number] > columns["effect"][place]:
                images[place], latents[place] = drawn.images[number], drawn.latents[number]
                seeds[place] = again[number]
                for name, value in asdict(drawn.scores).items():
                    columns[name][place] = value[number]
    return Kept(Drawn(images, latents, Effect(**columns)), seeds, tries)


def records(kept: Kept, windows: Sequence[Window | None], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record for each sample, for the socket ``effects`` and the manifest of an export."""
    scores = kept.drawn.scores
    columns = (scores.effect, scores.fill_share, scores.outside_max_abs_diff)
    return [
        {
            "seed": kept.seeds[place],
            "effect_score": round(effect, 3),
            "fill_share": round(fill, 4),
            "control_score": None,
            "outside_max_abs_diff": int(outside),
            "tries": kept.tries[place],
            "window": None if window is None else list(window.box),
            "settings": dict(settings),
        }
        for place, (effect, fill, outside, window) in enumerate(
            zip(*(column.tolist() for column in columns), windows, strict=True)
        )
    ]


def summary(kept: Kept, windows: Sequence[Window | None], min_effect: float) -> str:
    """Effect and fill share of all samples, and what was cropped and drawn again, in short."""
    scores = kept.drawn.scores
    low, middle, high = (float(torch.quantile(scores.effect, share)) for share in (0.0, 0.5, 1.0))
    text = (
        f"{len(scores.effect)} samples: effect {middle:.1f} of 255 in the mask (median; {low:.1f} to {high:.1f}), "
        f"fill share {float(scores.fill_share.median()):.2f}, largest difference outside "
        f"{int(scores.outside_max_abs_diff.max())}"
    )
    cropped = len(windows) - list(windows).count(None)
    if cropped:
        text += f"; {cropped} drawn in an enlarged window"
    again = sum(tries > 1 for tries in kept.tries)
    if again:
        weak = int((scores.effect < min_effect).sum())
        text += f"; {again} drawn again for an effect below {min_effect:g}, {weak} are still below"
    return text


def control_summary(scores: Effect, control: Effect) -> str:
    """Both effects side by side, with a warning when they are alike (design: that is no learned defect)."""
    defect, other = float(scores.effect[: len(control.effect)].mean()), float(control.effect.mean())
    text = (
        f"control, {len(control.effect)} samples: effect {other:.1f}, of the same samples with the defect {defect:.1f}"
    )
    if other * ALIKE > defect:
        text += (
            ". Warning: these are alike, so most of the change is no learned defect; the model may not know the object"
        )
    return text
