"""Generation of many pairs: the folder that Export Pairs would write, resumed after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.data.export import ExportSettings, export_batch
from anomalydiffusion_core.data.images import read_image, write_image
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.data.selection import NormalSettings, pick_normals
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.masks.placement import on_objects
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.sampling.blocks import Block, pack_block, pack_result, unpack_block, unpack_result
from anomalydiffusion_core.sampling.generation import PairGeneration
from anomalydiffusion_core.sampling.retry import RetrySettings
from anomalydiffusion_core.sampling.run import Blended, BlendedSampling, BlendingSettings
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.sampling.windows import CropSettings

pytestmark = pytest.mark.core
KEYS = ("part/bar", "part/dot")
PLAN = {"model": "tiny"}


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> PairGeneration:
    root = tmp_path_factory.mktemp("data")
    for number in range(3):
        pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(number))
        write_image(root / "part" / "train" / "good" / f"{number}.png", pixels)
    denoiser = LdmDenoiser.random(0, context_dim=32)
    rows = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(9))
    settings = BlendingSettings(
        sampling=SamplingSettings(seed=7, steps=2, cfg=1.0, batch_size=2),
        retry=RetrySettings(min_effect=1.0, retries=1),
        window=CropSettings("auto", crop_cells=8, crop_margin=8, crop_size=64),
        control_samples=3,
    )
    return PairGeneration(
        SchedulerSampler(denoiser),
        load_dataset(root, "part"),
        KEYS,
        lambda key: (_masks(key), f"{key} from boxes"),
        lambda key, masks: ContextConditioning(rows * (1 + KEYS.index(key)), torch.ones(5, dtype=torch.bool)),
        control=ContextConditioning(torch.zeros(1, 5, 32)),
        normals=NormalSettings(count=5, seed=3, size=0),
        sampling=settings,
    )


def _masks(key: str) -> Tensor:
    masks = torch.zeros(5, 1, 64, 64)
    for number in range(5):
        masks[number, :, 8 + 6 * number : 24 + 6 * number, 10:30] = 1
    return masks.flip(-1) if key == KEYS[1] else masks


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def straight(generation: PairGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "pairs"
    generation.run(folder, PLAN)
    return folder


def test_blocks_give_the_samples_of_one_run(generation: PairGeneration, straight: Path) -> None:
    key, settings = KEYS[1], replace(generation.sampling, sampling=SamplingSettings(7, 2, 1.0, batch_size=8))
    made = BlendedSampling(generation.sampler, settings).run(
        pick_normals(generation.dataset, generation.normals, key),
        _masks(key),
        generation.positive(key, _masks(key)),
        None,
        generation.control,
    )
    lines = [line for line in _lines(straight) if line["defect"] == "dot"]
    assert [line["seed"] for line in lines] == [record["seed"] for record in made.records]
    for line, record in zip(lines, made.records, strict=True):
        assert line["effect_score"] == pytest.approx(record["effect_score"], abs=0.01)
        assert line["settings"]["window"] == record["window"]
        assert line["settings"]["tries"] == record["tries"]
    assert [line["settings"]["control_score"] is not None for line in lines] == [True] * 3 + [False] * 2
    assert {pair.key for pair in load_exported(straight)} == set(KEYS)


@pytest.mark.parametrize("killed_at", ["masks", "sample", "written down", "exported"])
@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_killed_generation_resumes_and_generates_nothing_twice(
    generation: PairGeneration,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: str,
    batch_size: int,
) -> None:
    calls: list[str] = []

    def masks(key: str) -> tuple[Tensor, str]:
        calls.append(key)
        if killed_at == "masks" and key == KEYS[1] and calls.count(key) == 1:
            raise KilledError
        return generation.masks(key)

    class Bar(Quiet):
        def at(self, done: int, preview: Any = None) -> None:
            super().at(done)
            if killed_at == "sample" and done > 0.75 * self.total and "killed" not in calls:
                calls.append("killed")
                raise KilledError

    def exporting(folder: Path, pairs: Any, settings: Any) -> Any:
        stop = killed_at in ("written down", "exported") and calls.count("export") == 2
        calls.append("export")
        if stop and killed_at == "written down":
            (folder / "part" / "test" / "bar" / "077.png").write_bytes(b"half")
            raise KilledError
        lines = export_batch(folder, pairs, settings)
        if stop:
            raise KilledError
        return lines

    monkeypatch.setattr("anomalydiffusion_core.sampling.generation.export_batch", exporting)
    own, folder = replace(generation, masks=masks), tmp_path / "pairs"
    with pytest.raises(KilledError):
        own.run(folder, PLAN, Bar)
    sampling = replace(own.sampling, sampling=replace(own.sampling.sampling, batch_size=batch_size))
    done = replace(own, sampling=sampling).run(folder, PLAN, Bar)
    assert [(line["image"], line["seed"]) for line in _lines(folder)] == [
        (line["image"], line["seed"]) for line in _lines(straight)
    ]
    images, expected = (sorted(path.glob("part/*/*/*.png")) for path in (folder, straight))
    assert len(images) == len(expected) == 30
    for image, other in zip(images, expected, strict=True):
        # another batch size may change the last bit
        assert (read_image(image) - read_image(other)).abs().max() <= 1.01 / 255
    assert calls.count(KEYS[0]) == 1 and len(done.samples[KEYS[1]]) == 5
    before = _tree(folder)
    again = own.run(folder, PLAN)
    assert again.report == done.report and _tree(folder) == before and calls.count(KEYS[1]) <= 2


def test_weak_samples_are_left_out_but_not_forgotten(generation: PairGeneration, tmp_path: Path) -> None:
    limit = sorted(line["effect_score"] for line in _all(generation, tmp_path / "all"))[4]
    own = replace(generation, export=ExportSettings(min_effect=limit))
    done = own.run(tmp_path / "some", PLAN)
    assert len(done.exported.lines) == 6 and [len(done.samples[key]) for key in KEYS] == [5, 5]
    assert own.run(tmp_path / "some", PLAN).report == done.report
    assert "6 pairs in some" in done.report and "part/dot from boxes" in done.report and "control, 3" in done.report
    with pytest.raises(InputError, match="min_effect: no pair reaches 250"):
        replace(generation, export=ExportSettings(min_effect=250)).run(tmp_path / "none", PLAN)


def _all(generation: PairGeneration, folder: Path) -> list[dict[str, Any]]:
    generation.run(folder, PLAN)
    return _lines(folder)


def test_another_plan_in_the_same_folder_is_an_error(
    generation: PairGeneration, straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="out: .* other values of model"):
        generation.run(straight, {"model": "other"})
    with pytest.raises(InputError, match="out: .* other values of normals"):
        replace(generation, normals=replace(generation.normals, seed=4)).run(straight, PLAN)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="out: .* is not empty"):
        generation.run(tmp_path, PLAN)


def test_blocks_that_were_made_elsewhere_give_the_same_folder(generation: PairGeneration, tmp_path: Path) -> None:
    generation.run(tmp_path / "here", PLAN)

    def elsewhere(blocks: Iterator[Block]) -> Iterator[Blended]:
        for block in list(blocks):
            yield unpack_result(pack_result(generation.make_block(unpack_block(pack_block(block)))))

    generation.run(tmp_path / "there", PLAN, elsewhere=elsewhere)
    here, there = _tree(tmp_path / "here"), _tree(tmp_path / "there")
    assert here.keys() == there.keys() and len(_lines(tmp_path / "there")) > 0
    # A file of torch.save holds the name of its draft.
    different = [name for name in here if here[name] != there[name] and not name.endswith(".pt")]
    assert not different, different


def test_masks_are_moved_onto_the_object_of_each_image(generation: PairGeneration, tmp_path: Path) -> None:
    down, right = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    for number, (top, left) in enumerate(((20, 22), (40, 38), (28, 40))):
        disc = (down - top) ** 2 + (right - left) ** 2 <= 18**2
        path = tmp_path / "part" / "train" / "good" / f"{number}.png"
        write_image(path, torch.where(disc, 0.8, 0.1).expand(3, 64, 64))
    corners = torch.zeros(5, 1, 64, 64)
    corners[:, :, 56:62, 1:6] = 1
    dataset, folder = load_dataset(tmp_path, "part"), tmp_path / "pairs"
    given = replace(generation, dataset=dataset, masks=lambda key: (corners, "corners"), keys=KEYS[:1])
    replace(given, place=on_objects).run(folder, PLAN)
    assert len(_lines(folder)) == 5
    for line in _lines(folder):
        mask, disc = read_image(folder / line["mask"])[0] > 0.5, read_image(folder / line["normal"])[0] > 0.5
        assert mask.sum() == 30 and not (mask & ~disc).any()
