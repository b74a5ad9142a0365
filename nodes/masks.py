"""Mask Embedding Sampler: new masks in the manner of the learned ones."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.bundles.bundle import AnomalyBundle
from ..anomalydiffusion_core.bundles.conditioning import chosen_type
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.masks.cleanup import MaskRules
from ..anomalydiffusion_core.masks.collection import CollectionSettings, embedding_masks, sampled_masks
from ..anomalydiffusion_core.masks.framing import on_whole_images, put_on
from ..anomalydiffusion_core.options import build
from ..anomalydiffusion_core.sampling.sampler import SamplingSettings
from .host import tensors
from .host.conditioning import ComfyConditioning, Conditioning
from .host.denoiser import ComfyDenoiser
from .host.progress import Progress
from .host.sampler import ComfySampler
from .host.text_encoder import mask_prompt
from .host.versions import schema
from .inputs import defect_type_input, inputs_of, sampling_inputs
from .sockets import CATEGORY, Bundle, shown, shown_masks

RARE_RULES = "most_components speck_area fill_holes border_rule".split()


class MaskEmbeddingSampler(io.ComfyNode):
    """Samples images of masks (paper, Eq. 10), thresholds them, and keeps those that can be used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionMaskEmbeddingSampler",
            search_aliases="generate masks, synthetic masks, segmentation, defect mask".split(", "),
            display_name="Mask Embedding Sampler",
            category=f"{CATEGORY}/sampling",
            description=(
                "Samples new masks of a defect type until the wanted number obeys the rules. The report counts the "
                "rejected ones by reason. No mask is ever empty."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that the mask embedding was trained on."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                Bundle.Input("bundle", tooltip="From Train Mask Embedding, or a loaded bundle of kind mask."),
                defect_type_input("The type as object/defect. Empty takes the only type of the bundle."),
                *inputs_of(CollectionSettings, ["count", "size"]),
                *sampling_inputs(
                    cfg=5.0,
                    seed_use=(
                        "Sample i of a type uses seed + i and does not depend on the others. Other types get other "
                        "samples from the same seed."
                    ),
                ),
                *inputs_of(MaskRules, advanced=RARE_RULES),
                *inputs_of(CollectionSettings, ["tries"], advanced=True),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="The empty caption, required when cfg is not 1."
                ),
                io.Mask.Input(
                    "foreground",
                    optional=True,
                    tooltip="The object, for example from Estimate Foreground. Masks off it are rejected.",
                ),
                *inputs_of(CollectionSettings, ["foreground_overlap"], optional=True, advanced=True),
                io.Mask.Input(
                    "allowed",
                    optional=True,
                    tooltip="Where this defect may occur. Masks outside are rejected.",
                ),
                *inputs_of(CollectionSettings, ["allowed_overlap", "shape_range"], optional=True, advanced=True),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The masks get the size of this image. Those of an embedding that was trained on windows get "
                        "their size in image pixels and a random place; Place Masks moves them onto the object."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For mask embeddings of the authors, whose tokens belong into a prompt of its base model.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "mask",
                    display_name="masks",
                    tooltip="The wanted number of masks. When too few are kept, those are repeated in turn.",
                ),
                io.String.Output("report", display_name="report", tooltip="How many were kept and rejected, and why."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        bundle: AnomalyBundle,
        defect_type: str,
        negative: Conditioning | None = None,
        foreground: Tensor | None = None,
        allowed: Tensor | None = None,
        image: Tensor | None = None,
        clip: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        prompt = mask_prompt(bundle, clip)
        if image is not None and (foreground is not None or allowed is not None):
            raise InputError("foreground, allowed: cannot be used with an image. Connect them to Place Masks instead.")
        key, notices = chosen_type(bundle, defect_type), list[str]()
        wanted, sampling, rules = (build(part, options) for part in (CollectionSettings, SamplingSettings, MaskRules))
        sampler, against = ComfySampler(ComfyDenoiser(model, vae)), ComfyConditioning.of(negative)
        size, limits = wanted.size if image is None else bundle.canvas, wanted.shape_range
        regions = wanted.regions(*tensors.given_masks(foreground=foreground, allowed=allowed), notices)
        condition = ComfyConditioning.of_context
        source = embedding_masks(
            sampler, bundle, key, condition, against, sampling, size, rules, regions, limits, prompt
        )
        masks, report = sampled_masks(source, key, wanted, Progress)
        if image is not None:
            own = (image.shape[1], image.shape[2])
            masks = put_on(on_whole_images(list(masks), bundle.trained_view(key), own, sampling.seed), own)
        report = "\n".join([report, *notices])
        return io.NodeOutput(tensors.to_host_masks(masks), report, ui=shown(report, shown_masks(masks), cls))
