"""Samples that show too little are sampled again with other seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..options import Settings, option
from ..progress import Progress
from .effect import Effect
from .sampler import VAE_STEPS, Conditioning
from .scene import Recipe, Samples, Scene

RETRY_STRIDE = 1_000_003
"""Distance of the seeds of two tries of one sample. Far from the seeds of other samples, which are neighbours."""


@dataclass(frozen=True)
class RetrySettings(Settings):
    """When a sample is tried again."""

    min_effect: float = option(
        0.0,
        "Samples with a smaller effect (0 to 255) are sampled again with another seed. 0 never retries.",
        min=0,
        max=255,
        step=0.5,
    )
    retries: int = option(
        2, "At most so many retries of a sample. The try with the largest effect is kept.", min=0, max=20
    )


@dataclass(frozen=True)
class Kept:
    """The best try of each sample: the samples, the seed of each, and the number of tries."""

    samples: Samples
    seeds: list[int]
    tries: list[int]


def retry_seed(seed: int, attempt: int) -> int:
    """Seed of a sample's try; try 0 is the sample's own seed. Depends on nothing else, so batches do not matter."""
    return (seed + attempt * RETRY_STRIDE) % 2**63 if attempt else seed


def sample_best(
    scene: Scene,
    positive: Conditioning,
    negative: Conditioning | None,
    recipe: Recipe,
    retry: RetrySettings,
    progress: Progress,
) -> Kept:
    """Sample the whole scene, and again with other seeds what has too small an effect.

    Of a sample's tries the one with the largest effect is kept. A sample's result does not depend on the others.
    """
    count = len(scene)
    own = [recipe.sampling.seed + place for place in range(count)]
    best = scene.sample(positive, negative, recipe, range(count), own, progress)
    images, latents = best.images, best.latents
    columns = {name: value.clone() for name, value in asdict(best.scores).items()}
    seeds, tries = list(own), [1] * count
    for attempt in range(1, retry.retries + 1):
        weak = [place for place, score in enumerate(columns["effect"].tolist()) if score < retry.min_effect]
        if not weak:
            break
        progress.expect(scene.drawn(weak) * (recipe.sampling.steps + VAE_STEPS))
        again = [retry_seed(own[place], attempt) for place in weak]
        tried = scene.sample(positive, negative, recipe, weak, again, progress)
        for number, place in enumerate(weak):
            tries[place] += 1
            if tried.scores.effect[number] > columns["effect"][place]:
                images[place], latents[place] = tried.images[number], tried.latents[number]
                seeds[place] = again[number]
                for name, value in asdict(tried.scores).items():
                    columns[name][place] = value[number]
    return Kept(Samples(images, latents, Effect(**columns)), seeds, tries)
