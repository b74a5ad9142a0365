"""The rule that judges images from noise, on rendered images whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomalydiffusion_core.demo_prior import obedience
from anomalydiffusion_core.synthetic import Caption, NoiseBank, render_scene
from anomalydiffusion_core.synthetic.captions import PLACES

pytestmark = pytest.mark.core


def rendered(count: int) -> list[tuple[np.ndarray, Caption]]:
    rng, bank = np.random.default_rng(5), NoiseBank(seed=3)
    captions = obedience.captions(count, rng)
    return [(render_scene(rng, bank, caption, 256).image / 255, caption) for caption in captions]


def test_renders_obey() -> None:
    images = rendered(24)
    assert len({caption.place for _, caption in images}) > 5
    result = obedience.measure(images)
    assert result.one_defect >= 0.95 and result.place >= 0.95 and result.surface_colour == 1


def test_what_does_not_obey_is_seen() -> None:
    images = rendered(6)
    opposite = [
        (pixels, replace(caption, place=PLACES[-1 - PLACES.index(caption.place)])) for pixels, caption in images
    ]
    moved = [pair for pair in opposite if pair[1].place != "middle-centre"]
    assert obedience.measure(moved).place == 0
    assert (
        obedience.measure([(pixels, replace(c, surface_colour="black")) for pixels, c in images]).surface_colour == 0
    )
    none = obedience.measure([(np.full((128, 128, 3), 0.5), images[0][1])])
    assert (none.one_defect, none.place, none.mean_defects) == (0, 0, 0)


def test_discs_are_counted_the_largest_first_and_near_ones_joined() -> None:
    y, x = np.mgrid[:256, :256]
    pixels = np.full((256, 256, 3), 0.8)
    for centre, radius in (((60, 60), 10), ((200, 100), 16), ((128, 220), 5)):
        pixels[np.hypot(y - centre[0], x - centre[1]) < radius] = 0.1
    centres = obedience.defect_centres(pixels)
    assert np.round(np.array(centres) * 256).astype(int).tolist() == [[200, 100], [60, 60], [128, 220]]
    pixels[np.hypot(y - 60, x - 76) < 4] = 0.1  # two pixels from the first disc
    assert len(obedience.defect_centres(pixels)) == 3
