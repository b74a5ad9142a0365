"""Train the demo prior, from nothing or from a stored one: autoencoder, noise predictor with word table, one file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ..backends.ldm_autoencoder import Autoencoder, narrow
from ..backends.ldm_files import restore
from ..files import replacing
from .autoencoder_training import train_autoencoder
from .stages import Report
from .storing import store
from .unet_training import Prior, train_prior

AUTOENCODER_SHARE = 0.1
FILE_NAME = "demo_prior.safetensors"


def run(out: Path, minutes: float, seed: int, report: Report, start: Path | None = None) -> Path:
    """Train for `minutes` of net training time and write `<out>/demo_prior.safetensors`; returns its path.

    Interrupt at any time and call again with the same folder: at most a minute of training is lost. A larger
    `minutes` of a second run continue the training; the seed and `start` must stay the same.

    Args:
        out: folder of checkpoints and result.
        report: called with stage, share done (0..1) and a text of the latest figures.
        start: a stored prior to start from. Its autoencoder stays, and all of the time goes into the noise predictor.

    Raises:
        ValueError: `minutes` is not positive, the folder belongs to another seed or start, or `start` is no prior.
        FileNotFoundError: `start` is not there.
    """
    if not minutes > 0:
        raise ValueError(f"minutes: must be positive, not {minutes}.")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"data_seed": seed}
    if start is None:
        _claim(out / "settings.json", settings)
        autoencoder = train_autoencoder(out, minutes * 60 * AUTOENCODER_SHARE, seed, report)
        prior = train_prior(autoencoder, out, minutes * 60 * (1 - AUTOENCODER_SHARE), seed, report)
    else:
        if not start.is_file():
            raise FileNotFoundError(f"start: {start} is not there. Give a file of pretrain-demo-prior.")
        autoencoder, first, before = _stored(start)
        settings["start"] = {"sha256": hashlib.sha256(start.read_bytes()).hexdigest(), "training": before}
        _claim(out / "settings.json", settings)
        prior = train_prior(autoencoder, out, minutes * 60, seed, report, first)
    path = out / FILE_NAME
    store(path, autoencoder, prior.unet, prior.words.weight, {"minutes": minutes, **settings})
    return path


def _stored(path: Path) -> tuple[Autoencoder, Prior, dict[str, Any]]:
    """Autoencoder, noise predictor with words, and the training that the metadata tell of."""
    wide, unet, words, metadata = restore(path)
    prior = Prior()
    prior.unet.load_state_dict(unet.state_dict())
    with torch.no_grad():
        prior.words.weight.copy_(words)
    return narrow(wide), prior, json.loads(metadata["training"])


def _claim(path: Path, settings: dict[str, Any]) -> None:
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["data_seed"] != settings["data_seed"]:
            raise ValueError(
                f"seed: {settings['data_seed']}, but {path.parent} was trained with {found['data_seed']}. "
                "Use that seed or a new folder."
            )
        if found.get("start") != settings.get("start"):
            raise ValueError(f"start: {path.parent} began from another one. Give the same file or use a new folder.")
        return
    with replacing(path) as partial:
        partial.write_text(json.dumps(settings), encoding="utf-8")
