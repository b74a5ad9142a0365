"""Blocks made elsewhere: through Ray the same folder, byte for byte, also when a worker is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalydiffusion_core.cli.ray_blocks import ray_blocks
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.tables.records import paper_name
from anomalydiffusion_core.sampling.blocks import (
    Block,
    MakeBlock,
    pack_block,
    pack_result,
    unpack_block,
    unpack_result,
)
from anomalydiffusion_core.sampling.run import Blended

pytestmark = pytest.mark.core


def blocks(count: int) -> Iterator[Block]:
    for number in range(count):
        yield Block("part/dot", 2 * number, (Path("a.png"), Path("b.png")), torch.ones(2, 1, 4, 6))


def made_of(block: Block) -> Blended:
    generator = torch.Generator().manual_seed(block.start)
    images = torch.rand(2, 3, 4, 6, generator=generator)
    records = [{"seed": block.start + place, "effect_score": 0.1, "window": None} for place in range(2)]
    return Blended(images, block.masks, torch.empty(0), records, ["note"], 2.5)


def test_blocks_and_results_survive_the_way_to_another_process() -> None:
    block = next(blocks(1))
    back = unpack_block(pack_block(block))
    assert (back.key, back.start) == ("part/dot", 0) and back.paths == tuple(p.absolute() for p in block.paths)
    assert torch.equal(back.masks, block.masks)
    made, other = made_of(block), unpack_result(pack_result(made_of(block)))
    assert torch.equal(made.images, other.images) and torch.equal(made.masks, other.masks)
    assert (made.records, made.notices, made.min_effect) == (other.records, other.notices, other.min_effect)


def test_methods_of_the_paper_by_any_spelling() -> None:
    spellings = {"diffaug": "DiffAug", "Crop-Paste": "Crop&Paste", "defect_gan": "Defect-GAN", "SD-GAN": "SDGAN"}
    assert {name: paper_name(name) for name in spellings} == spellings
    assert paper_name("AnomalyXFusion") == "AnomalyXFusion"


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'ray\[data\]'"):
        ray_blocks(lambda: made_of)


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the optional package ray is not installed")
    flag = tmp_path / "kill once"
    flag.touch()

    def open_worker() -> MakeBlock:
        def make(block: Block) -> Any:
            if block.start == 20 and flag.exists():
                flag.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            generator = torch.Generator().manual_seed(block.start)
            records = [{"seed": block.start + place} for place in range(2)]
            return Blended(torch.rand(2, 3, 4, 6, generator=generator), block.masks, torch.empty(0), records, [], 0.0)

        return make

    found = list(ray_blocks(open_worker, workers=2)(blocks(20)))
    assert not flag.exists()
    assert [one.records[0]["seed"] for one in found] == list(range(0, 40, 2))
    for number, one in enumerate(found):
        assert torch.equal(one.images, made_of(Block("", 2 * number, (), one.masks)).images)
