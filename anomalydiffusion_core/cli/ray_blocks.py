"""Blocks of samples made by Ray: the same pairs on many processes or machines, written by the one that asked.

Ray Data maps the blocks over actors that each hold the model. A worker that dies is started again and its block made
again; since results come back in order and one process writes them, no pair is lost, doubled, or different.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import InputError
from ..sampling.blocks import Block, Blocks, MakeBlock, pack_block, pack_result, unpack_block, unpack_result
from ..sampling.run import Blended

LOCAL = "local"
_PACKED = ("plan", "masks")


def ray_blocks(
    open_worker: Callable[[], MakeBlock], address: str = LOCAL, workers: int = 2, gpus: float = 0
) -> Blocks:
    """What makes blocks on a Ray cluster.

    open_worker: called once in each worker, gives what makes a block; it must be picklable. address: of a cluster, or
    LOCAL for processes on this machine. workers: actors at once; gpus: GPUs of each, may be a part of one. Raises
    InputError where Ray is not installed or the cluster is not reached.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "ray: the package is not installed. Install it beside this one with: pip install 'ray[data]'."
        ) from error
    if not ray.is_initialized():
        # A busy machine takes longer than Ray waits by itself.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
        known: dict[str, Any] = {"num_cpus": workers + 1} if address == LOCAL else {"address": address}
        try:
            ray.init(log_to_driver=False, include_dashboard=False, **known)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"ray: no cluster at '{address}' ({error}). Check the address, or give local.") from error

    class Worker:
        """An actor: holds the model, makes one block after the other."""

        def __init__(self) -> None:
            self._make = open_worker()

        def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
            packed = [
                dict(zip(_PACKED, values, strict=True)) for values in zip(*(rows[n] for n in _PACKED), strict=True)
            ]
            return {"made": [pack_result(self._make(unpack_block(one))) for one in packed]}

    def make(blocks: Iterator[Block]) -> Iterator[Blended]:
        rows = [pack_block(block) for block in blocks]
        if not rows:
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker, batch_size=1, concurrency=workers, num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=-1
        )
        for row in made.iter_rows():
            yield unpack_result(row["made"])

    return make
