"""Train the demo prior from nothing: autoencoder, then noise predictor and word table, then one stored file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .autoencoder_training import train_autoencoder
from .stages import Report
from .storing import store
from .unet_training import train_prior

AUTOENCODER_SHARE = 0.1
FILE_NAME = "demo_prior.safetensors"


def run(out: Path, minutes: float, seed: int, report: Report) -> Path:
    """Train for `minutes` of net training time and write `<out>/demo_prior.safetensors`; returns its path.

    Interrupt at any time and call again with the same folder: at most a minute of training is lost. A larger
    `minutes` on a second call goes on training; the seed must stay the same.

    Args:
        out: folder of checkpoints and result.
        report: called with stage, share done (0..1) and a text of the latest figures.

    Raises:
        ValueError: `minutes` is not positive, or the folder belongs to another seed.
    """
    if not minutes > 0:
        raise ValueError(f"minutes: must be positive, not {minutes}.")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out / "settings.json", seed)
    autoencoder = train_autoencoder(out, minutes * 60 * AUTOENCODER_SHARE, seed, report)
    prior = train_prior(autoencoder, out, minutes * 60 * (1 - AUTOENCODER_SHARE), seed, report)
    path = out / FILE_NAME
    store(path, autoencoder, prior.unet, prior.words.weight, {"minutes": minutes, "data_seed": seed})
    return path


def _claim(path: Path, seed: int) -> None:
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["data_seed"]
        if found != seed:
            raise ValueError(
                f"seed: {seed}, but {path.parent} was trained with {found}. Use that seed or a new folder."
            )
        return
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps({"data_seed": seed}), encoding="utf-8")
    os.replace(temporary, path)
