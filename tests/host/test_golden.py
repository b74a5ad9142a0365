"""The tiny quickstart gives what it gave when it was recorded: bundles, masks, images, records and figures.

ANOMALYDIFFUSION_RECORD_GOLDEN=1 records instead of comparing. Do that only for a change that is meant to change the
results.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import golden
import pytest
from golden import Golden

from anomalydiffusion_core.server.workflow import with_inputs

FOLDER = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def found(host: Any, finished: Any, tiny: dict[str, dict[str, Any]]) -> Golden:
    steady = host.run(with_inputs(tiny, golden.STEADY))
    return golden.collect(finished.outputs, steady.outputs, host.models, host.output)


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Golden:
    if os.environ.get("ANOMALYDIFFUSION_RECORD_GOLDEN") == "1":
        golden.save(request.getfixturevalue("found"), FOLDER)
        pytest.skip(f"recorded to {FOLDER}")
    return golden.load(FOLDER)


def test_bundles_are_as_recorded(recorded: Golden, found: Golden) -> None:
    assert golden.bundle_differences(recorded, found) == []


def test_masks_are_as_recorded(recorded: Golden, found: Golden) -> None:
    assert golden.mask_differences(recorded, found) == []


def test_images_are_as_recorded(recorded: Golden, found: Golden) -> None:
    assert golden.image_differences(recorded, found) == []


def test_records_of_the_pairs_are_as_recorded(recorded: Golden, found: Golden) -> None:
    assert golden.record_differences(recorded, found) == []


def test_figures_of_the_detector_are_as_recorded(recorded: Golden, found: Golden) -> None:
    assert golden.figure_differences(recorded, found) == []


def test_figures_of_the_trained_detector_are_as_recorded(recorded: Golden, found: Golden) -> None:
    if found.values["processor"] != recorded.values["processor"]:
        pytest.skip("recorded on another processor or with another torch, and these figures depend on its last bits")
    assert golden.trained_figure_differences(recorded, found) == []


def test_a_change_beyond_the_tolerance_is_seen(recorded: Golden) -> None:
    changed = copy.deepcopy(recorded)
    changed.arrays["bundle/mask/mask/leather/stain"][7] += 2 * golden.BUNDLE_TOLERANCE
    assert len(golden.bundle_differences(recorded, changed)) == 1
    changed.values["bundles"]["anomaly"]["losses"][2] -= 2 * golden.BUNDLE_TOLERANCE
    assert len(golden.bundle_differences(recorded, changed)) == 2

    record = changed.values["records"][1]
    record["effect_score"] += 0.02
    record["settings"]["tries"] += 1
    assert len(golden.record_differences(recorded, changed)) == 2
    changed.arrays[f"image/{record['image']}"][20, 30, 1] ^= 2
    assert len(golden.image_differences(recorded, changed)) == 1
    changed.arrays[f"mask/{record['mask']}"][:5, 0] ^= True
    assert len(golden.mask_differences(recorded, changed)) == 1

    for key, compare in (
        ("figures", golden.figure_differences),
        ("trained_figures", golden.trained_figure_differences),
    ):
        changed.values[key]["with"]["mean"]["pixel_ap"] += 0.002
        assert len(compare(recorded, changed)) == 1
