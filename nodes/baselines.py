"""Baselines: earlier ways to make anomalies, for Export Pairs in place of Blended AAR KSampler."""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.baselines import (
    CropPaste,
    CutPaste,
    Draem,
    FolderTextures,
    PoissonBlending,
    Prn,
    ProceduralTextures,
    make_pairs,
    training_sources,
)
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.data.provenance import plain_marks, training_marks
from ..anomalydiffusion_core.figures import comparison_sheet
from ..anomalydiffusion_core.options import build, declared
from ..anomalydiffusion_core.sampling.blending import fit_masks
from ..anomalydiffusion_core.sampling.sampler import SamplingSettings
from .host import folders, tensors
from .host.progress import Progress
from .host.versions import schema
from .inputs import defect_type_input, inputs_of
from .sockets import CATEGORY, Dataset, Effect, shown

RARE = ["min_scale", "max_scale", "foreground_overlap"]
OUTPUTS: list[io.Output] = [
    io.Image.Output("images", display_name="images", tooltip="One image with an anomaly for each normal image."),
    io.Mask.Output("masks", display_name="masks", tooltip="Every changed pixel, exactly 0 and 1."),
    Effect.Output("effects", display_name="effects", tooltip="Method and scores of the pairs, for Export Pairs."),
    io.String.Output("type", display_name="defect type", tooltip="The type as object/defect, for Export Pairs."),
    io.String.Output("report", display_name="report", tooltip="What was made, and how visible it is."),
]


class _Baseline(io.ComfyNode):
    """A baseline of the core as a node: inputs of its settings, and of what it takes defects and textures from."""

    METHOD: ClassVar[type]
    NODE: ClassVar[str]
    DISPLAY: ClassVar[str]
    TEXT: ClassVar[str]
    WORDS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=f"AnomalyDiffusion{cls.NODE}",
            display_name=cls.DISPLAY,
            category=f"{CATEGORY}/baselines",
            search_aliases=["baseline", "augmentation", "synthetic defect", "copy paste", "defect", *cls.WORDS],
            description=f"Baseline: {cls.TEXT}",
            inputs=[
                io.Image.Input("image", tooltip="Normal images from Pick Normals; each gets one anomaly."),
                *_own_inputs(cls.METHOD),
                *inputs_of(
                    SamplingSettings,
                    ["seed"],
                    randomize=["seed"],
                    seed={"tooltip": "Pair i uses seed + i and does not depend on the others."},
                ),
                io.Mask.Input(
                    "foreground", optional=True, tooltip="Where anomalies may lie: one mask, or one for each image."
                ),
            ],
            outputs=OUTPUTS,
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        seed: int,
        defect_type: str,
        dataset: AnomalyDataset | None = None,
        foreground: Tensor | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        key, notices, normals = defect_type.strip(), tensors.alpha_notices([image]), tensors.to_core_images(image)
        learned = None
        if dataset is not None:
            kind = dataset.defect_type(key)
            learned = plain_marks(training_marks(dataset, [kind.key]))
            key, values["sources"] = kind.key, training_sources(kind, (normals.shape[2], normals.shape[3]))
        if "textures" in values:
            folder = values["textures"].strip()
            values["textures"] = FolderTextures(folders.data_folder(folder)) if folder else ProceduralTextures()
        ground = None
        if foreground is not None:
            ground = fit_masks(tensors.to_core_masks(foreground, "foreground"), normals.shape[-2:], notices)
        method = build(cls.METHOD, values)
        made = make_pairs(method, normals, seed, key, ground, Progress(len(normals)).at, learned)
        report = "\n".join([made.describe(method, key), *notices])
        images, masks = tensors.to_host_images(made.images), tensors.to_host_masks(made.masks)
        sheet = tensors.to_host_images(comparison_sheet(normals, made.images, made.masks))
        ui = shown(report, sheet, cls)
        return io.NodeOutput(images, masks, made.records, key, report, ui=ui)


class CropAndPaste(_Baseline):
    """Real defects cut out by their masks and pasted."""

    METHOD, NODE, DISPLAY = CropPaste, "CropAndPaste", "Crop and Paste"
    TEXT = "cuts a random training defect out by its mask, changes it a little and pastes it on each normal image."


class CutPasteAnomalies(_Baseline):
    """Pieces of the normal image itself."""

    METHOD, NODE, DISPLAY = CutPaste, "CutPaste", "CutPaste"
    TEXT = "copies a piece of each normal image to another place of it, its colours slightly changed. Uses no defect."


class DraemAnomalies(_Baseline):
    """Foreign textures in Perlin masks."""

    METHOD, NODE, DISPLAY = Draem, "DraemAnomalies", "DRAEM Anomalies"
    WORDS = ("perlin", "DTD", "texture")
    TEXT = "blends an augmented foreign texture into a mask of Perlin noise. Uses no defect."


class PrnAnomalies(_Baseline):
    """Moved real defects and simulated ones."""

    METHOD, NODE, DISPLAY = Prn, "PrnAnomalies", "PRN Anomalies"
    TEXT = (
        "moved training defects, and Perlin masks filled with a foreign texture or with shuffled blocks of the normal "
        "image."
    )


class PoissonBlend(_Baseline):
    """Real defects blended in by their gradients."""

    METHOD, NODE, DISPLAY = PoissonBlending, "PoissonBlending", "Poisson Blending"
    WORDS = ("seamless clone", "NSA")
    TEXT = "as Crop and Paste, but pastes the gradients of the defect, so that no seam remains."


def _own_inputs(method: type) -> list[io.Input]:
    names = list(declared(method))
    fields = method.__dataclass_fields__  # type: ignore[attr-defined]
    inputs: list[io.Input] = []
    if "sources" in fields:
        inputs += [
            Dataset.Input(
                "dataset", tooltip="Its training pairs of the type are cut out, never those kept for testing."
            ),
            defect_type_input(),
        ]
    else:
        name = "The type as object/defect that the pairs are exported as. Each type gets its own random draws."
        inputs.append(io.String.Input("defect_type", default="object/simulated", tooltip=name))
    if "textures" not in fields:
        return [*inputs, *inputs_of(method, advanced=RARE)]
    textures = io.String.Input(
        "textures",
        default="",
        tooltip=(
            "Folder of texture images, such as the Describable Textures Dataset: absolute, or relative to ComfyUI's "
            "input folder. Empty renders procedural surfaces."
        ),
    )
    before = names[: names.index("transparency")]
    return [
        *inputs,
        *(inputs_of(method, before, advanced=RARE) if before else []),
        textures,
        *inputs_of(method, ["transparency"]),
    ]
