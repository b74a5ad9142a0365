"""Load Spatial Encoder and Spatial Anomaly Embedding: from a bundle and masks to conditioning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.bundles.authors_encoder import NORMALISATIONS
from ..anomalydiffusion_core.bundles.authors_files import EMBEDDINGS_NAME
from ..anomalydiffusion_core.bundles.bundle import AnomalyBundle
from ..anomalydiffusion_core.bundles.conditioning import anomaly_conditioning, chosen_type
from ..anomalydiffusion_core.bundles.saving import AS_STORED, AUTHORS_EXTENSION, open_bundle
from ..anomalydiffusion_core.errors import InputError
from .host import folders, lora, tensors
from .host.conditioning import anomaly_extra, to_conditioning
from .host.progress import interrupted
from .host.text_encoder import clip_conditioning
from .host.versions import schema
from .sockets import CATEGORY, Bundle, shown

BESIDE = "embeddings.pt beside it"


class LoadSpatialEncoder(io.ComfyNode):
    """A bundle that was trained before, or the two files of the authors' code as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folders.model_files(folders.BUNDLES)
        return schema(
            node_id="AnomalyDiffusionLoadSpatialEncoder",
            search_aliases="load bundle, load embedding, anomaly embedding, pretrained, authors".split(", "),
            display_name="Load Spatial Encoder",
            category=f"{CATEGORY}/loaders",
            description=(
                "Loads a bundle from models/anomalydiffusion: a spatial encoder with its anomaly embeddings, or mask "
                "embeddings. Replaces a training node. Also reads spatial_encoder.pt and embeddings.pt of the "
                "authors' code, and can save them as a bundle."
            ),
            inputs=[
                io.Combo.Input(
                    "bundle_name",
                    options=files,
                    tooltip=(
                        "A file in models/anomalydiffusion: a bundle saved by a training node, or the authors' "
                        "spatial_encoder.pt."
                    ),
                ),
                io.Combo.Input(
                    "embeddings",
                    options=[BESIDE, *(name for name in files if name.endswith(AUTHORS_EXTENSION))],
                    default=BESIDE,
                    optional=True,
                    tooltip="The authors' embeddings.pt for their spatial encoder. Bundles have their own.",
                ),
                io.Combo.Input(
                    "normalisation",
                    options=[AS_STORED, *NORMALISATIONS],
                    default=AS_STORED,
                    optional=True,
                    tooltip=(
                        "For an encoder of the authors: running statistics give a mask the same tokens in any batch "
                        "(what as stored means for a .pt file); the authors generate with batch statistics."
                    ),
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    optional=True,
                    tooltip=(
                        "Also save what was loaded from .pt files to "
                        "models/anomalydiffusion/<name>_00001.safetensors. The number increases with each new "
                        "bundle. Empty saves nothing."
                    ),
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "The bare base model. The LoRA that the bundle was trained with is found in models/loras and "
                        "applied to it."
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
                io.Model.Output(
                    "adapted_model",
                    display_name="model",
                    tooltip="The model with the LoRA that the bundle needs; unchanged where it needs none.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, bundle_name: str | None = None, embeddings: str | None = BESIDE, **_: Any) -> str:
        name = (bundle_name or "").replace("\\", "/")
        if embeddings == BESIDE:  # of which only the authors' encoder has one
            embeddings = name.rpartition("/")[0] + "/" + EMBEDDINGS_NAME if name.endswith(AUTHORS_EXTENSION) else ""
        stamps = [folders.file_fingerprint(folders.BUNDLES, one and one.lstrip("/")) for one in (name, embeddings)]
        return "|".join(stamps)

    @classmethod
    def execute(
        cls,
        bundle_name: str,
        embeddings: str = BESIDE,
        normalisation: str = AS_STORED,
        save_as: str = "",
        model: Any = None,
    ) -> io.NodeOutput:
        path = folders.model_file(folders.BUNDLES, bundle_name)
        store = folders.ModelStore(folders.BUNDLES)
        bundle, name = open_bundle(
            path, _embeddings_path(path, embeddings), normalisation, save_as.strip(), store, interrupted
        )
        report = f"{name}: {bundle.summary()}"
        adapted = None if model is None else lora.with_needed_lora(model, bundle.base)
        return io.NodeOutput(bundle, list(bundle.types), report, adapted, ui=shown(report))


def _embeddings_path(encoder: Path, embeddings: str) -> Path:
    if embeddings == BESIDE:
        return encoder.with_name(EMBEDDINGS_NAME)
    return folders.model_file(folders.BUNDLES, embeddings)


class SpatialAnomalyEmbedding(io.ComfyNode):
    """e = [e_a, E(mask)] as conditioning (paper, Eq. 8), itself or inside a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionSpatialAnomalyEmbedding",
            search_aliases="defect conditioning, anomaly prompt, scratch, spatial embedding".split(", "),
            display_name="Spatial Anomaly Embedding",
            category=f"{CATEGORY}/conditioning",
            description=(
                "Makes the conditioning of a defect: the bundle says what it looks like, the mask where it is. One "
                "row for each mask of the batch; a row depends on its own mask only, except with an imported spatial "
                "encoder and batch statistics."
            ),
            inputs=[
                Bundle.Input("bundle", tooltip="From Train Anomaly Embedding or Load Spatial Encoder."),
                io.String.Input(
                    "defect_type",
                    default="",
                    tooltip="The type as object/defect. Empty uses the only type of the bundle.",
                ),
                io.Mask.Input("mask", tooltip="One or more masks, none empty. Values above 0.5 count as marked."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The CLIP of the model, for bundles whose tokens were trained inside a prompt. Otherwise "
                        "leave it unconnected."
                    ),
                ),
                io.String.Input(
                    "template",
                    default="",
                    optional=True,
                    tooltip=(
                        "With a CLIP: the prompt, with the placeholder (*) where the anomaly's tokens go. Empty uses "
                        "the template of the bundle."
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
