"""Adapt to Normals: a LoRA that lets the base model redraw a good part (design, decision 8)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset, load_images
from ..anomalydiffusion_core.errors import InputError, TrainingError
from ..anomalydiffusion_core.figures import plot_curve
from ..anomalydiffusion_core.sampling.control import measure_control
from ..anomalydiffusion_core.sampling.sampler import SamplingSettings
from ..anomalydiffusion_core.training.adaptation import (
    AdaptationResult,
    AdaptationSettings,
    NormalAdapter,
    random_masks,
)
from ..anomalydiffusion_core.training.loop import NonFiniteLossError, StepReport
from .host import denoiser as host_models
from .host import folders, tensors
from .host import lora as host_lora
from .host.conditioning import ComfyConditioning
from .host.progress import LARGEST_SEED, Progress
from .host.sampler import ComfySampler
from .sockets import CATEGORY, Dataset, shown

RECIPE = 1
"""Part of the content key: raise it when the same settings train to something else."""
CONTROL_STEPS = 16
CONTROL_CFG = 2.5
"""As the sampler's default; without a negative the control is measured at 1."""
CURVES_SHOWN = 8


class AdaptToNormals(io.ComfyNode):
    """Tunes a LoRA on good pictures under the caption of a good part."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionAdaptToNormals",
            display_name="Adapt to Normals",
            category=f"{CATEGORY}/training",
            description=(
                "For a base model that cannot redraw a good part inside a mask, which the sampler's control shows: "
                "tunes a LoRA on good pictures alone, saves it in models/loras, and measures the control before and "
                "after. Train the defects on the MODEL that comes out. The same inputs are not trained twice."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The base model, which stays unchanged."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                Dataset.Input("dataset", tooltip="From Load Anomaly Dataset; only its good pictures are used."),
                io.Conditioning.Input(
                    "normal", tooltip="The conditioning of a good part: normal caption, or a prompt that names it."
                ),
                io.String.Input(
                    "name",
                    default="normals",
                    tooltip="The LoRA is saved as models/loras/<name>_00001.safetensors, numbered on.",
                ),
                io.Int.Input("steps", default=200, min=1, max=1000000, tooltip="Optimizer steps."),
                io.Int.Input(
                    "batch_size", default=4, min=1, max=256, tooltip="Pictures in each step. Lower it to save memory."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.002,
                    min=0.0,
                    max=1000.0,
                    step=0.0001,
                    round=False,
                    tooltip="Learning rate of Adam. Large models usually take about 0.0001.",
                ),
                io.Int.Input("rank", default=8, min=1, max=512, tooltip="Rank of the LoRA: more can learn more."),
                io.Int.Input(
                    "resolution",
                    default=256,
                    min=32,
                    max=2048,
                    step=8,
                    tooltip="Side in pixels at which the pictures are learned. Sample at the same size.",
                ),
                io.Int.Input(
                    "pictures",
                    default=40,
                    min=1,
                    max=100000,
                    tooltip="How many of the good pictures are learned from, drawn with the seed.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    tooltip="Same inputs and seed train the same LoRA.",
                ),
                io.Int.Input(
                    "control_samples",
                    default=4,
                    min=0,
                    max=1000,
                    tooltip=(
                        "Good pictures, others than those learned from where there are any, on which the control is "
                        "measured before and after. 0 measures nothing."
                    ),
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=(
                        "The empty caption, for sampling with a cfg above 1: one picture in five is learned under it, "
                        "and the control is measured at cfg 2.5, else at 1."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("adapted_model", display_name="model", tooltip="The model with the LoRA applied."),
                io.Image.Output("curve", display_name="loss curve", tooltip="The loss of each step."),
                io.String.Output(
                    "report", display_name="report", tooltip="The file, and the control before and after."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        dataset: AnomalyDataset,
        normal: host_models.Conditioning,
        name: str,
        pictures: int,
        control_samples: int,
        negative: host_models.Conditioning | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        settings = AdaptationSettings(**values)
        denoiser = host_models.ComfyDenoiser(model, vae)
        context = host_models.single_context(normal, "normal")
        empty = None if negative is None else host_models.single_context(negative, "negative")
        denoiser.check_width(context.shape[-1], "normal")
        if empty is not None:
            denoiser.check_width(empty.shape[-1], "negative")
        target = folders.new_model_path(folders.LORAS, name)  # a bad name should fail before the training
        chosen, others = _drawn(dataset, pictures, settings.seed)
        content: dict[str, Any] = {
            "recipe": RECIPE,
            "settings": asdict(settings),
            "good_pictures": {_label(dataset, path): folders.file_digest(path)[:16] for path in chosen},
            "base": denoiser.patched_fingerprint(),
            "vae": denoiser.vae_fingerprint(),
            "normal": host_models.conditioning_digest(normal),
            "negative": host_models.conditioning_digest(negative),
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
        found = host_lora.find_lora(key)
        if found is not None:
            path, record = found
            adapted = host_lora.with_lora(model, host_lora.read_lora(path))
            return _result(cls, adapted, path, record, "trained before with the same inputs, loaded")

        progress = Progress(len(chosen) + settings.steps)
        control = _Control(dataset, others or chosen, control_samples, settings, normal, negative)
        record = {
            "kind": "adaptation",
            "content_key": key,
            "base_fingerprint": denoiser.fingerprint(),
            **{name: content[name] for name in ("settings", "good_pictures")},
            "control_before": control.effect(denoiser, progress),
        }
        images = load_images(chosen, settings.resolution, dataset.bits)
        watch = _Watch(progress)
        adapter = NormalAdapter(
            denoiser,
            model.model.diffusion_model,
            images,
            context,
            settings,
            empty_context=empty,
            on_prepare=watch.on_prepare,
        )
        host_lora.with_lora(model, adapter.result().tensors)  # what does not fit should fail before the training
        result = _trained(adapter, watch, target, record)
        adapted = host_lora.with_lora(model, result.tensors)
        record["losses"] = [round(loss, 6) for loss in result.losses]
        try:
            record["control_after"] = control.effect(host_models.ComfyDenoiser(adapted, vae), progress)
        finally:
            host_lora.save_lora(target, result.tensors, record)
        return _result(cls, adapted, target, record, "trained and saved")


def _drawn(dataset: AnomalyDataset, count: int, seed: int) -> tuple[list[Path], list[Path]]:
    """The good pictures to learn from, and the others, both shuffled. Raises InputError when there are none."""
    if not dataset.normals:
        raise InputError(f"dataset: {dataset.object} has no good pictures. Add some to train/good.")
    shuffled = random.Random(seed).sample(list(dataset.normals), len(dataset.normals))
    return shuffled[:count], shuffled[count:]


def _label(dataset: AnomalyDataset, path: Path) -> str:
    return f"{dataset.object}/{path.relative_to(dataset.root / dataset.object).as_posix()}"


class _Control:
    """What the sampler's control measures: the change inside random masks under the caption of a good part."""

    def __init__(
        self,
        dataset: AnomalyDataset,
        paths: Sequence[Path],
        count: int,
        settings: AdaptationSettings,
        normal: host_models.Conditioning,
        negative: host_models.Conditioning | None,
    ) -> None:
        self._paths, self._bits, self._resolution = list(paths[:count]), dataset.bits, settings.resolution
        # Other masks than those of the training, which come from the seed itself.
        self._seed = settings.seed + 1
        self._normal, self._negative = normal, negative

    def effect(self, denoiser: host_models.ComfyDenoiser, progress: Progress) -> float | None:
        """Mean effect of 0 to 255 inside the masks, None without samples."""
        count = len(self._paths)
        if not count:
            return None
        images = load_images(self._paths, self._resolution, self._bits)
        masks = random_masks(count, images.shape[-2:], self._seed)
        cfg = 1.0 if self._negative is None else CONTROL_CFG
        settings = SamplingSettings(self._seed, CONTROL_STEPS, cfg)

        def expect(total: int) -> Progress:
            progress.expect(total)
            return progress

        normal, negative = ComfyConditioning(self._normal), ComfyConditioning.of(self._negative)
        return measure_control(ComfySampler(denoiser), images, masks, normal, negative, settings, expect)


class _Watch:
    """Pictures and steps of a training on a bar that others use too, with the loss curve as preview now and then."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._losses = progress, list[float]()
        self._prepared = 0

    def on_prepare(self, done: int, total: int) -> None:
        self._progress.step(done - self._prepared)
        self._prepared = done

    def on_step(self, report: StepReport) -> None:
        self._losses.append(report.loss)
        due = report.step % max(report.total // CURVES_SHOWN, 25) == 0
        self._progress.step(preview=plot_curve(self._losses, "adaptation") if due else None)


def _trained(adapter: NormalAdapter, watch: _Watch, target: Path, record: dict[str, Any]) -> AdaptationResult:
    """Run to the end. What was learned until something stopped it is saved, without the key of a whole training."""
    try:
        return adapter.run(watch.on_step)
    except NonFiniteLossError as error:
        _save_part(adapter, target, record, error.step)
        raise TrainingError(f"{error} The state before that step is saved as {target.name}.") from error
    except Exception:  # an interrupt of the host is one too
        if adapter.loop.step:
            _save_part(adapter, target, record, adapter.loop.step)
        raise


def _save_part(adapter: NormalAdapter, target: Path, record: dict[str, Any], step: int) -> None:
    part = {name: value for name, value in record.items() if name != "content_key"}
    host_lora.save_lora(target, adapter.result().tensors, {**part, "stopped_at_step": step})


def _result(cls: Any, adapted: Any, path: Path, record: dict[str, Any], what: str) -> io.NodeOutput:
    losses = [float(loss) for loss in record.get("losses", ())]
    lines = [f"{path.name}: {what}. {len(record['good_pictures'])} good pictures, {len(losses)} steps."]
    before, after = record.get("control_before"), record.get("control_after")
    if before is None or after is None:
        lines.append("The control was not measured.")
    else:
        lines.append(
            f"Control (change inside random masks under the normal caption, 0 to 255): {before:.1f} before, "
            f"{after:.1f} after."
        )
    curve, report = tensors.to_host_images(plot_curve(losses, "adaptation")), "\n".join(lines)
    return io.NodeOutput(adapted, curve, report, ui=shown(report, curve, cls, lora_file=[path.name]))
