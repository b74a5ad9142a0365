"""Refine Masks, Score Pairs and Review Pairs: labels that fit, a gate, and a person's decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.data.pairs import load_exported
from ..anomalydiffusion_core.data.review import merge_decisions, reviewed, write_review
from ..anomalydiffusion_core.data.sheets import outlined
from ..anomalydiffusion_core.evaluation.settings import ScoreSettings
from ..anomalydiffusion_core.lazy_imports import later
from ..anomalydiffusion_core.masks.label_choice import refine_like_real
from ..anomalydiffusion_core.masks.refine import AUTO, RefineSettings
from .host import evaluation as host
from .host import folders, tensors
from .host.progress import Progress, compute_device
from .host.vae import reconstruction
from .host.versions import schema
from .inputs import defect_type_input, inputs_of
from .sockets import CATEGORY, Dataset, shown

if TYPE_CHECKING:
    from ..anomalydiffusion_core.evaluation.gate import gate as scoring
else:
    scoring = later("..anomalydiffusion_core.evaluation.gate.gate", __package__)

IMAGES_SHOWN = 8


class RefineMasks(io.ComfyNode):
    """Labels that cover what really changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionRefineMasks",
            search_aliases="load pairs, dataset, augmentation, synthetic, segmentation".split(", "),
            display_name="Refine Masks",
            category=f"{CATEGORY}/masks",
            description=(
                "Makes labels out of drawn masks and what really changed inside them: what differs from the normal "
                "image by more than the VAE's own errors. A label never leaves its drawn mask. Export Pairs has the "
                "same as an option and writes both masks."
            ),
            inputs=[
                io.Image.Input("images", tooltip="From Blended AAR KSampler."),
                io.Mask.Input("masks", tooltip="The masks output of Blended AAR KSampler."),
                io.Image.Input("normals", tooltip="The normal images that went into the sampler."),
                *inputs_of(RefineSettings, refine={"default": AUTO}),
                io.Vae.Input(
                    "vae", optional=True, tooltip="The VAE of the sampler. Required unless a threshold is set."
                ),
                Dataset.Input(
                    "dataset", optional=True, tooltip="For refine auto, which compares with its training pairs."
                ),
                defect_type_input("For refine auto: the type of these pairs as object/defect.", optional=True),
            ],
            outputs=[
                io.Mask.Output("labels", display_name="masks", tooltip="The labels, inside the drawn masks."),
                io.String.Output(
                    "report", display_name="report", tooltip="What was chosen, and how much of the masks is kept."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        masks: Tensor,
        normals: Tensor,
        vae: Any = None,
        dataset: AnomalyDataset | None = None,
        defect_type: str = "",
        **values: Any,
    ) -> io.NodeOutput:
        core_images = tensors.to_core_images(images, "images")
        labels, report = refine_like_real(
            core_images,
            tensors.to_core_images(normals, "normals"),
            tensors.to_core_masks(masks, "masks"),
            reconstruction(vae),
            RefineSettings(**values),
            dataset,
            defect_type,
        )
        preview = [outlined(*pair)[None] for pair in zip(core_images[:IMAGES_SHOWN], labels, strict=False)]
        ui = shown(report, tensors.to_host_images(torch.cat(preview)), cls)
        return io.NodeOutput(tensors.to_host_masks(labels), report, ui=ui)


def _pairs_input() -> io.Input:
    text = "Folder of pairs from Export Pairs, in ComfyUI's output folder. Its manifest is written to."
    return io.String.Input("pairs", default="", tooltip=text)


def _known(text: object) -> list[str]:
    """A text, or nothing where it comes from another node and is not known yet."""
    return [text] if isinstance(text, str) else []


def _folder_output() -> io.Output:
    return io.String.Output("pairs_folder", display_name="pairs folder", tooltip="The same folder.")


class ScorePairs(io.ComfyNode):
    """Each pair against the real ones' own scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionScorePairs",
            display_name="Score Pairs",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Scores each pair: distance to the nearest real defect of its type and to the nearest normal image, "
                "effect, fill and seam. Lists the pairs that are worse than the real ones' own scores, and leaves "
                "them out of evaluations on request."
            ),
            inputs=[
                Dataset.Input("dataset", tooltip="Provides the real training pairs and the normal images."),
                _pairs_input(),
                *inputs_of(ScoreSettings),
            ],
            outputs=[
                _folder_output(),
                io.Image.Output("worst", display_name="worst pairs", tooltip="The listed pairs beside their normals."),
                io.String.Output(
                    "report", display_name="report", tooltip="Limits, and the listed pairs with reasons."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, pairs: Any = None, **_: object) -> str:
        return host.fingerprint(lambda: _known(pairs))

    @classmethod
    def execute(cls, dataset: AnomalyDataset, pairs: str, **values: Any) -> io.NodeOutput:
        folder, settings = host.writable_folder(pairs), ScoreSettings(**values)
        host.check_readable(settings.lpips_weights, "lpips_weights")
        bar = Progress(len(load_exported(folder, every=True)))
        gate = scoring.score_pairs(folder, dataset, settings, compute_device(), bar)
        sheet, report = gate.sheet(), gate.report()
        image = tensors.to_host_images(torch.zeros(3, 64, 64) if sheet is None else sheet)
        ui = shown(report, None if sheet is None else image, cls, pairs_folder=[folders.relative_to_output(folder)])
        return io.NodeOutput(folder.as_posix(), image, report, ui=ui)


class ReviewPairs(io.ComfyNode):
    """A page to accept and reject pairs with keys, and its decisions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionReviewPairs",
            display_name="Review Pairs",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Writes review.html into the folder of pairs: a page that needs no server, to accept and reject pairs "
                "with keys. Save the decisions there and give the file here: they go into the manifest, and "
                "evaluations do not use rejected pairs."
            ),
            inputs=[
                _pairs_input(),
                io.String.Input(
                    "decisions",
                    default="",
                    optional=True,
                    tooltip="The file that the page saved: absolute, or relative to ComfyUI's input folder.",
                ),
            ],
            outputs=[
                _folder_output(),
                io.String.Output("page", display_name="page", tooltip="Open this file in a browser."),
                io.String.Output("report", display_name="report", tooltip="How many were accepted and rejected."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, pairs: Any = None, decisions: Any = None, **_: object) -> str:
        return f"{host.fingerprint(lambda: _known(pairs))}|{host.file_state(decisions)}"

    @classmethod
    def execute(cls, pairs: str, decisions: str = "") -> io.NodeOutput:
        folder = host.writable_folder(pairs)
        if decisions.strip():
            merge_decisions(folder, host.decisions_file(decisions))
        page = write_review(folder, Progress(len(load_exported(folder, every=True))))
        report = f"{reviewed(folder).report()}\nopen {page} in a browser"
        ui = shown(report, pairs_folder=[folders.relative_to_output(folder)], page=[folders.relative_to_output(page)])
        return io.NodeOutput(folder.as_posix(), page.as_posix(), report, ui=ui)
