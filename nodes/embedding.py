"""Load Spatial Encoder and Spatial Anomaly Embedding: from a bundle and masks to conditioning."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.bundles.authors_encoder import NORMALISATIONS, RUNNING_STATISTICS, AuthorsEncoder
from ..anomalydiffusion_core.bundles.authors_files import EMBEDDINGS_NAME, import_authors_files
from ..anomalydiffusion_core.bundles.bundle import AnomalyBundle, load_bundle
from ..anomalydiffusion_core.bundles.conditioning import anomaly_conditioning, chosen_type
from ..anomalydiffusion_core.errors import InputError
from .host import folders, tensors
from .host.conditioning import anomaly_extra, to_conditioning
from .host.text_encoder import clip_conditioning
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
        if clip is not None:
            return io.NodeOutput(clip_conditioning(bundle, key, masks, clip, template.strip()))
        if template.strip():
            raise InputError("template: requires a CLIP. Connect one, or leave it empty.")
        plain = anomaly_conditioning(bundle, key, masks)
        return io.NodeOutput(to_conditioning(plain.rows, **anomaly_extra(plain)))
