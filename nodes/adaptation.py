"""Adapt to Normals: a LoRA that lets the base model redraw a normal part (design, decision 8)."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.figures import plot_curve
from ..anomalydiffusion_core.options import build
from ..anomalydiffusion_core.training.adaptation import AdaptationSettings
from ..anomalydiffusion_core.training.plans import NormalImages, adaptation_plan, control_report
from ..anomalydiffusion_core.training.settings import TrainingChoices
from .host import folders, lora, tensors, training
from .host.progress import Progress
from .host.versions import schema
from .inputs import inputs_of
from .sockets import CATEGORY, Dataset, TrainingOptions, shown


class AdaptToNormals(io.ComfyNode):
    """Tunes a LoRA on normal images under the caption of a normal part."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="AnomalyDiffusionAdaptToNormals",
            search_aliases="LoRA, fine-tune, finetune, domain adaptation".split(", "),
            display_name="Adapt to Normals",
            category=f"{CATEGORY}/training",
            description=(
                "For a base model that cannot redraw a normal part inside a mask, which the sampler's control shows: "
                "tunes a LoRA on normal images alone, saves it in models/loras, and measures the control before and "
                "after. Train the defects on the MODEL that comes out. The same inputs are not trained twice."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The base model, which stays unchanged."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                Dataset.Input("dataset", tooltip="From Load Anomaly Dataset; only its normal images are used."),
                io.Conditioning.Input(
                    "normal", tooltip="The conditioning of a normal part: normal caption, or a prompt that names it."
                ),
                io.String.Input(
                    "name",
                    default="normals",
                    tooltip=(
                        "The LoRA is saved to models/loras/<name>_00001.safetensors; the number increases with each "
                        "run."
                    ),
                ),
                *inputs_of(
                    AdaptationSettings,
                    ("steps", "batch_size", "learning_rate", "rank", "resolution"),
                    advanced=["rank"],
                    learning_rate={"max": 1000.0},
                ),
                *inputs_of(NormalImages, ("pictures",)),
                *inputs_of(AdaptationSettings, ("seed",)),
                *inputs_of(NormalImages, ("control_samples",), advanced=True),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=(
                        "The empty caption, for sampling with a cfg above 1: one image in five is learned under it, "
                        "and the control is measured at cfg 2.5, else at 1."
                    ),
                ),
                TrainingOptions.Input(
                    "options", optional=True, tooltip="Saving, memory, number format and details of the loop."
                ),
                *inputs_of(AdaptationSettings, ("view", "scale"), optional=True),
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
        normal: Any,
        name: str,
        negative: Any = None,
        options: TrainingChoices | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        """Train the LoRA, or load what the same training saved, and apply it."""
        choices = options or TrainingChoices()
        images, settings = build(NormalImages, values), AdaptationSettings(**values, options=choices.loop)
        denoiser = training.training_denoiser(model, vae, choices)
        plan = adaptation_plan(
            training.training_base(denoiser),
            model.model.diffusion_model,
            dataset,
            settings,
            images,
            training.caption(denoiser, normal, "normal"),
            training.caption(denoiser, negative, "negative"),
            partial(training.sampler_with, model, vae),
            Progress,
            name,
        )
        trained = training.train(plan, folders.LORAS, denoiser, choices)
        report = f"{trained.report()}\n{control_report(trained.learned.metadata)}"
        curve = tensors.to_host_images(plot_curve(trained.losses, trained.title))
        ui = shown(report, curve, cls, lora_file=[trained.path.name])
        return io.NodeOutput(lora.with_lora(model, trained.learned.tensors), curve, report, ui=ui)
