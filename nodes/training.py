"""Train Anomaly Embedding, Train Mask Embedding and Training Options: from a few pairs to a bundle on disk."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.conditioning.template import DEFAULT_PLACEHOLDER, DEFAULT_TEMPLATE
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.figures import plot_curve
from ..anomalydiffusion_core.options import build
from ..anomalydiffusion_core.training.inversion import InversionSettings
from ..anomalydiffusion_core.training.mask_embedding import MaskEmbeddingSettings
from ..anomalydiffusion_core.training.plans import anomaly_plan, mask_plan
from ..anomalydiffusion_core.training.session import Trained
from ..anomalydiffusion_core.training.settings import TrainingChoices
from .host import folders, tensors, training
from .host.versions import as_advanced, schema
from .inputs import inputs_of
from .sockets import CATEGORY, Bundle, Dataset, TrainingOptions, shown

NO_WEIGHTS = "none"
COMMON = ("steps", "batch_size", "learning_rate", "resolution", "augmented_copies", "flips", "seed")


def _common_inputs(settings: type, name: str) -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The frozen base model: Stable Diffusion 1.5 or the demo prior."),
        io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
        Dataset.Input("dataset", tooltip="From Load Anomaly Dataset; all its defect types are learned in one run."),
        io.String.Input(
            "name",
            default=name,
            tooltip="Saved to models/anomalydiffusion/<name>_00001.safetensors; the number increases with each run.",
        ),
        *inputs_of(settings, COMMON, advanced=["augmented_copies", "flips"], learning_rate={"max": 1000.0}),
        io.Conditioning.Input(
            "initial",
            optional=True,
            tooltip="Where the tokens start: the conditioning of a normal part. Without it they start as small noise.",
        ),
    ]


def _options_input() -> io.Input:
    return TrainingOptions.Input(
        "options",
        optional=True,
        tooltip="From Training Options: saving, previews, memory, details of the loop. Without it their defaults.",
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
        """Inputs and outputs."""
        return schema(
            node_id="AnomalyDiffusionTrainAnomalyEmbedding",
            search_aliases=(
                "few-shot, textual inversion, learn defect, train defect, anomaly, scratch, synthetic defects"
            ).split(", "),
            display_name="Train Anomaly Embedding",
            category=f"{CATEGORY}/training",
            description=(
                "Learns what each defect type looks like (anomaly embedding) and how a mask says where it lies "
                "(spatial encoder) from a few pairs. The model stays frozen and unchanged. The same inputs are not "
                "trained twice."
            ),
            inputs=[
                *_common_inputs(InversionSettings, "anomaly_embedding"),
                *inputs_of(
                    InversionSettings,
                    ("anomaly_tokens", "spatial_tokens", "encoder", "normalize_by_mask_area"),
                    advanced=["anomaly_tokens", "spatial_tokens", "normalize_by_mask_area"],
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
                as_advanced(
                    io.String.Input(
                        "template",
                        default=DEFAULT_TEMPLATE,
                        optional=True,
                        tooltip="With a CLIP: the prompt, with the placeholder * where the anomaly's tokens belong.",
                    )
                ),
                io.String.Input(
                    "initial_words",
                    default="anomaly",
                    optional=True,
                    tooltip="With a CLIP: the words whose embeddings the tokens start near, instead of initial.",
                ),
                as_advanced(
                    io.Combo.Input(
                        "encoder_weights",
                        options=[NO_WEIGHTS, *folders.model_files(folders.BACKBONES)],
                        default=NO_WEIGHTS,
                        optional=True,
                        tooltip=(
                            "For resnet50_fpn: ImageNet weights to start from, torchvision's resnet50 file in "
                            "models/anomalydiffusion_backbones."
                        ),
                    )
                ),
                *inputs_of(
                    InversionSettings,
                    ("masked_loss", "view", "scale"),
                    optional=True,
                    advanced=["masked_loss", "scale"],
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
        initial: Any = None,
        options: TrainingChoices | None = None,
        clip: Any = None,
        template: str = DEFAULT_TEMPLATE,
        initial_words: str = "anomaly",
        encoder_weights: str = NO_WEIGHTS,
        **values: Any,
    ) -> io.NodeOutput:
        """Train, or load what the same training saved."""
        choices = options or TrainingChoices()
        settings = InversionSettings(**values, options=choices.loop)
        denoiser = training.training_denoiser(model, vae, choices, clip)
        if clip is None:
            start = training.start_from_context(initial)
        elif initial is not None:
            raise InputError("initial: is not used with a CLIP. Leave it unconnected and give initial_words.")
        else:
            start = training.start_in_prompt(denoiser, clip, template, DEFAULT_PLACEHOLDER, initial_words)
        weights = None if encoder_weights == NO_WEIGHTS else folders.model_file(folders.BACKBONES, encoder_weights)
        plan = anomaly_plan(training.training_base(denoiser), dataset, settings, start, name, weights)
        return _output(cls, training.train(plan, folders.BUNDLES, denoiser, choices))


class TrainMaskEmbedding(io.ComfyNode):
    """Textual inversion of the masks themselves (paper, section 3.4), all types in one run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="AnomalyDiffusionTrainMaskEmbedding",
            search_aliases="learn masks, few-shot, textual inversion, segmentation".split(", "),
            display_name="Train Mask Embedding",
            category=f"{CATEGORY}/training",
            description=(
                "Learns what the masks of each defect type look like, so that Mask Embedding Sampler can generate new "
                "ones. The model stays frozen and unchanged. The same inputs are not trained twice."
            ),
            inputs=[
                *_common_inputs(MaskEmbeddingSettings, "mask_embedding"),
                *inputs_of(MaskEmbeddingSettings, ("tokens",), advanced=True),
                _options_input(),
                *inputs_of(MaskEmbeddingSettings, ("view", "scale"), optional=True, advanced=["scale"]),
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
        initial: Any = None,
        options: TrainingChoices | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        """Train, or load what the same training saved."""
        choices = options or TrainingChoices()
        settings = MaskEmbeddingSettings(**values, options=choices.loop)
        denoiser = training.training_denoiser(model, vae, choices)
        start = training.start_from_context(initial)
        plan = mask_plan(training.training_base(denoiser), dataset, settings, start, name)
        return _output(cls, training.train(plan, folders.BUNDLES, denoiser, choices))


class TrainingOptionsNode(io.ComfyNode):
    """Saving, previews, memory and details of the loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="AnomalyDiffusionTrainingOptions",
            search_aliases="settings, resume, save every, early stop".split(", "),
            display_name="Training Options",
            category=f"{CATEGORY}/training",
            description=(
                "What is rarely changed about a training: how often it is saved, previews, memory, and details of the "
                "loop. For the input options of the training nodes."
            ),
            inputs=inputs_of(
                TrainingChoices,
                advanced=["keep_state", "preview_steps", "balance", "refresh_every", "sample_latents"],
            ),
            outputs=[
                TrainingOptions.Output(
                    "options", display_name="options", tooltip="For the input options of a training node."
                ),
            ],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Put the options together."""
        return io.NodeOutput(build(TrainingChoices, values))


def _output(cls: Any, trained: Trained) -> io.NodeOutput:
    curve, report = tensors.to_host_images(plot_curve(trained.losses, trained.title)), trained.report()
    return io.NodeOutput(trained.learned, curve, report, ui=shown(report, curve, cls, bundle_file=[trained.path.name]))
