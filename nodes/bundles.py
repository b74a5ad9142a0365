"""Merge Bundles and Save Textual Inversion: what else can be done with trained bundles."""

from __future__ import annotations

import hashlib
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.bundles.bundle import AnomalyBundle
from ..anomalydiffusion_core.bundles.conditioning import chosen_type
from ..anomalydiffusion_core.bundles.merging import merge_bundles
from ..anomalydiffusion_core.bundles.textual_inversion import prompt_name, textual_inversion_file
from .host import folders
from .sockets import CATEGORY, Bundle, shown

SAME = "must be the same"
FIRST, SECOND = "bundle_a", "bundle_b"


class MergeBundles(io.ComfyNode):
    """Two bundles of different types as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionMergeBundles",
            display_name="Merge Bundles",
            category=f"{CATEGORY}/bundles",
            description=(
                "Puts the defect types of two bundles into one. Both must be of one kind, base model, width, token "
                "route and number of spatial tokens; a type that both hold is an error."
            ),
            inputs=[
                Bundle.Input("bundle_a", tooltip="A bundle of either kind."),
                Bundle.Input("bundle_b", tooltip="Another bundle of the same kind, with other types."),
                io.Combo.Input(
                    "spatial_encoder",
                    options=[SAME, FIRST, SECOND],
                    default=SAME,
                    tooltip=(
                        "Whose spatial encoder is kept where they differ. Types that were trained beside the other "
                        "one then follow the mask less well."
                    ),
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    optional=True,
                    tooltip=(
                        "Also save the result as models/anomalydiffusion/<name>_00001.safetensors, numbered on. Empty "
                        "saves nothing."
                    ),
                ),
            ],
            outputs=[
                Bundle.Output("bundle", display_name="bundle", tooltip="The types of both."),
                io.String.Output(
                    "types",
                    display_name="types",
                    is_output_list=True,
                    tooltip="One text object/defect for each type in the result.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="What was merged, and the name of the file."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, bundle_a: AnomalyBundle, bundle_b: AnomalyBundle, spatial_encoder: str, save_as: str = ""
    ) -> io.NodeOutput:
        kept = "" if spatial_encoder == SAME else spatial_encoder
        merged = merge_bundles({FIRST: bundle_a, SECOND: bundle_b}, kept)
        report = f"{len(bundle_a.types)} and {len(bundle_b.types)} types merged: {', '.join(merged.types)}"
        if save_as.strip():
            report += f"; {_save_once(merged, save_as.strip())}"
        return io.NodeOutput(merged, list(merged.types), report, ui=shown(report))


def _save_once(bundle: AnomalyBundle, name: str) -> str:
    target = folders.new_bundle_path(name)
    key = hashlib.sha256(bundle.to_bytes()).hexdigest()[:24]
    found = folders.find_bundle(key)
    if found is not None:
        return f"saved before as {found.name}"
    bundle.metadata["content_key"] = key
    bundle.save(target)
    return f"saved as {target.name}"


class SaveTextualInversion(io.ComfyNode):
    """The anomaly embedding of each type for the stock text encoding nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionSaveTextualInversion",
            display_name="Save Textual Inversion",
            category=f"{CATEGORY}/bundles",
            description=(
                "Saves the learned tokens of defect types as ordinary textual-inversion files in models/embeddings, "
                "for embedding:name in CLIP Text Encode of Stable Diffusion 1.5. The spatial encoder is not part of "
                "them."
            ),
            inputs=[
                Bundle.Input("bundle", tooltip="A bundle that was trained with the CLIP of Stable Diffusion 1.5."),
                io.String.Input(
                    "name",
                    default="anomaly",
                    tooltip=(
                        "Files are saved as models/embeddings/<name>_<object>_<defect>_00001.safetensors, numbered on."
                    ),
                ),
                io.String.Input(
                    "defect_type",
                    default="",
                    tooltip="One type as object/defect. Empty saves all types of the bundle.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompts",
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="For each type the text embedding:name that stands for it in a prompt.",
                ),
                io.String.Output("report", display_name="report", tooltip="The types and their files."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, bundle: AnomalyBundle, name: str, defect_type: str) -> io.NodeOutput:
        keys = [chosen_type(bundle, defect_type)] if defect_type.strip() else list(bundle.types)
        contents = {key: textual_inversion_file(bundle, key) for key in keys}
        # Refuses a name that leads out of the folder, before it is made usable in a prompt.
        folders.new_model_path(folders.EMBEDDINGS, name)
        prompts, lines = [], []
        for key, content in contents.items():
            stem = prompt_name(f"{name.strip()}_{key.replace('/', '_')}")
            path = folders.save_once(folders.new_model_path(folders.EMBEDDINGS, stem), content, folders.EMBEDDINGS)
            prompts.append(f"embedding:{path.stem}")
            lines.append(f"{key}: {path.name}, in a prompt {prompts[-1]}")
        report = "\n".join(lines)
        return io.NodeOutput(prompts, report, ui=shown(report, embedding_files=_names(prompts)))


def _names(prompts: list[str]) -> list[Any]:
    return [prompt.removeprefix("embedding:") for prompt in prompts]
