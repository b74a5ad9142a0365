"""Load Spatial Encoder and Spatial Anomaly Embedding: from a bundle and masks to conditioning."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.bundle import CLIP_ROUTE, AnomalyBundle, anomaly_tokens, load_bundle
from ..anomalydiffusion_core.data.pictures import resize_mask
from ..anomalydiffusion_core.errors import InputError
from . import host, host_models, host_text
from .host_conditioning import SOURCE, MaskSource
from .sockets import CATEGORY, Bundle, shown


class LoadSpatialEncoder(io.ComfyNode):
    """A bundle that was trained before."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionLoadSpatialEncoder",
            display_name="Load Spatial Encoder",
            category=f"{CATEGORY}/loaders",
            description=(
                "Loads a bundle from models/anomalydiffusion: the spatial encoder with its anomaly embeddings, or "
                "mask embeddings. Stands in for a training node."
            ),
            inputs=[
                io.Combo.Input(
                    "bundle_name",
                    options=host.model_files(host.BUNDLES),
                    tooltip="A file in models/anomalydiffusion, saved by one of the training nodes.",
                ),
            ],
            outputs=[
                Bundle.Output("bundle", display_name="bundle", tooltip="Embeddings of all types in the file."),
                io.String.Output(
                    "types",
                    display_name="types",
                    is_output_list=True,
                    tooltip="One text object/defect for each type in the bundle.",
                ),
                io.String.Output("report", display_name="report", tooltip="Kind, types and sizes of the bundle."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, bundle_name: str) -> str:
        stat = host.model_file(host.BUNDLES, bundle_name).stat()
        return f"{bundle_name}|{stat.st_size}|{stat.st_mtime_ns}"

    @classmethod
    def execute(cls, bundle_name: str) -> io.NodeOutput:
        bundle = load_bundle(host.model_file(host.BUNDLES, bundle_name))
        encoder = bundle.spatial_encoder
        spatial = "no spatial encoder" if encoder is None else f"encoder {encoder.variant}, {encoder.tokens} tokens"
        report = f"{bundle_name}: kind {bundle.kind}, width {bundle.width}, {spatial}, types {', '.join(bundle.types)}"
        return io.NodeOutput(bundle, list(bundle.types), report, ui=shown(report))


class SpatialAnomalyEmbedding(io.ComfyNode):
    """e = [e_a, E(mask)] as conditioning (paper, Eq. 8), itself or inside a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionSpatialAnomalyEmbedding",
            display_name="Spatial Anomaly Embedding",
            category=f"{CATEGORY}/conditioning",
            description=(
                "Makes the conditioning of a defect: what it looks like from the bundle, where it lies from the mask. "
                "One row for each mask of the batch; a row depends on its own mask only."
            ),
            inputs=[
                Bundle.Input("bundle", tooltip="From Train Anomaly Embedding or Load Spatial Encoder."),
                io.String.Input(
                    "defect_type",
                    default="",
                    tooltip="The type as object/defect. Empty takes the only type of the bundle.",
                ),
                io.Mask.Input("mask", tooltip="One or more masks, none empty. Values above 0.5 count as marked."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The CLIP of the model, for bundles whose tokens were trained inside a prompt; else none.",
                ),
                io.String.Input(
                    "template",
                    default="",
                    optional=True,
                    tooltip=(
                        "With a CLIP: the prompt, with the placeholder (*) where the anomaly's tokens belong. Empty "
                        "takes the one of the bundle."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip="One row for each mask; for the input positive of Blended AAR KSampler.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, bundle: AnomalyBundle, defect_type: str, mask: Tensor, clip: Any = None, template: str = ""
    ) -> io.NodeOutput:
        masks = host.to_core_masks(mask)
        key = chosen_type(bundle, defect_type)
        if clip is None:
            bundle.require("anomaly")
            if template.strip():
                raise InputError("template: is given without a CLIP, which it is for. Connect one, or leave it empty.")
            return io.NodeOutput(_plain(bundle, key, masks))
        encoder = host_text.TextEncoder(clip)
        bundle.require("anomaly", encoder.width, CLIP_ROUTE)
        trained_with = bundle.metadata.get("text_encoder_fingerprint")
        if trained_with and trained_with != encoder.fingerprint():
            raise InputError(
                f"clip: the bundle was trained with the text encoder {trained_with}, this one is "
                f"{encoder.fingerprint()}. Connect the CLIP of the model it was trained on."
            )
        return io.NodeOutput(_through_clip(bundle, key, masks, encoder, template.strip() or bundle.template))


def _tokens(bundle: AnomalyBundle, key: str, masks: Tensor) -> Tensor:
    """e for masks of any size: the spatial encoder sees them as in training."""
    return anomaly_tokens(bundle, key, resize_mask(masks, bundle.resolution) if bundle.resolution else masks)


def _plain(bundle: AnomalyBundle, key: str, masks: Tensor) -> host_models.Conditioning:
    context = _tokens(bundle, key, masks)
    source = MaskSource(lambda masks: _tokens(bundle, key, masks), bundle.resolution)
    columns = torch.ones(context.shape[1], dtype=torch.bool)
    extra = {host_models.COLUMNS: columns, host_models.BASE: bundle.base_fingerprint, SOURCE: source}
    return host_models.to_conditioning(context, **extra)


def _through_clip(
    bundle: AnomalyBundle, key: str, masks: Tensor, encoder: host_text.TextEncoder, template: str
) -> host_models.Conditioning:
    parsed = encoder.parse(template, bundle.placeholder)

    def encode(masks: Tensor) -> host_models.Conditioning:
        return encoder.conditioning([parsed.fill(rows) for rows in _tokens(bundle, key, masks)])

    conditioning = encode(masks)
    count = len(bundle.type_tokens(key)) + (bundle.spatial_encoder.tokens if bundle.spatial_encoder else 0)
    # A CLIP with a schedule gives several entries, each for a part of the sampling.
    for number, (_, extra) in enumerate(conditioning):
        source = MaskSource(lambda masks, number=number: encode(masks)[number][0], bundle.resolution)  # type: ignore[misc]
        extra[host_models.COLUMNS] = parsed.columns(count)
        extra[host_models.BASE] = bundle.base_fingerprint
        extra[SOURCE] = source
    return conditioning


def chosen_type(bundle: AnomalyBundle, text: str) -> str:
    """The bundle's type of this name, or its only type for an empty text. Raises InputError or BundleError."""
    key = text.strip()
    if key:
        bundle.type_tokens(key)
        return key
    if len(bundle.types) > 1:
        raise InputError(
            f"defect_type: is empty, but the bundle has several. Choose one of: {', '.join(bundle.types)}."
        )
    return bundle.types[0]
