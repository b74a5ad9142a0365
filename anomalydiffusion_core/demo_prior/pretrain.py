"""Train the demo prior, from nothing or from a stored one: autoencoder, noise predictor with word table, one file."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..backends.ldm_autoencoder import Autoencoder, narrow
from ..backends.ldm_files import restore
from ..devices import compute_device
from ..files import file_digest, replacing
from .autoencoder_training import train_autoencoder
from .latents import prepare_latents
from .renderers import renderer_of
from .settings import PretrainSettings
from .stages import Report
from .storing import store
from .unet_training import Prior, train_prior

FILE_NAME = "demo_prior.safetensors"


def run(
    out: Path,
    minutes: float,
    seed: int,
    report: Report,
    start: Path | None = None,
    settings: PretrainSettings | None = None,
) -> Path:
    """Train for `minutes` of net training time and write `<out>/demo_prior.safetensors`; returns its path.

    Interrupt at any time and call again with the same folder: at most a minute of training is lost. A larger
    `minutes` of a second run continue the training; the seed, `start` and the shapes in `settings` must stay the same.
    Encoding the images in between is not counted.

    Args:
        out: folder of checkpoints, latents and result.
        report: called with stage, share done (0..1) and a text of the latest figures.
        start: a stored prior to start from. Its autoencoder, shapes and renderer stay, and all of the time goes into
            the noise predictor.

    Raises:
        ValueError: `minutes` is not positive, the folder belongs to other settings, or `start` is no prior.
        FileNotFoundError: `start` is not there.
    """
    if not minutes > 0:
        raise ValueError(f"minutes: must be positive, not {minutes}.")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings = settings or PretrainSettings()
    device = compute_device(settings.device)
    known: dict[str, Any] = {"data_seed": seed}
    first: Prior | None = None
    seconds = minutes * 60
    if start is None:
        _claim(out / "settings.json", known | settings.shape())
        seconds *= 1 - settings.autoencoder_share
        autoencoder = train_autoencoder(out, minutes * 60 - seconds, seed, report, settings, device)
    else:
        if not start.is_file():
            raise FileNotFoundError(f"start: {start} is not there. Give a file of pretrain-demo-prior.")
        autoencoder, first, before, settings = stored_prior(start, settings)
        known["start"] = {"sha256": file_digest(start), "training": before}
        _claim(out / "settings.json", known | settings.shape())
        autoencoder.to(device)
    renderer = settings.source
    latents = prepare_latents(
        autoencoder,
        renderer,
        out / "latents",
        settings.images,
        seed,
        report,
        device,
        settings.workers,
    )
    prior = train_prior(latents, out, seconds, seed, report, settings, first).cpu()
    told = {"minutes": minutes, **known, **asdict(settings)}
    store(out / FILE_NAME, autoencoder.cpu(), prior.unet, prior.words.weight, told, renderer=renderer)
    return out / FILE_NAME


def stored_prior(
    path: Path, settings: PretrainSettings
) -> tuple[Autoencoder, Prior, dict[str, Any], PretrainSettings]:
    """Of a file: autoencoder, noise predictor with words, the training its metadata tell of, the settings that fit."""
    wide, unet, words, stored = restore(path)
    renderer = renderer_of(stored.words)
    small = narrow(wide)
    settings = replace(
        settings,
        renderer=renderer.name,
        autoencoder_width=small.config.widths[0],
        latent_channels=unet.config.in_channels,
        width=unet.config.model_channels,
    )
    prior = Prior(unet.config, renderer.words)
    prior.unet.load_state_dict(unet.state_dict())
    with torch.no_grad():
        prior.words.weight.copy_(words)
    return small, prior, json.loads(stored.metadata["training"]), settings


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if a folder belongs to other settings; else note these."""
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        for name in sorted(found.keys() | settings.keys()):
            if found.get(name) != settings.get(name):
                name = {"data_seed": "seed"}.get(name, name)
                raise ValueError(f"{name}: {path.parent} began with another one. Give the same or use a new folder.")
        return
    with replacing(path) as partial:
        partial.write_text(json.dumps(settings), encoding="utf-8")
