"""Train Anomaly Embedding and Train Mask Embedding: from a few pairs to a bundle on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.bundle import AnomalyBundle, load_bundle
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.errors import InputError, TrainingError
from ..anomalydiffusion_core.inversion import InversionSettings, TrainingResult, train_anomaly_embedding
from ..anomalydiffusion_core.mask_embedding import MaskEmbeddingSettings, train_mask_embedding
from ..anomalydiffusion_core.sheets import plot_curve
from ..anomalydiffusion_core.spatial_encoder import VARIANTS
from ..anomalydiffusion_core.training_loop import NonFiniteLossError, StepReport
from . import host, host_models
from .dataset import training_pairs
from .sockets import CATEGORY, Bundle, Dataset, shown

logger = logging.getLogger(__name__)

CURVES_SHOWN = 8
RECIPE = 1
"""Part of the content key: raise it when the same settings train to something else."""


def _common_inputs(name: str) -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The frozen base model: Stable Diffusion 1.5 or the demo prior."),
        io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
        Dataset.Input("dataset", tooltip="From Load Anomaly Dataset; all its defect types are learned in one run."),
        io.String.Input(
            "name",
            default=name,
            tooltip="The bundle is saved as models/anomalydiffusion/<name>_00001.safetensors, numbered on.",
        ),
        io.Int.Input("steps", default=300, min=1, max=1000000, tooltip="Optimizer steps. More learn more faithfully."),
        io.Int.Input(
            "batch_size", default=4, min=1, max=256, tooltip="Pictures in each step. Lower it to save memory."
        ),
        io.Float.Input(
            "learning_rate",
            default=0.005,
            min=0.0,
            max=1000.0,
            step=0.0001,
            round=False,
            tooltip="Learning rate of Adam; 0.005 in the paper.",
        ),
        io.Int.Input(
            "resolution",
            default=256,
            min=32,
            max=2048,
            step=8,
            tooltip="Side in pixels at which the pictures are learned. Sample at the same size.",
        ),
        io.Int.Input(
            "augmented_copies",
            default=8,
            min=0,
            max=1000,
            tooltip="Cropped, moved and turned versions of each pair, beside the pair itself.",
        ),
        io.Boolean.Input(
            "flips", default=False, tooltip="Also mirror. Only where a mirrored part is a possible part."
        ),
        io.Int.Input(
            "seed", default=0, min=0, max=host.LARGEST_SEED, tooltip="Same inputs and seed train to the same bundle."
        ),
        io.Conditioning.Input(
            "initial",
            optional=True,
            tooltip="Where the tokens start: the conditioning of a good part. Without it they start as small noise.",
        ),
    ]


def _common_outputs(what: str) -> list[io.Output]:
    return [
        Bundle.Output("bundle", display_name="bundle", tooltip=f"{what}, also saved in models/anomalydiffusion."),
        io.Image.Output("curve", display_name="loss curve", tooltip="The loss of each step."),
        io.String.Output("report", display_name="report", tooltip="What was learned, and the name of the file."),
    ]


class TrainAnomalyEmbedding(io.ComfyNode):
    """Masked textual inversion with a spatial encoder (paper, section 3.2)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionTrainAnomalyEmbedding",
            display_name="Train Anomaly Embedding",
            category=f"{CATEGORY}/training",
            description=(
                "Learns what each defect type looks like (anomaly embedding) and how a mask says where it lies "
                "(spatial encoder) from a few pairs. The model stays frozen and unchanged. The same inputs are not "
                "trained twice."
            ),
            inputs=[
                *_common_inputs("anomaly_embedding"),
                io.Int.Input(
                    "anomaly_tokens", default=8, min=1, max=64, tooltip="Tokens of each type, k in the paper."
                ),
                io.Int.Input("spatial_tokens", default=4, min=1, max=64, tooltip="Tokens of a mask, n in the paper."),
                io.Combo.Input(
                    "encoder",
                    options=list(VARIANTS),
                    default=VARIANTS[0],
                    tooltip=(
                        "Spatial encoder: light for a CPU, resnet50_fpn as in the paper, none for an ablation without "
                        "spatial tokens."
                    ),
                ),
                io.Boolean.Input(
                    "normalize_by_mask_area",
                    default=False,
                    tooltip="Let small defects weigh as much as large ones. Off in the paper.",
                ),
                io.Boolean.Input(
                    "masked_loss",
                    default=True,
                    optional=True,
                    tooltip="Count the loss inside the mask only, as the paper does. Off is an ablation.",
                ),
            ],
            outputs=_common_outputs("Anomaly embeddings and spatial encoder"),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        dataset: AnomalyDataset,
        name: str,
        initial: host_models.Conditioning | None = None,
        **options: Any,
    ) -> io.NodeOutput:
        settings = InversionSettings(**options)
        denoiser = host_models.ComfyDenoiser(model, vae)

        def train(progress: _TrainingProgress) -> TrainingResult:
            pairs = {kind.key: training_pairs(kind.train, settings.resolution) for kind in dataset.types}
            return train_anomaly_embedding(
                denoiser,
                pairs,
                settings,
                initial_context=_initial_context(initial),
                on_step=progress.on_step,
                on_prepare=progress.on_prepare,
            )

        return _train_or_reuse(cls, "anomaly", denoiser, dataset, name, asdict(settings), initial, train)


class TrainMaskEmbedding(io.ComfyNode):
    """Textual inversion of the masks themselves (paper, section 3.4), all types in one run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionTrainMaskEmbedding",
            display_name="Train Mask Embedding",
            category=f"{CATEGORY}/training",
            description=(
                "Learns what the masks of each defect type look like, so that Mask Embedding Sampler can draw new "
                "ones. The model stays frozen and unchanged. The same inputs are not trained twice."
            ),
            inputs=[
                *_common_inputs("mask_embedding"),
                io.Int.Input("tokens", default=4, min=1, max=64, tooltip="Tokens of each type, k' in the paper."),
            ],
            outputs=_common_outputs("Mask embeddings"),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        dataset: AnomalyDataset,
        name: str,
        initial: host_models.Conditioning | None = None,
        **options: Any,
    ) -> io.NodeOutput:
        settings = MaskEmbeddingSettings(**options)
        denoiser = host_models.ComfyDenoiser(model, vae)

        def train(progress: _TrainingProgress) -> TrainingResult:
            masks = {kind.key: training_pairs(kind.train, settings.resolution)[1] for kind in dataset.types}
            return train_mask_embedding(
                denoiser,
                masks,
                settings,
                initial_context=_initial_context(initial),
                on_step=progress.on_step,
                on_prepare=progress.on_prepare,
            )

        return _train_or_reuse(cls, "mask", denoiser, dataset, name, asdict(settings), initial, train)


class _TrainingProgress:
    """Both phases of a training on one bar, with the loss curve as preview now and then."""

    def __init__(self, pictures: int, steps: int) -> None:
        self._bar = host.Progress(pictures + steps)
        self._pictures = pictures
        self._losses: list[float] = []

    def on_prepare(self, done: int, total: int) -> None:
        self._bar.at(round(self._pictures * done / max(total, 1)))

    def on_step(self, report: StepReport) -> None:
        self._losses.append(report.loss)
        due = report.step % max(report.total // CURVES_SHOWN, 25) == 0
        self._bar.at(self._pictures + report.step, plot_curve(self._losses, "training") if due else None)


def _initial_context(initial: host_models.Conditioning | None) -> Any:
    return None if initial is None else host_models.single_context(initial, "initial")


def _train_or_reuse(
    cls: Any,
    kind: str,
    denoiser: host_models.ComfyDenoiser,
    dataset: AnomalyDataset,
    name: str,
    settings: dict[str, Any],
    initial: host_models.Conditioning | None,
    train: Callable[[_TrainingProgress], TrainingResult],
) -> io.NodeOutput:
    """Train and save, or load what a training of the same content saved: the host may run a node again at any time."""
    if not dataset.types:
        raise InputError(
            f"dataset: {dataset.object} has no defect pictures. Add test/<defect> and ground_truth/<defect>."
        )
    target = host.new_bundle_path(name)  # a bad name should fail before the training, not after it
    content: dict[str, Any] = {
        "recipe": RECIPE,
        "kind": kind,
        "settings": settings,
        "training_files": _training_files(dataset),
        "base": denoiser.patched_fingerprint(),
        "vae": denoiser.vae_fingerprint(),
        "initial": host_models.conditioning_digest(initial),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    found = host.find_bundle(key)
    if found is not None:
        return _result(cls, load_bundle(found), found.name, "trained before with the same inputs, loaded")
    pairs = sum(len(kind.train) for kind in dataset.types)
    progress = _TrainingProgress(pairs * (1 + settings["augmented_copies"]), settings["steps"])
    provenance = {"split": dataset.split_rule, "training_files": content["training_files"]}
    try:
        bundle = train(progress).bundle
    except NonFiniteLossError as error:
        error.result.bundle.metadata.update(provenance, stopped_at_step=error.step)
        error.result.bundle.save(target)
        raise TrainingError(f"{error} The state before that step is saved as {target.name}.") from error
    bundle.metadata.update(provenance, content_key=key)
    bundle.save(target)
    logger.info("saved %s", target)
    return _result(cls, bundle, target.name, "trained and saved")


def _training_files(dataset: AnomalyDataset) -> dict[str, str]:
    """Hashes of all files that are learned from, by their path below the category folder."""
    base = dataset.root / dataset.object
    return {
        f"{dataset.object}/{path.relative_to(base).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for kind in dataset.types
        for pair in kind.train
        for path in (pair.image_path, pair.mask_path)
    }


def _result(cls: Any, bundle: AnomalyBundle, file: str, what: str) -> io.NodeOutput:
    losses = list(bundle.metadata.get("losses", ()))
    part = max(len(losses) // 10, 1)
    first, last = (sum(some) / max(len(some), 1) for some in (losses[:part], losses[-part:]))
    report = (
        f"{file}: {what}. Types: {', '.join(bundle.types)}. {len(losses)} steps, loss {first:.4f} at the start and "
        f"{last:.4f} at the end (means over {part} steps)."
    )
    curve = host.to_host_images(plot_curve(losses, f"{bundle.kind} embedding"))
    return io.NodeOutput(bundle, curve, report, ui=shown(report, curve, cls, bundle_file=[file]))
