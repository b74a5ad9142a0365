"""Baselines: earlier ways to make anomalies, for Export Pairs in place of Blended AAR KSampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.baselines import (
    VARIANTS,
    CropPaste,
    CutPaste,
    Draem,
    FolderTextures,
    Method,
    Moves,
    PoissonBlending,
    Prn,
    ProceduralTextures,
    Source,
    Textures,
    make_pairs,
)
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset, load_pairs
from ..anomalydiffusion_core.errors import InputError
from .host import folders, tensors
from .host.progress import LARGEST_SEED, Progress
from .sockets import CATEGORY, Dataset, Effect, shown

PICTURES_SHOWN = 8


class CropAndPaste(io.ComfyNode):
    """Real defects cut out by their masks and pasted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "CropAndPaste",
            "Crop and Paste",
            "Baseline: cuts a random training defect out by its mask, changes it a little and pastes it on each good "
            "picture.",
            [*_sources(), *_moves()],
        )

    @classmethod
    def execute(
        cls,
        dataset: AnomalyDataset,
        defect_type: str,
        image: Tensor,
        seed: int,
        foreground: Tensor | None = None,
        **moves: Any,
    ) -> io.NodeOutput:
        key, sources = _defects(dataset, defect_type, image)
        return _made(cls, CropPaste(sources, Moves(**moves)), key, image, seed, foreground)


class CutPasteAnomalies(io.ComfyNode):
    """Pieces of the good picture itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        variant = io.Combo.Input(
            "variant",
            options=list(VARIANTS),
            default=VARIANTS[0],
            tooltip="Large rectangles (patch), thin turned ones (scar), or both in equal parts.",
        )
        return _schema(
            "CutPaste",
            "CutPaste",
            "Baseline: copies a piece of each good picture, its colours changed a little, to another place of it. "
            "Knows no defect.",
            [_type_name(), variant, _overlap()],
        )

    @classmethod
    def execute(
        cls,
        defect_type: str,
        image: Tensor,
        seed: int,
        variant: str,
        foreground_overlap: float,
        foreground: Tensor | None = None,
    ) -> io.NodeOutput:
        return _made(cls, CutPaste(variant, foreground_overlap), defect_type, image, seed, foreground)


class DraemAnomalies(io.ComfyNode):
    """Foreign textures in Perlin masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "DraemAnomalies",
            "DRAEM Anomalies",
            "Baseline: a changed foreign texture shines through a mask of Perlin noise. Knows no defect.",
            [_type_name(), *_textures()],
        )

    @classmethod
    def execute(
        cls,
        defect_type: str,
        image: Tensor,
        seed: int,
        textures: str,
        transparency: float,
        foreground: Tensor | None = None,
    ) -> io.NodeOutput:
        return _made(cls, Draem(_texture_source(textures), transparency), defect_type, image, seed, foreground)


class PrnAnomalies(io.ComfyNode):
    """Moved real defects and simulated ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        real_share = io.Float.Input(
            "real_share",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of moved real defects; the others are simulated.",
        )
        return _schema(
            "PrnAnomalies",
            "PRN Anomalies",
            "Baseline: moved training defects, and Perlin masks filled with a foreign texture or with shuffled blocks "
            "of the good picture.",
            [*_sources(), *_moves(), real_share, *_textures()],
        )

    @classmethod
    def execute(
        cls,
        dataset: AnomalyDataset,
        defect_type: str,
        image: Tensor,
        seed: int,
        real_share: float,
        textures: str,
        transparency: float,
        foreground: Tensor | None = None,
        **moves: Any,
    ) -> io.NodeOutput:
        key, sources = _defects(dataset, defect_type, image)
        method = Prn(sources, Moves(**moves), _texture_source(textures), real_share, transparency)
        return _made(cls, method, key, image, seed, foreground)


class PoissonBlend(io.ComfyNode):
    """Real defects blended in by their gradients."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        mixed = io.Boolean.Input(
            "mixed_gradients",
            default=False,
            tooltip="At each place take the stronger gradient of defect and good picture.",
        )
        return _schema(
            "PoissonBlending",
            "Poisson Blending",
            "Baseline: as Crop and Paste, but the defect's differences of neighbouring pixels are continued from the "
            "colours of the good picture, without a seam.",
            [*_sources(), *_moves(), mixed],
        )

    @classmethod
    def execute(
        cls,
        dataset: AnomalyDataset,
        defect_type: str,
        image: Tensor,
        seed: int,
        mixed_gradients: bool,
        foreground: Tensor | None = None,
        **moves: Any,
    ) -> io.NodeOutput:
        key, sources = _defects(dataset, defect_type, image)
        return _made(cls, PoissonBlending(sources, Moves(**moves), mixed_gradients), key, image, seed, foreground)


def _schema(name: str, display_name: str, description: str, own: list[io.Input]) -> io.Schema:
    image = io.Image.Input("image", tooltip="Good pictures from Pick Normals, one anomaly is put on each.")
    seed = io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=LARGEST_SEED,
        control_after_generate=True,
        tooltip="Pair i uses the seed + i, and is the same as when it is made alone.",
    )
    foreground = io.Mask.Input(
        "foreground", optional=True, tooltip="Where anomalies may lie: one mask, or one for each picture."
    )
    return io.Schema(
        node_id=f"AnomalyDiffusion{name}",
        display_name=display_name,
        category=f"{CATEGORY}/baselines",
        description=description,
        inputs=[image, *own, seed, foreground],
        outputs=[
            io.Image.Output("images", display_name="images", tooltip="One picture with an anomaly for each good one."),
            io.Mask.Output("masks", display_name="masks", tooltip="Every changed pixel, exactly 0 and 1."),
            Effect.Output(
                "effects", display_name="effects", tooltip="Method and scores of the pairs, for Export Pairs."
            ),
            io.String.Output(
                "type", display_name="defect type", tooltip="The type as object/defect, for Export Pairs."
            ),
            io.String.Output("report", display_name="report", tooltip="What was made, and how visible it is."),
        ],
    )


def _sources() -> list[io.Input]:
    return [
        Dataset.Input("dataset", tooltip="Its training pairs of the type are cut out, never those kept for testing."),
        io.String.Input(
            "defect_type", default="", tooltip="The type as object/defect. Empty takes the only type of the data set."
        ),
    ]


def _type_name() -> io.Input:
    return io.String.Input(
        "defect_type",
        default="object/simulated",
        tooltip="The type as object/defect under which the pairs are exported. Other types get other draws.",
    )


def _moves() -> list[io.Input]:
    moves = Moves()
    scale: dict[str, Any] = {"min": 0.1, "max": 4.0, "step": 0.05}
    return [
        io.Boolean.Input("flips", default=moves.flips, tooltip="Mirror half of the cut-outs along each axis."),
        io.Float.Input(
            "max_degrees",
            default=moves.max_degrees,
            min=0.0,
            max=180.0,
            step=1.0,
            tooltip="Turn cut-outs by up to so many degrees in both directions.",
        ),
        io.Float.Input("min_scale", default=moves.min_scale, **scale, tooltip="Smallest size relative to the source."),
        io.Float.Input("max_scale", default=moves.max_scale, **scale, tooltip="Largest size relative to the source."),
        _overlap(),
    ]


def _overlap() -> io.Input:
    return io.Float.Input(
        "foreground_overlap",
        default=Moves().foreground_overlap,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="Share of an anomaly that must lie on the foreground; the rest is left out.",
    )


def _textures() -> list[io.Input]:
    return [
        io.String.Input(
            "textures",
            default="",
            tooltip=(
                "Folder of texture pictures, such as the Describable Textures Dataset: absolute, or relative to "
                "ComfyUI's input folder. Empty renders procedural surfaces."
            ),
        ),
        io.Float.Input(
            "transparency",
            default=0.8,
            min=0.0,
            max=0.99,
            step=0.01,
            tooltip="Largest share of the good picture that shines through; drawn from 0 to this.",
        ),
    ]


def _texture_source(folder: str) -> Textures:
    return FolderTextures(folders.data_folder(folder)) if folder.strip() else ProceduralTextures()


def _defects(dataset: AnomalyDataset, defect_type: str, image: Tensor) -> tuple[str, list[Source]]:
    """The full name of the type and its training pairs, at the size of the good pictures."""
    key = defect_type.strip()
    if not key:
        if len(dataset.types) != 1:
            known = ", ".join(kind.key for kind in dataset.types) or "no type at all"
            raise InputError(f"defect_type: is empty, but the data set has {known}. Connect types of the data set.")
        key = dataset.types[0].key
    kind = dataset.defect_type(key)
    images, masks = load_pairs(kind.train, (image.shape[1], image.shape[2]))
    names = [f"{kind.defect}/{pair.name}" for pair in kind.train]
    return kind.key, [Source(*parts) for parts in zip(images, masks, names, strict=True)]


def _made(
    cls: Any, method: Method, defect_type: str, image: Tensor, seed: int, foreground: Tensor | None
) -> io.NodeOutput:
    notices: list[str] = []
    normals = tensors.to_core_images(image)
    ground = None
    if foreground is not None:
        ground = tensors.fit_masks(tensors.to_core_masks(foreground, "foreground"), normals.shape[-2:], notices)
    key = defect_type.strip()
    made = make_pairs(method, normals, seed, key, ground, Progress(len(normals)).at)
    scores = sorted(float(record["effect_score"]) for record in made.records)
    report = "\n".join(
        [
            f"{method.name}, {key}: {len(scores)} pairs, effect {scores[len(scores) // 2]:.1f} of 255 in the mask "
            f"(median; {scores[0]:.1f} to {scores[-1]:.1f}), masks cover {float(made.masks.mean()):.2%}",
            *_texture_notice(method),
            *notices,
        ]
    )
    pictures = tensors.to_host_images(made.images)
    masks = tensors.to_host_masks(made.masks)
    ui = shown(report, pictures[:PICTURES_SHOWN], cls)
    return io.NodeOutput(pictures, masks, made.records, key, report, ui=ui)


def _texture_notice(method: Method) -> list[str]:
    textures = getattr(method, "textures", None)
    return [] if textures is None else [f"textures: {textures.name}"]
