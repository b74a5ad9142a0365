"""Merge Bundles and Save Textual Inversion: what else can be done with trained bundles."""

from __future__ import annotations

from comfy_api.latest import io

from ..anomalydiffusion_core.bundles.bundle import AnomalyBundle
from ..anomalydiffusion_core.bundles.saving import merge, save_textual_inversions
from .host import folders
from .host.versions import schema
from .sockets import CATEGORY, Bundle, shown

SAME = "must be the same"
FIRST, SECOND = "bundle_a", "bundle_b"


class MergeBundles(io.ComfyNode):
    """Two bundles of different types as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionMergeBundles",
            search_aliases="combine embeddings, join".split(", "),
            display_name="Merge Bundles",
            category=f"{CATEGORY}/bundles",
            description=(
                "Puts the defect types of two bundles into one. Both must have the same kind, base model, width, "
                "token route and number of spatial tokens; a type that both contain is an error."
            ),
            inputs=[
                Bundle.Input("bundle_a", tooltip="A bundle of either kind."),
                Bundle.Input("bundle_b", tooltip="Another bundle of the same kind, with other types."),
                io.Combo.Input(
                    "spatial_encoder",
                    options=[SAME, FIRST, SECOND],
                    default=SAME,
                    tooltip=(
                        "Whose spatial encoder is kept if they differ. Types that were trained with the other one "
                        "then follow the mask less closely."
                    ),
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    optional=True,
                    tooltip=(
                        "Also save the result to models/anomalydiffusion/<name>_00001.safetensors. The number "
                        "increases with each new bundle. Empty saves nothing."
                    ),
                ),
            ],
            outputs=[
                Bundle.Output("bundle", display_name="bundle", tooltip="The types of both bundles."),
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
        bundles = {FIRST: bundle_a, SECOND: bundle_b}
        merged, report = merge(bundles, kept, save_as.strip(), folders.ModelStore(folders.BUNDLES))
        return io.NodeOutput(merged, list(merged.types), report, ui=shown(report))


class SaveTextualInversion(io.ComfyNode):
    """The anomaly embedding of each type for the stock text encoding nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionSaveTextualInversion",
            search_aliases="embedding, export embedding, A1111".split(", "),
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
                        "Files are saved to models/embeddings/<name>_<object>_<defect>_00001.safetensors. The number "
                        "increases with each new file."
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
        store = folders.ModelStore(folders.EMBEDDINGS)
        files, prompts = save_textual_inversions(bundle, name, defect_type, store)
        report = "\n".join(f"{key}: {path.name}, in a prompt {prompts[key]}" for key, path in files.items())
        names = [path.stem for path in files.values()]
        return io.NodeOutput(list(prompts.values()), report, ui=shown(report, embedding_files=names))
