"""Scores of single pairs: each worked out by hand, and the limits that follow from the real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from typer.testing import CliRunner

from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.images import write_image, write_mask
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.pairs import MANIFEST, load_exported, update_manifest
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.gate.features import CROP, Crop, FeatureSpace, crop_of, describe
from anomalydiffusion_core.evaluation.gate.gate import limits_of, prediction_limit, score_pairs
from anomalydiffusion_core.evaluation.gate.scores import SCORES, PairScores, seam
from anomalydiffusion_core.evaluation.settings import ScoreSettings

SIDE = 64


def _mask(left: int = 20) -> Tensor:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 24:40, left : left + 16] = 1
    return mask


def _part(generator: torch.Generator) -> Tensor:
    return (0.5 + (torch.rand(3, SIDE, SIDE, generator=generator) - 0.5) * 0.04).clamp(0, 1)


def _defect(normal: Tensor, mask: Tensor, colour: tuple[float, float, float]) -> Tensor:
    return torch.where(mask > 0, torch.tensor(colour)[:, None, None] + (normal - 0.5), normal).clamp(0, 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AnomalyDataset:
    """Grey parts; red holes of slightly different brightness."""
    root, generator = tmp_path_factory.mktemp("real"), torch.Generator().manual_seed(0)
    for number in range(6):
        write_image(root / "part" / "train" / "good" / f"{number}.png", _part(generator))
    for number in range(12):
        mask = _mask(10 + 2 * number)
        colour = (0.85 + 0.01 * (number % 5), 0.2, 0.2)
        write_image(root / "part" / "test" / "hole" / f"{number:02d}.png", _defect(_part(generator), mask, colour))
        write_mask(root / "part" / "ground_truth" / "hole" / f"{number:02d}_mask.png", mask)
    return load_dataset(root, "part")


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A pair like the real ones, one of another colour, one that is hardly seen, one that fills half of its mask."""
    generator = torch.Generator().manual_seed(5)
    normals = torch.stack([_part(generator) for _ in range(4)])
    mask, half = _mask(), _mask()
    half[:, :, 28:] = 0
    images = [
        _defect(normals[0], mask, (0.87, 0.2, 0.2)),
        _defect(normals[1], mask, (0.1, 0.2, 0.9)),
        _defect(normals[2], mask, (0.53, 0.49, 0.49)),
        _defect(normals[3], half, (0.87, 0.2, 0.2)),
    ]
    masks = mask.expand(4, -1, -1, -1)
    export_pairs(
        tmp_path / "pairs", "part", "hole", torch.stack(images), masks, normals, [{"seed": i} for i in range(4)]
    )
    return tmp_path / "pairs"


def test_only_what_is_worse_than_the_real_ones_is_listed(folder: Path, dataset: AnomalyDataset) -> None:
    gate = score_pairs(folder, dataset, ScoreSettings(judged="nearest_real, effect, fill"))
    like, other, faint, half = (one.scores for one in gate.pairs)
    assert not gate.pairs[0].reasons, gate.pairs[0].reasons
    assert any(reason.startswith("distance to the nearest real") for reason in gate.pairs[1].reasons)
    assert any(reason.startswith("effect") for reason in gate.pairs[2].reasons)
    assert any(reason.startswith("fill") for reason in gate.pairs[3].reasons)
    # Mean of |0.87 - 0.5|, |0.2 - 0.5| twice, of 255; noise is the same in both.
    assert like.effect == pytest.approx((0.37 + 0.3 + 0.3) / 3 * 255, abs=1)
    assert half.fill == pytest.approx(0.5, abs=0.08) and like.fill == 1.0
    assert other.nearest_real > 3 * like.nearest_real and faint.nearest_normal < like.nearest_normal / 3
    assert gate.sheet() is not None and "3 of 4 beyond" in gate.report()


def test_scores_are_written_and_pairs_left_out_on_request(folder: Path, dataset: AnomalyDataset) -> None:
    settings = ScoreSettings(judged="nearest_real, effect, fill")
    score_pairs(folder, dataset, settings)
    lines = [json.loads(line) for line in (folder / MANIFEST).read_text("utf-8").splitlines()]
    assert set(lines[0]["scores"]) == set(SCORES) and len(load_exported(folder)) == 4
    score_pairs(folder, dataset, ScoreSettings(judged=settings.judged, leave_out=True))
    assert [pair.image.name for pair in load_exported(folder)] == ["000.png"]
    update_manifest(folder, {lines[1]["image"]: {"review": "accepted"}})
    assert [pair.image.name for pair in load_exported(folder)] == ["000.png", "001.png"]
    score_pairs(folder, dataset, settings)
    assert len(load_exported(folder)) == 4, "scored again without, nothing stays left out"
    update_manifest(folder, {lines[2]["image"]: {"left_out": "nothing shows"}})
    score_pairs(folder, dataset, settings)
    assert len(load_exported(folder)) == 3, "what something else left out stays so"


def test_the_command(folder: Path, dataset: AnomalyDataset) -> None:
    values = ["score-pairs", str(folder), "--data", str(dataset.root), "--category", "part", "--leave-out"]
    done = CliRunner().invoke(app, [*values, "--judged", "effect"])
    assert done.exit_code == 0, done.output
    # The faint one, and the one that fills half of its mask and so changed half as much.
    assert "2 pairs are left out" in done.output and len(load_exported(folder)) == 2
    done = CliRunner().invoke(app, [*values, "--judged", "beauty"])
    assert "judged: 'beauty'" in done.output


def test_a_seam_is_an_edge_along_the_border_that_is_not_beside_it() -> None:
    ramp = torch.linspace(0, 1, SIDE).expand(3, SIDE, SIDE).clone()
    assert seam(ramp, _mask()) == pytest.approx(1, abs=0.35), "the same slope on the border and beside it"
    flat = torch.full((3, SIDE, SIDE), 0.5)
    assert seam(flat, _mask()) == 1
    assert seam(flat + _mask() * 0.2, _mask()) == pytest.approx((0.2 + 0.5 / 255) / (0.5 / 255), rel=1e-3)
    assert seam(flat, torch.ones(1, SIDE, SIDE)) == 1
    soft = flat.clone()
    for step in range(1, 5):
        inner = torch.zeros(1, SIDE, SIDE)
        inner[:, 24 + step : 40 - step, 20 + step : 36 - step] = 1
        soft += inner * 0.05
    assert seam(soft, _mask()) < 1.5


def test_descriptions_are_those_of_scikit_image() -> None:
    from skimage.color import rgb2lab

    colour = (0.8, 0.3, 0.1)
    crop = Crop(torch.tensor(colour)[:, None, None].expand(3, CROP, CROP), _mask())
    found, lab = describe(crop), rgb2lab(np.array(colour, dtype=np.float32)[None, None])[0, 0]
    assert found[[0, 2, 4]].tolist() == pytest.approx(lab.tolist(), abs=0.01)
    assert found[[1, 3, 5, 6, 7, 8, 9]].abs().max() < 0.01, "one colour has no deviation and no edges"
    assert len(found) == 20


def test_distances_are_in_deviations_of_the_reference() -> None:
    def grey(level: float) -> Crop:
        return Crop(torch.full((3, CROP, CROP), level), _mask())

    space = FeatureSpace([grey(0.4), grey(0.6)])
    near, far = space.distances([grey(0.4)], [grey(0.4), grey(0.6)])[0].tolist()
    # Only the lightness inside and around differs, by two deviations each: sqrt(2 * 2^2 / 20).
    assert near == pytest.approx(0, abs=1e-4) and far == pytest.approx(math.sqrt(8 / 20), rel=0.01)
    assert crop_of(torch.rand(3, 40, 90), torch.ones(1, 40, 90)).image.shape == (3, CROP, CROP)


def test_limits_of_a_few_values_are_prediction_limits() -> None:
    values = np.array([1.0, 1.5, 2.0, 1.2, 1.8, 1.4])
    logs = np.log(values)
    wanted = math.exp(logs.mean() + stats.t.ppf(0.95, 5) * logs.std(ddof=1) * math.sqrt(7 / 6))
    assert prediction_limit(values, 0.95) == pytest.approx(wanted) and wanted > 2
    many = np.linspace(1, 2, 41)
    assert prediction_limit(many, 0.95) == pytest.approx(1.95)
    assert prediction_limit(values, 0.0) == 1.0 and prediction_limit(values, 1.0) == 2.0
    real = [PairScores(math.nan, 1.0, 5.0, 1.0, 1.0)] * 3
    limits = limits_of(real, ScoreSettings(judged="nearest_real, fill"))
    assert math.isnan(limits["nearest_real"]) and math.isnan(limits["seam"]) and limits["fill"] == 0.95
    with pytest.raises(InputError, match="judged: ''"):
        limits_of(real, ScoreSettings(judged=""))


def test_all_of_a_folder_cannot_be_left_out(folder: Path, dataset: AnomalyDataset) -> None:
    update = ScoreSettings(judged="effect", leave_out=True, quantile=0.5)
    for line in load_exported(folder)[:1] + load_exported(folder)[3:]:
        update_manifest(folder, {line.record["image"]: {"seed": 1}})
    with pytest.raises(InputError, match="dataset: it has|'part/none'|defect_type"):
        other = folder.parent / "other"
        image = torch.full((1, 3, SIDE, SIDE), 0.5)
        export_pairs(other, "part", "none", image + _mask()[None] * 0.3, _mask()[None], image, [{}])
        score_pairs(other, dataset, update)
    faint = folder.parent / "faint"
    image = torch.full((1, 3, SIDE, SIDE), 0.5)
    export_pairs(faint, "part", "hole", image + _mask()[None] * 0.01, _mask()[None], image, [{}])
    with pytest.raises(InputError, match="leave_out: all 1 pairs"):
        score_pairs(faint, dataset, update)
