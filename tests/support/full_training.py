"""Trains on a Stable Diffusion 1.5 of full size in a process of its own: `python full_training.py FOLDER`.

The folder holds the checkpoint models/checkpoints/full.safetensors. Batch 1, 256 pixels, float32, on the CPU. Prints
as the last line a JSON object: the largest resident set of the process in bytes, the estimate of what the steps add,
the resident set before the steps, the losses.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

import in_process
import psutil
import torch

SIDE = 256


def main(base: Path) -> None:
    """Load, train two steps, tell."""
    own, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], own.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    in_process.load_extension(base)
    stock = in_process.stock_nodes()
    folder_paths: Any = importlib.import_module("folder_paths")
    folder_paths.folder_names_and_paths["checkpoints"] = ([str(base / "models" / "checkpoints")], {".safetensors"})
    model, clip, vae = stock("CheckpointLoaderSimple", "full.safetensors")
    del clip
    models, inversion, memory = (
        importlib.import_module(f"{in_process.PACKAGE}.{name}")
        for name in (
            "nodes.host.denoiser",
            "anomalydiffusion_core.training.inversion",
            "anomalydiffusion_core.training.memory",
        )
    )
    masks = torch.zeros(1, 1, SIDE, SIDE)
    masks[:, :, 60:140, 80:200] = 1
    pairs = {"part/dent": (torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), masks)}
    settings = inversion.InversionSettings(
        steps=2, batch_size=1, resolution=SIDE, augmented_copies=0, encoder="resnet50_fpn"
    )
    trainer = inversion.AnomalyTrainer(models.ComfyDenoiser(model, vae), pairs, settings)
    estimate = memory.estimate_memory(trainer.loop)
    loading, before = peak[0], own.memory_info().rss
    peak[0] = 0
    losses = trainer.run().losses
    done.set()
    watcher.join()
    figures = {"peak": max(loading, peak[0]), "steps_peak": peak[0], "before": before, "estimate": estimate.needed}
    sys.stdout.write(json.dumps({**figures, "losses": losses}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
