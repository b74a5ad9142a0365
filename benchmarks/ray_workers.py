"""Blocks of a stub that sleeps, made by four Ray workers and by one: `python benchmarks/ray_workers.py`.

Needs the package ray[data]. The stub takes no processor, so the ratio is that of the engine, also on a busy machine.
The time of the workers' start counts. Prints a table and as the last line a JSON object: `speedup` (one worker over
four), `speedup_after_first` (from the first result on), `overhead_s` (beyond a perfect division).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import typer
from common import finish, table

from anomalydiffusion_core.cli.ray_blocks import ray_blocks
from anomalydiffusion_core.sampling.blocks import Block, MakeBlock
from anomalydiffusion_core.sampling.run import Blended


def main(blocks: int = 40, seconds: float = 2.0, workers: int = 4) -> None:
    """Time the same blocks with `workers` and with one."""

    def open_worker() -> MakeBlock:
        def make(block: Block) -> Any:
            time.sleep(seconds)
            return Blended(torch.zeros(1, 3, 8, 8), block.masks, torch.empty(0), [{"seed": block.start}], [], 0.0)

        return make

    def asked() -> Iterator[Block]:
        for number in range(blocks):
            yield Block("part/dot", number, (Path("a.png"),), torch.ones(1, 1, 8, 8))

    found, rows = {}, []
    for count in (workers, 1):
        started, first = time.perf_counter(), 0.0
        seeds = []
        for made in ray_blocks(open_worker, workers=count)(asked()):
            first = first or time.perf_counter() - started
            seeds.append(made.records[0]["seed"])
        whole = time.perf_counter() - started
        assert seeds == list(range(blocks))
        found[count] = whole, whole - first
        rows.append([str(count), f"{whole:.1f}", f"{first:.1f}", f"{blocks * seconds / count:.1f}"])
    table(["workers", "seconds", "first result after", "sleep divided"], rows)
    many, one = found[workers], found[1]
    overhead = many[0] - blocks * seconds / workers
    finish({"speedup": one[0] / many[0], "speedup_after_first": one[1] / many[1], "overhead_s": overhead})


if __name__ == "__main__":
    typer.run(main)
