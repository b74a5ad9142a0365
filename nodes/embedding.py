"""Load Spatial Encoder and Spatial Anomaly Embedding: from a bundle and masks to conditioning."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.bundles.authors_encoder import NORMALISATIONS, RUNNING_STATISTICS, AuthorsEncoder
from ..anomalydiffusion_core.bundles.authors_files import EMBEDDINGS_NAME, import_authors_files
from ..anomalydiffusion_core.bundles.bundle import CLIP_ROUTE, AnomalyBundle, anomaly_tokens, load_bundle
from ..anomalydiffusion_core.data.images import resize_mask
from ..anomalydiffusion_core.errors import InputError
from .host import denoiser as host_models
from .host import folders, tensors
from .host import text_encoder as host_text
from .host.conditioning import SOURCE, MaskSource
from .sockets import CATEGORY, Bundle, shown

AS_STORED = "as stored"
BESIDE = "embeddings.pt beside it"


class LoadSpatialEncoder(io.ComfyNode):
    """A bundle that was trained before, or the two files of the authors' code as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folders.model_files(folders.BUNDLES)
        return io.Schema(
            node_id="AnomalyDiffusionLoadSpatialEncoder",
            display_name="Load Spatial Encoder",
            category=f"{CATEGORY}/loaders",
            description=(
                "Loads a bundle from models/anomalydiffusion: the spatial encoder with its anomaly embeddings, or "
                "mask embeddings. Stands in for a training node. Also reads spatial_encoder.pt and embeddings.pt of "
                "the authors' code, and can save them as a bundle."
            ),
            inputs=[
                io.Combo.Input(
                    "bundle_name",
                    options=files,
                    tooltip=(
                        "A file in models/anomalydiffusion: a bundle saved by one of the training nodes, or the "
                        "authors' spatial_encoder.pt."
                    ),
                ),
                io.Combo.Input(
                    "embeddings",
                    options=[BESIDE, *(name for name in files if name.endswith(folders.AUTHORS_EXTENSION))],
                    default=BESIDE,
                    optional=True,
                    tooltip="The authors' embeddings.pt that goes with their spatial encoder. Bundles hold their own.",
                ),
                io.Combo.Input(
                    "normalisation",
                    options=[AS_STORED, *NORMALISATIONS],
                    default=AS_STORED,
                    optional=True,
                    tooltip=(
                        "For an encoder of the authors: running statistics give a mask the same tokens in any batch "
                        "(as stored, for a .pt file); batch statistics are what the authors generate with."
                    ),
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    optional=True,
                    tooltip=(
                        "Also save what was loaded from .pt files as "
                        "models/anomalydiffusion/<name>_00001.safetensors, numbered on. Empty saves nothing."
                    ),
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
    def fingerprint_inputs(cls, bundle_name: str, embeddings: str = BESIDE, **more: Any) -> str:
        paths = [folders.model_file(folders.BUNDLES, bundle_name)]
        if bundle_name.endswith(folders.AUTHORS_EXTENSION):
            paths.append(_embeddings_path(paths[0], embeddings))
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
        return f"{bundle_name}|{embeddings}|{stats}|{sorted(more.items())}"

    @classmethod
    def execute(
        cls, bundle_name: str, embeddings: str = BESIDE, normalisation: str = AS_STORED, save_as: str = ""
    ) -> io.NodeOutput:
        path = folders.model_file(folders.BUNDLES, bundle_name)
        if not bundle_name.endswith(folders.AUTHORS_EXTENSION):
            if save_as.strip():
                raise InputError(f"save_as: {bundle_name} is a bundle already. Leave it empty.")
            bundle = load_bundle(path)
            _choose_normalisation(bundle, normalisation)
            return _loaded(bundle, bundle_name)
        return _loaded(*_imported(path, _embeddings_path(path, embeddings), normalisation, save_as.strip()))


def _embeddings_path(encoder: Path, embeddings: str) -> Path:
    return (
        encoder.with_name(EMBEDDINGS_NAME) if embeddings == BESIDE else folders.model_file(folders.BUNDLES, embeddings)
    )


def _choose_normalisation(bundle: AnomalyBundle, normalisation: str) -> None:
    if normalisation == AS_STORED:
        return
    if not isinstance(bundle.spatial_encoder, AuthorsEncoder):
        kind = "no" if bundle.spatial_encoder is None else f"a '{bundle.spatial_encoder.variant}'"
        raise InputError(
            f"normalisation: '{normalisation}' is for encoders in the authors' layout, the bundle has {kind} spatial "
            f"encoder. Choose '{AS_STORED}'."
        )
    bundle.spatial_encoder.normalise_by(normalisation)


def _imported(encoder: Path, embeddings: Path, normalisation: str, save_as: str) -> tuple[AnomalyBundle, str]:
    """The authors' files as a bundle, and what to call it; with ``save_as`` saved once, whatever runs again."""
    chosen = RUNNING_STATISTICS if normalisation == AS_STORED else normalisation
    name = f"{encoder.name}, {embeddings.name}"
    if not save_as:
        return import_authors_files(encoder, embeddings, chosen), name
    target = folders.new_bundle_path(save_as)
    content = [folders.file_digest(encoder), folders.file_digest(embeddings), chosen]
    key = hashlib.sha256(json.dumps(["imported", *content]).encode()).hexdigest()[:24]
    found = folders.find_bundle(key)
    if found is not None:
        return load_bundle(found), f"{name}, saved before as {found.name}"
    bundle = import_authors_files(encoder, embeddings, chosen)
    bundle.metadata["content_key"] = key
    bundle.save(target)
    return bundle, f"{name}, saved as {target.name}"


def _loaded(bundle: AnomalyBundle, name: str) -> io.NodeOutput:
    encoder = bundle.spatial_encoder
    spatial = "no spatial encoder" if encoder is None else f"encoder {encoder.variant}, {encoder.tokens} tokens"
    if isinstance(encoder, AuthorsEncoder):
        spatial += f", {encoder.normalisation}"
    counts = sorted({len(rows) for rows in bundle.tokens.values()})
    report = (
        f"{name}: kind {bundle.kind}, {' or '.join(str(count) for count in counts)} tokens of width {bundle.width} a "
        f"type, token route {bundle.token_route}, {spatial}, types {', '.join(bundle.types)}"
    )
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
                "One row for each mask of the batch; a row depends on its own mask only, but for an imported spatial "
                "encoder with batch statistics."
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
        masks = tensors.to_core_masks(mask)
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
