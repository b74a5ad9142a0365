"""Training without ComfyUI: a model from disk, a data set, and the files that a training leaves in a folder."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.models import Model
from ..devices import free_memory
from ..errors import BundleError, InputError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.diffusers_text import DiffusersPrompt
    from ..bundles.bundle import AnomalyBundle
    from ..data.mvtec import AnomalyDataset
    from .inversion import InversionSettings
    from .loop import OnPrepare, OnStep

BUNDLE, CURVE, SUMMARY = ".safetensors", ".png", ".json"


DEFAULT_WORDS = "anomaly"
"""Where tokens inside a prompt start, as in the authors' code."""


@dataclass(frozen=True)
class TrainingJob:
    """What a training is to do beside its settings.

    name: of the files. initial: a text the tokens start near; "" is small noise, with a template DEFAULT_WORDS.
    template: a prompt that the tokens are learned in; None learns them as the context itself. encoder_weights: a file
    of ImageNet weights for resnet50_fpn. save_every: steps between two states on disk. resume: go on from a stored
    state of the same training. keep_state: keep the state of a finished training, so that more steps train it on.
    """

    name: str = "anomaly_embedding"
    initial: str = ""
    template: str | None = None
    encoder_weights: Path | None = None
    save_every: int = 100
    resume: bool = True
    keep_state: bool = False

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise InputError(f"name: '{self.name}' is no name for a file. Give one like anomaly_embedding.")
        if self.save_every < 1:
            raise InputError(f"save every: {self.save_every} steps is not possible. Give at least 1.")


@dataclass(frozen=True)
class Trained:
    """The files of a training, its figures as they stand in the summary, and what became of a stored state."""

    bundle: Path
    curve: Path
    summary: Path
    figures: dict[str, Any]
    resumed: str = ""


def train(
    model: Model,
    dataset: AnomalyDataset,
    settings: InversionSettings,
    out: Path,
    job: TrainingJob = TrainingJob(),
    *,
    on_step: OnStep | None = None,
    on_prepare: OnPrepare | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Trained:
    """Train anomaly embeddings and write bundle, loss curve and summary, numbered, into the folder ``out``.

    The state of the training lies there too until it is finished; the same call goes on from it. Callbacks as in
    ``train_anomaly_embedding``; StopTraining raised by ``on_step`` keeps what was learned; ``on_notice`` gets the
    memory estimate in words before the first step. After a loss that is not finite the last good state is written
    before TrainingError is raised. Raises InputError for a data set without defects, a folder that cannot be written
    to, and a training that cannot fit into memory.
    """
    from ..conditioning.spatial_encoder import load_backbone
    from ..data.training import training_files, training_pairs
    from .inversion import AnomalyTrainer
    from .loop import NonFiniteLossError
    from .memory import check_memory, estimate_memory
    from .state import StateFile

    if not dataset.types:
        raise InputError(
            f"dataset: {dataset.object} has no defect pictures. Add test/<defect> and ground_truth/<defect>."
        )
    started = time.monotonic()
    _prepare_folder(out)
    start, prompt = _start(model, job)
    backbone = None if job.encoder_weights is None else load_backbone(job.encoder_weights)
    more: dict[str, Any] = {
        "split": dataset.split_rule,
        "split_options": dict(dataset.split_options),
        "split_names": {kind.key: kind.split_names for kind in dataset.types},
        "training_files": training_files(dataset),
    }
    if job.initial:
        more["initial"] = job.initial
    if job.encoder_weights is not None:
        more["encoder_weights"] = hashlib.sha256(job.encoder_weights.read_bytes()).hexdigest()[:16]
    identity = _identity(model, settings, job, more, "" if prompt is None else prompt.fingerprint())
    state = StateFile(out / f".{job.name}.{identity}.state", identity)
    if not job.resume:
        state.remove()
    pairs = {kind.key: training_pairs(kind.train, settings.resolution) for kind in dataset.types}
    trainer = AnomalyTrainer(
        model.denoiser,
        pairs,
        settings,
        initial_context=start,
        on_prepare=on_prepare,
        prompt=prompt,
        backbone=backbone,
    )
    estimate = estimate_memory(trainer.loop)
    if on_notice is not None:
        on_notice(estimate.text())
    check_memory(estimate, free_memory(model.denoiser.device))
    try:
        bundle = trainer.run(on_step, state=state, save_every=job.save_every).bundle
    except NonFiniteLossError as error:
        error.result.bundle.metadata.update(more, stopped_at_step=error.step)
        path = _write(error.result.bundle, out, job.name, time.monotonic() - started).bundle
        raise TrainingError(f"{error} The state before that step is saved as {path}.") from error
    bundle.metadata.update(more)
    if not trainer.loop.finished:
        bundle.metadata["stopped_at_step"] = trainer.loop.step
    trained = _write(bundle, out, job.name, time.monotonic() - started, trainer.resumed)
    if job.keep_state:
        state.save(trainer.loop)
    elif trainer.loop.finished:
        state.remove()
    return trained


def _start(model: Model, job: TrainingJob) -> tuple[Tensor | None, DiffusersPrompt | None]:
    """Rows that the tokens start near, and the prompt that they are learned in."""
    if job.template is None:
        return (model.caption(job.initial) if job.initial else None), None
    from ..backends.diffusers_text import DiffusersPrompt

    encoder, wanted = model.text_encoder(), model.denoiser.context_width
    if encoder.width != wanted:
        raise InputError(
            f"clip: the text encoder makes a context of width {encoder.width}, the model takes {wanted}. Use the text "
            "encoder of the model."
        )
    return encoder.words(job.initial or DEFAULT_WORDS), DiffusersPrompt(encoder, job.template.strip())


def _identity(
    model: Model, settings: InversionSettings, job: TrainingJob, provenance: dict[str, Any], text_encoder: str
) -> str:
    """The same for the same training, whatever its number of steps and early stop: a longer one goes on from it."""
    values = asdict(settings)
    values.pop("steps")
    values["options"].pop("early_stop")
    content = [model.identity, values, job.initial, job.template, text_encoder, provenance]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _prepare_folder(out: Path) -> None:
    """Fail before the training where nothing could be written after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"out: {out} cannot be written to ({error}). Give another folder.") from error


def _write(bundle: AnomalyBundle, out: Path, name: str, seconds: float, resumed: str = "") -> Trained:
    from ..data.images import write_image
    from ..figures import plot_curve
    from ..files import write_json

    stem = _save_numbered(bundle, out, name)
    losses = list(bundle.metadata["losses"])
    part = max(len(losses) // 10, 1)
    first, last = (sum(some) / max(len(some), 1) for some in (losses[:part], losses[-part:]))
    figures = {
        "bundle": f"{stem}{BUNDLE}",
        "types": list(bundle.types),
        "steps": len(losses),
        "steps_wanted": bundle.metadata["settings"]["steps"],
        "stopped_at_step": bundle.metadata.get("stopped_at_step"),
        "loss_first_tenth": round(first, 6) if losses else None,
        "loss_last_tenth": round(last, 6) if losses else None,
        "seconds": round(seconds, 1),
        "token_route": bundle.token_route,
        "base_fingerprint": bundle.base_fingerprint,
        **{name: bundle.metadata[name] for name in ("split", "split_options", "split_names", "training_files")},
        "settings": bundle.metadata["settings"],
    }
    trained = Trained(out / f"{stem}{BUNDLE}", out / f"{stem}{CURVE}", out / f"{stem}{SUMMARY}", figures, resumed)
    write_image(trained.curve, plot_curve(losses, "anomaly embedding"))
    write_json(trained.summary, figures)
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
