"""Train Anomaly Embedding and Train Mask Embedding: from a few pairs to a bundle on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.bundles.bundle import AnomalyBundle, load_bundle
from ..anomalydiffusion_core.conditioning.spatial_encoder import VARIANTS, load_backbone
from ..anomalydiffusion_core.conditioning.template import DEFAULT_PLACEHOLDER, DEFAULT_TEMPLATE
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.data.training import training_files, training_pairs
from ..anomalydiffusion_core.errors import InputError, TrainingError
from ..anomalydiffusion_core.figures import plot_curve
from ..anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings
from ..anomalydiffusion_core.training.loop import NonFiniteLossError, Pause
from ..anomalydiffusion_core.training.mask_embedding import MaskEmbeddingSettings, MaskTrainer
from ..anomalydiffusion_core.training.run import Trainer
from ..anomalydiffusion_core.training.state import StateFile
from .host import denoiser as host_models
from .host import folders, tensors
from .host import text_encoder as host_text
from .host import training as host_training
from .host.progress import LARGEST_SEED
from .sockets import CATEGORY, Bundle, Dataset, TrainingOptions, shown
from .training_options import TrainingChoices

logger = logging.getLogger(__name__)

NO_WEIGHTS = "none"
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
            "seed", default=0, min=0, max=LARGEST_SEED, tooltip="Same inputs and seed train to the same bundle."
        ),
        io.Conditioning.Input(
            "initial",
            optional=True,
            tooltip="Where the tokens start: the conditioning of a good part. Without it they start as small noise.",
        ),
    ]


def _options_input() -> io.Input:
    return TrainingOptions.Input(
        "options",
        optional=True,
        tooltip="From Training Options: saving, previews, memory, finer points. Without it their defaults.",
    )


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
                _options_input(),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "With the CLIP of the model the tokens are learned inside a prompt, as in the authors' code. "
                        "Without it they are the conditioning itself."
                    ),
                ),
                io.String.Input(
                    "template",
                    default=DEFAULT_TEMPLATE,
                    optional=True,
                    tooltip="With a CLIP: the prompt, with the placeholder * where the anomaly's tokens belong.",
                ),
                io.String.Input(
                    "initial_words",
                    default="anomaly",
                    optional=True,
                    tooltip="With a CLIP: the words whose embeddings the tokens start near, in place of initial.",
                ),
                io.Combo.Input(
                    "encoder_weights",
                    options=[NO_WEIGHTS, *folders.model_files(folders.BACKBONES)],
                    default=NO_WEIGHTS,
                    optional=True,
                    tooltip=(
                        "For resnet50_fpn: ImageNet weights to start from, torchvision's resnet50 file in "
                        "models/anomalydiffusion_backbones."
                    ),
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
        options: TrainingChoices | None = None,
        clip: Any = None,
        template: str = DEFAULT_TEMPLATE,
        initial_words: str = "anomaly",
        encoder_weights: str = NO_WEIGHTS,
        **values: Any,
    ) -> io.NodeOutput:
        chosen = options or TrainingChoices()
        settings = InversionSettings(**values, options=chosen.loop)
        denoiser = _denoiser(model, vae, chosen, clip)
        content: dict[str, Any] = {}
        start, prompt = _initial_context(initial), None
        if clip is not None:
            if initial is not None:
                raise InputError("initial: is not used with a CLIP. Leave it unconnected and give initial_words.")
            encoder = host_text.TextEncoder(clip)
            denoiser.check_width(encoder.context_width, "clip")
            prompt = host_text.Prompt(encoder, template.strip(), DEFAULT_PLACEHOLDER, denoiser.device)
            start = encoder.word_rows(initial_words)
            content = {"clip": encoder.patched_fingerprint(), "template": prompt.template, "words": initial_words}

        backbone = None
        if encoder_weights != NO_WEIGHTS:
            backbone = load_backbone(folders.model_file(folders.BACKBONES, encoder_weights))
            content["encoder_weights"] = tensors.tensor_digest(*backbone.values())

        def make(progress: host_training.TrainingProgress) -> Trainer:
            pairs = {kind.key: training_pairs(kind.train, settings.resolution) for kind in dataset.types}
            return AnomalyTrainer(
                denoiser,
                pairs,
                settings,
                initial_context=start,
                on_prepare=progress.on_prepare,
                prompt=prompt,
                backbone=backbone,
            )

        content |= {"kind": "anomaly", "settings": asdict(settings), "initial": _digest(initial)}
        return _train_or_reuse(cls, denoiser, dataset, name, content, chosen, make)


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
                _options_input(),
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
        options: TrainingChoices | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        chosen = options or TrainingChoices()
        settings = MaskEmbeddingSettings(**values, options=chosen.loop)
        denoiser = _denoiser(model, vae, chosen)

        def make(progress: host_training.TrainingProgress) -> Trainer:
            masks = {kind.key: training_pairs(kind.train, settings.resolution)[1] for kind in dataset.types}
            start = _initial_context(initial)
            return MaskTrainer(denoiser, masks, settings, initial_context=start, on_prepare=progress.on_prepare)

        content = {"kind": "mask", "settings": asdict(settings), "initial": _digest(initial)}
        return _train_or_reuse(cls, denoiser, dataset, name, content, chosen, make)


def _denoiser(model: Any, vae: Any, chosen: TrainingChoices, clip: Any = None) -> host_models.ComfyDenoiser:
    companions = () if clip is None else (clip.patcher,)
    return host_models.ComfyDenoiser(
        model, vae, compute=chosen.compute, checkpointing=chosen.checkpointing, companions=companions
    )


def _initial_context(initial: host_models.Conditioning | None) -> Any:
    return None if initial is None else host_models.single_context(initial, "initial")


def _digest(initial: host_models.Conditioning | None) -> str:
    return host_models.conditioning_digest(initial)


def _identity(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _same_training(content: dict[str, Any]) -> str:
    """Identity of a training whatever its number of steps and its early stop: a longer one goes on from a shorter."""
    settings = {name: value for name, value in content["settings"].items() if name != "steps"}
    settings["options"] = {name: value for name, value in settings["options"].items() if name != "early_stop"}
    return _identity({**content, "settings": settings})


def _train_or_reuse(
    cls: Any,
    denoiser: host_models.ComfyDenoiser,
    dataset: AnomalyDataset,
    name: str,
    content: dict[str, Any],
    chosen: TrainingChoices,
    make: Callable[[host_training.TrainingProgress], Trainer],
) -> io.NodeOutput:
    """Train and save, or load what a training of the same content saved: the host may run a node again at any time."""
    if not dataset.types:
        raise InputError(
            f"dataset: {dataset.object} has no defect pictures. Add test/<defect> and ground_truth/<defect>."
        )
    target = folders.new_bundle_path(name)  # a bad name should fail before the training, not after it
    content |= {
        "recipe": RECIPE,
        "training_files": training_files(dataset),
        "base": denoiser.patched_fingerprint(),
        "vae": denoiser.vae_fingerprint(),
        "compute": str(denoiser.compute_dtype),
    }
    key, same = _identity(content), _same_training(content)
    found = folders.find_bundle(key)
    if found is not None:
        return _result(cls, load_bundle(found), found.name, "trained before with the same inputs, loaded")
    state = StateFile(folders.training_state_path(same), same)
    if not chosen.resume:
        state.remove()
    settings = content["settings"]
    pairs = sum(len(kind.train) for kind in dataset.types)
    title = f"{content['kind']} embedding"
    pictures = pairs * (1 + settings["augmented_copies"])
    progress = host_training.TrainingProgress(title, pictures, settings["steps"], chosen.preview_steps)
    provenance = {
        "split": dataset.split_rule,
        "split_options": dict(dataset.split_options),
        "split_names": {kind.key: kind.split_names for kind in dataset.types},
        "training_files": content["training_files"],
    }
    try:
        trainer = progress.trainer = make(progress)
        memory = host_training.told_memory(trainer)
        bundle = _run(trainer, progress, chosen, state, target, provenance)
    finally:
        progress.trainer = None
        host_training.release()
    bundle.metadata.update(provenance, content_key=key)
    bundle.save(target)
    if chosen.keep_state:
        state.save(trainer.loop)
    else:
        state.remove()
    logger.info("saved %s", target)
    what = ", ".join(filter(None, (trainer.resumed, "trained and saved")))
    return _result(cls, bundle, target.name, what, memory)


def _run(
    trainer: Trainer,
    progress: host_training.TrainingProgress,
    chosen: TrainingChoices,
    state: StateFile,
    target: Path,
    provenance: dict[str, Any],
) -> AnomalyBundle:
    """Train. Whatever ends it before its time, what was learned by then is saved as a bundle that says so."""
    pauses = [Pause(chosen.preview_every, progress.on_preview)]
    try:
        return trainer.run(progress.on_step, pauses=pauses, state=state, save_every=chosen.save_every).bundle
    except NonFiniteLossError as error:
        error.result.bundle.metadata.update(provenance, stopped_at_step=error.step)
        error.result.bundle.save(target)
        raise TrainingError(f"{error} The state before that step is saved as {target.name}.") from error
    except BaseException as error:
        if trainer.loop.step:
            partial = trainer.result().bundle
            partial.metadata.update(provenance, stopped_at_step=trainer.loop.step, stopped_by=type(error).__name__)
            partial.save(target)
            logger.info("training stopped after step %d: %s; the same inputs go on", trainer.loop.step, target)
        raise


def _result(cls: Any, bundle: AnomalyBundle, file: str, what: str, memory: str = "") -> io.NodeOutput:
    losses = list(bundle.metadata.get("losses", ()))
    part = max(len(losses) // 10, 1)
    first, last = (sum(some) / max(len(some), 1) for some in (losses[:part], losses[-part:]))
    report = (
        f"{file}: {what}. Types: {', '.join(bundle.types)}. {len(losses)} steps, loss {first:.4f} at the start and "
        f"{last:.4f} at the end (means over {part} steps)."
    )
    if memory:
        report += f" Estimated before: {memory}."
    curve = tensors.to_host_images(plot_curve(losses, f"{bundle.kind} embedding"))
    return io.NodeOutput(bundle, curve, report, ui=shown(report, curve, cls, bundle_file=[file]))
