"""Training without ComfyUI: a model from disk, a data set, and the files that a training leaves in a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BundleError, InputError, TrainingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .bundle import AnomalyBundle
    from .data.mvtec import AnomalyDataset
    from .denoiser import Denoiser
    from .inversion import InversionSettings
    from .training_loop import OnPrepare, OnStep

DTYPES = ("float32", "bfloat16", "float16")
BUNDLE, CURVE, SUMMARY = ".safetensors", ".png", ".json"


@dataclass(frozen=True)
class Model:
    """A model from disk, and what turns a text into the rows [L, width] of its context."""

    denoiser: Denoiser
    caption: Callable[[str], Tensor]


@dataclass(frozen=True)
class Trained:
    """The files of a training, and its figures as they stand in the summary."""

    bundle: Path
    curve: Path
    summary: Path
    figures: dict[str, Any]


def compute_device(name: str = "") -> torch.device:
    """The device of this name; without one a GPU where there is one. Raises InputError for a device there is not."""
    import torch

    if not name:
        backends = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return torch.device(next((kind for kind, there in backends.items() if there), "cpu"))
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"device: '{name}' cannot be used ({reason}). Give cpu, or leave it out.") from error
    return device


def open_model(path: Path, device: str = "", dtype: str = DTYPES[0]) -> Model:
    """Load a diffusers folder, or a file in the layout of the demo prior, which computes on the CPU in float32 only.

    device: as in compute_device. Raises InputError that says what is missing or not supported.
    """
    import torch

    path = Path(path)
    if dtype not in DTYPES:
        raise InputError(f"dtype: there is no '{dtype}'. Choose one of {', '.join(DTYPES)}.")
    if path.is_dir():
        from .backends.diffusers import load_diffusers
        from .backends.diffusers_text import load_text_encoder

        place = compute_device(device)
        denoiser = load_diffusers(path, place, getattr(torch, dtype))
        return Model(denoiser, lambda text: load_text_encoder(path, place).caption(text)[0])
    if not path.is_file():
        raise InputError(f"model: {path} does not exist. Give a diffusers folder, or a file like the demo prior.")
    if device not in ("", "cpu") or dtype != DTYPES[0]:
        raise InputError(f"model: a file like {path.name} computes on the CPU in float32. Leave device and dtype out.")
    from .backends.ldm import load_ldm

    try:
        prior = load_ldm(path)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise InputError(f"model: {error}. Give a diffusers folder, or a file like the demo prior.") from error
    return Model(prior, lambda text: prior.caption_context(text)[0])


def train(
    model: Model,
    dataset: AnomalyDataset,
    settings: InversionSettings,
    out: Path,
    name: str = "anomaly_embedding",
    *,
    initial: str = "",
    on_step: OnStep | None = None,
    on_prepare: OnPrepare | None = None,
) -> Trained:
    """Train anomaly embeddings and write bundle, loss curve and summary, numbered, into the folder ``out``.

    initial: a text the tokens start near. Callbacks as in ``train_anomaly_embedding``; StopTraining raised by
    ``on_step`` keeps what was learned. After a loss that is not finite the last good state is written before
    TrainingError is raised. Raises InputError for a data set without defects and a folder that cannot be written to.
    """
    from .data.training import training_files, training_pairs
    from .inversion import AnomalyTrainer
    from .training_loop import NonFiniteLossError

    if not dataset.types:
        raise InputError(
            f"dataset: {dataset.object} has no defect pictures. Add test/<defect> and ground_truth/<defect>."
        )
    started = time.monotonic()
    _prepare_folder(out, name)
    pairs = {kind.key: training_pairs(kind.train, settings.resolution) for kind in dataset.types}
    trainer = AnomalyTrainer(
        model.denoiser,
        pairs,
        settings,
        initial_context=model.caption(initial) if initial else None,
        on_prepare=on_prepare,
    )
    more: dict[str, Any] = {"split": dataset.split_rule, "training_files": training_files(dataset)}
    if initial:
        more["initial"] = initial
    try:
        result = trainer.run(on_step)
    except NonFiniteLossError as error:
        bundle = error.result.bundle
        bundle.metadata.update(more, stopped_at_step=error.step)
        path = _write(bundle, out, name, time.monotonic() - started).bundle
        raise TrainingError(f"{error} The state before that step is saved as {path}.") from error
    result.bundle.metadata.update(more)
    if len(result.losses) < settings.steps:
        result.bundle.metadata["stopped_at_step"] = len(result.losses)
    return _write(result.bundle, out, name, time.monotonic() - started)


def _prepare_folder(out: Path, name: str) -> None:
    """Fail before the training where nothing could be written after it."""
    import tempfile

    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"name: '{name}' is no name for a file. Give one like anomaly_embedding.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"out: {out} cannot be written to ({error}). Give another folder.") from error


def _write(bundle: AnomalyBundle, out: Path, name: str, seconds: float) -> Trained:
    from .data.pictures import write_image
    from .results import write_summary
    from .sheets import plot_curve

    stem = _save_numbered(bundle, out, name)
    losses = list(bundle.metadata["losses"])
    part = max(len(losses) // 10, 1)
    first, last = (sum(some) / max(len(some), 1) for some in (losses[:part], losses[-part:]))
    figures = {
        "bundle": f"{stem}{BUNDLE}",
        "types": list(bundle.types),
        "steps": len(losses),
        "steps_wanted": bundle.metadata["settings"]["steps"],
        "loss_first_tenth": round(first, 6) if losses else None,
        "loss_last_tenth": round(last, 6) if losses else None,
        "seconds": round(seconds, 1),
        "token_route": bundle.token_route,
        "base_fingerprint": bundle.base_fingerprint,
        "split": bundle.metadata["split"],
        "training_files": bundle.metadata["training_files"],
        "settings": bundle.metadata["settings"],
    }
    trained = Trained(out / f"{stem}{BUNDLE}", out / f"{stem}{CURVE}", out / f"{stem}{SUMMARY}", figures)
    write_image(trained.curve, plot_curve(losses, "anomaly embedding"))
    write_summary(trained.summary, figures)
    return trained


def _save_numbered(bundle: AnomalyBundle, out: Path, name: str) -> str:
    """Save as ``<name>_00001.safetensors`` or with the first free number; returns the name without the ending."""
    while True:
        stem = f"{name}_{_highest_number(out, name) + 1:05d}"
        try:
            bundle.save(out / f"{stem}{BUNDLE}")
        except BundleError:
            if not (out / f"{stem}{BUNDLE}").exists():
                raise
            continue  # another training took that number in the meantime
        return stem


def _highest_number(out: Path, name: str) -> int:
    numbers = [0]
    for path in out.iterdir():
        digits = path.name.removeprefix(f"{name}_").split(".")[0]
        if path.name.startswith(f"{name}_") and digits.isdecimal():
            numbers.append(int(digits))
    return max(numbers)
