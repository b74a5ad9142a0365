"""The command ``generate``: image and mask pairs from a bundle, without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from ..backends.models import Model, open_model
from ..bundles.bundle import CLIP_ROUTE, AnomalyBundle, load_bundle
from ..bundles.conditioning import anomaly_conditioning
from ..conditioning.context import ContextConditioning
from ..conditioning.prompt_encoder import Prompt
from ..data.export import ExportSettings
from ..data.images import image_size
from ..data.mvtec import AnomalyDataset, load_dataset
from ..data.pair_plan import read_plan
from ..data.provenance import folder_sources, marks_of, plain_marks, training_marks
from ..data.selection import NormalSettings, masks_in
from ..data.splits import SplitSettings, listed_names
from ..errors import InputError
from ..files import file_digest
from ..identity import check_identity
from ..masks.change import reconstruction_of
from ..masks.cleanup import MaskRules
from ..masks.collection import CollectionSettings, embedding_masks, sampled_masks
from ..masks.framing import on_whole_images
from ..masks.placement import on_objects
from ..masks.procedural import MIXED, AreaDistribution
from ..masks.refine import RefineSettings
from ..masks.relabel import finish_labels
from ..masks.sources import MaskOrder, drawn_masks, varied_masks, varied_shapes
from ..masks.variation import VariationSettings
from ..reading import folder_fingerprint
from ..sampling.blocks import MakeBlock
from ..sampling.generation import Masks, PairGeneration
from ..sampling.run import BlendingSettings
from ..sampling.sampler import SamplingSettings
from ..sampling.schedulers import SchedulerSampler
from ..training.lora import adapted, load_lora
from .bars import TaskBars
from .errors import plain_errors
from .loading import load_and_show
from .options import with_settings
from .ray_blocks import ray_blocks

MASKS, SCALE = "Masks", "Scale-out"
VARY, PROCEDURAL = "vary", "procedural"
MaskMaker = Callable[[str], tuple[Masks, str]]
"""A type to its masks and how they were made."""


@with_settings(
    sampling=BlendingSettings,
    normals=NormalSettings,
    splitting=SplitSettings,
    variation=VariationSettings,
    rules=MaskRules,
    labels=RefineSettings,
    export=ExportSettings,
    panels={
        "sampling": "Sampling",
        "normals": "Sampling",
        "splitting": "Data",
        "variation": MASKS,
        "rules": MASKS,
        "labels": "Labels",
        "export": "Files",
    },
    leave_out=("foreground_overlap",),
)
def generate(
    model: Annotated[Path, typer.Option(help="Folder of a diffusers model, or a file like the demo prior.")],
    bundle: Annotated[Path, typer.Option(help="Bundle of learned defects, from the command train or the node.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the category's folder.")],
    category: Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")],
    out: Annotated[Path, typer.Option(help="Folder for the pairs. Run again with the same one to resume.")],
    sampling: BlendingSettings,
    normals: NormalSettings,
    splitting: SplitSettings,
    variation: VariationSettings,
    rules: MaskRules,
    labels: RefineSettings,
    export: ExportSettings,
    types: Annotated[
        str, typer.Option(help="Types of the bundle to generate, separated by commas. Empty generates all.")
    ] = "",
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder of masks from the command masks, or of mask images.", rich_help_panel=MASKS),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the command gaps: types, masks and normal images are those of its plan, in place of "
            "--types, --count and --seed of the images.",
            rich_help_panel=MASKS,
        ),
    ] = None,
    on_object: Annotated[
        bool,
        typer.Option(
            help="Move masks onto the object, where one stands out from a plain background.", rich_help_panel=MASKS
        ),
    ] = False,
    mask_bundle: Annotated[
        Path | None, typer.Option(help="Bundle of a mask embedding that masks are sampled of.", rich_help_panel=MASKS)
    ] = None,
    mask_source: Annotated[
        str,
        typer.Option(
            help="Without a folder and a bundle, one of: vary, procedural. Real training masks varied, or shapes from "
            "noise with areas like theirs.",
            rich_help_panel=MASKS,
        ),
    ] = VARY,
    mask_steps: Annotated[
        int, typer.Option(help="With a mask bundle: sampling steps.", min=1, max=10000, rich_help_panel=MASKS)
    ] = 25,
    mask_cfg: Annotated[
        float, typer.Option(help="With a mask bundle: guidance scale.", min=0, max=100, rich_help_panel=MASKS)
    ] = 5.0,
    tries: Annotated[
        int,
        typer.Option(
            help="With a mask bundle: give up after sampling this many times the wanted number.",
            min=1,
            max=100,
            rich_help_panel=MASKS,
        ),
    ] = 4,
    shape_range: Annotated[
        float,
        typer.Option(
            help="With a mask bundle: reject masks whose area, thickness or elongation lies beyond those of the "
            "training masks by more than this factor, such as 1.3. 0 takes any shape.",
            min=0,
            max=100,
            rich_help_panel=MASKS,
        ),
    ] = 0.0,
    export_min_effect: Annotated[
        float | None,
        typer.Option(help="Leave out pairs with a smaller effect; by default --min-effect.", min=0, max=255),
    ] = None,
    negative: Annotated[str, typer.Option(help="Negative caption; empty is the model's empty caption.")] = "",
    control: Annotated[
        str | None,
        typer.Option(
            help="Caption of a normal part, with which --control-samples are sampled too; by default the demo prior's "
            "own, or 'a photo of CATEGORY'."
        ),
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="The LoRA from `adapt` that the bundle was trained with.")] = None,
    device: Annotated[str, typer.Option(help="For example cpu or cuda; by default a GPU where there is one.")] = "",
    dtype: Annotated[str, typer.Option(help="The model computes in float32, bfloat16 or float16.")] = "float32",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Generate on a Ray cluster at this address, or with 'local' in processes of this machine. The pairs "
            "are the same. Needs the package ray[data]; workers need the same files at the same places.",
            rich_help_panel=SCALE,
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="With --ray: workers that each hold the model.", min=1, rich_help_panel=SCALE)
    ] = 2,
    gpus: Annotated[
        float,
        typer.Option(help="With --ray: GPUs of each worker; a part of one is allowed.", min=0, rich_help_panel=SCALE),
    ] = 0,
) -> None:
    """Generate image and mask pairs of learned defects on normal images, without ComfyUI.

    Writes the folder that the node Export Pairs writes: images, masks, normal images and manifest.jsonl. A stopped
    generation resumes behind its last pair when the same command is run again.
    """
    with plain_errors(), ExitStack() as stack, TaskBars() as bars:
        limit = sampling.retry.min_effect if export_min_effect is None else export_min_effect
        learned, dataset = load_bundle(bundle), load_and_show(data, category, splitting)
        opened = open_model(model, device, dtype)
        if lora is not None:
            stack.enter_context(adapted(opened.denoiser, opened.unet, load_lora(lora).tensors))
        check_identity(opened.denoiser, learned.base, "bundle")
        sampler, negated = SchedulerSampler(opened.denoiser), ContextConditioning(opened.caption(negative)[None])
        normal = opened.normal(category) if control is None else opened.caption(control)
        # A bundle of several objects: the types of this one.
        own_types = [key for key in learned.types if key.startswith(f"{dataset.object}/")]
        keys = listed_names(types) or own_types or list(learned.types)
        order = MaskOrder(normals.count, normals.size, sampling.sampling.seed)
        if plan is not None and (masks is not None or mask_bundle is not None):
            raise InputError("plan: has masks of its own. Leave --masks and --mask-bundle out.")
        asked = None if plan is None else read_plan(plan, dataset)
        keys = keys if asked is None else asked.keys
        recipe: dict[str, Any] = {
            "model": opened.identity,
            "bundle": file_digest(bundle),
            "negative": negative,
            "control": control,
        }
        if on_object:  # recipes of earlier versions do not name it
            recipe["on_object"] = True
        recipe["lora"] = None if lora is None else file_digest(lora)
        if asked is not None and plan is not None:
            recipe["plan"], marks = folder_fingerprint(plan), training_marks(dataset, keys)
            source: MaskMaker = asked.masks
        elif masks is not None:
            recipe["masks"], marks = folder_fingerprint(masks), folder_sources(masks)
            source = partial(_from_folder, masks, order)
        elif mask_bundle is not None:
            shapes = load_bundle(mask_bundle)
            marks = marks_of(shapes.metadata)
            own = replace(sampling.sampling, steps=mask_steps, cfg=mask_cfg, denoise=1.0)
            recipe |= {
                "masks": file_digest(mask_bundle),
                "mask_steps": mask_steps,
                "mask_cfg": mask_cfg,
                "shape_range": shape_range,
                **asdict(rules),
            }
            limits = (rules, shape_range, tries)
            own_size = None if order.size else image_size(dataset.normals[0])
            source = partial(
                _sampled, shapes, _prompt(shapes, opened), sampler, negated, own, limits, order, own_size, bars
            )
        elif mask_source == VARY:
            recipe |= {"masks": VARY, **asdict(variation)}
            marks = training_marks(dataset, keys)
            vary = varied_masks if order.size else varied_shapes
            source = partial(vary, dataset, order=order, settings=variation)
        elif mask_source == PROCEDURAL:
            recipe["masks"], marks = (
                PROCEDURAL,
                training_marks(dataset, keys),
            )  # their areas are those of the real ones
            source = partial(_procedural, dataset, order)
        else:
            raise InputError(f"mask_source: unknown value '{mask_source}'. Choose one of: {VARY}, {PROCEDURAL}.")
        generation = PairGeneration(
            sampler,
            dataset,
            keys,
            source,
            partial(anomaly_conditioning, learned, prompt=_prompt(learned, opened)),
            negated if sampling.sampling.guided else None,
            ContextConditioning(normal[None]),
            plain_marks(marks),
            normals,
            sampling,
            replace(export, min_effect=limit),
            None if asked is None else {key: asked.normals(key) for key in keys},
            on_objects if on_object else None,
        )
        elsewhere = None
        if ray is not None:
            files = _Files(
                model.absolute(),
                bundle.absolute(),
                data.absolute(),
                None if lora is None else lora.absolute(),
                category,
                negative,
                control,
                device,
                dtype,
                splitting,
                normals,
                sampling,
            )
            elsewhere = ray_blocks(files.open_worker, ray, workers, gpus)
        done = generation.run(out, recipe, bars.of("generating"), elsewhere)
        reconstruct = partial(reconstruction_of, opened.denoiser, opened.denoiser.device)
        report = "\n".join([done.report, *finish_labels(out, labels, export, reconstruct, dataset, bars.of("labels"))])
        (out / "report.txt").write_text(f"{report}\n", encoding="utf-8")
        bars.close()
        typer.echo(report)


@dataclass(frozen=True)
class _Files:
    """What a worker opens to make blocks as this process would."""

    model: Path
    bundle: Path
    data: Path
    lora: Path | None
    category: str
    negative: str
    control: str | None
    device: str
    dtype: str
    splitting: SplitSettings
    normals: NormalSettings
    sampling: BlendingSettings

    def open_worker(self) -> MakeBlock:
        """Load the model once, and give what makes a block with it."""
        opened, learned = open_model(self.model, self.device, self.dtype), load_bundle(self.bundle)
        stack = ExitStack()
        if self.lora is not None:
            stack.enter_context(adapted(opened.denoiser, opened.unet, load_lora(self.lora).tensors))
        normal = opened.normal(self.category) if self.control is None else opened.caption(self.control)
        generation = PairGeneration(
            SchedulerSampler(opened.denoiser),
            load_dataset(self.data, self.category, self.splitting),
            list(learned.types),
            partial(_no_masks, stack),
            partial(anomaly_conditioning, learned, prompt=_prompt(learned, opened)),
            ContextConditioning(opened.caption(self.negative)[None]) if self.sampling.sampling.guided else None,
            ContextConditioning(normal[None]),
            normals=self.normals,
            sampling=self.sampling,
        )
        return generation.make_block


def _no_masks(_: ExitStack, key: str) -> tuple[Tensor, str]:
    """A worker is given its masks. What is bound keeps the LoRA applied as long as the worker lives."""
    raise InputError(f"masks: a worker was asked for those of {key}. Give them with the block.")


def _prompt(bundle: AnomalyBundle, model: Model) -> Prompt | None:
    """The prompt that the bundle's tokens were trained in, where they were."""
    if bundle.token_route != CLIP_ROUTE:
        return None
    return Prompt(model.text_encoder(), bundle.template, bundle.placeholder)


def _from_folder(folder: Path, order: MaskOrder, key: str) -> tuple[Tensor, str]:
    return masks_in(folder, key, order.count), f"{key}: masks from {folder.name}"


def _sampled(
    bundle: AnomalyBundle,
    prompt: Prompt | None,
    sampler: SchedulerSampler,
    negative: ContextConditioning,
    settings: SamplingSettings,
    limits: tuple[MaskRules, float, int],
    order: MaskOrder,
    own_size: tuple[int, int] | None,
    bars: TaskBars,
    key: str,
) -> tuple[Masks, str]:
    """Masks of squares, or with ``own_size`` shapes on images of that (height, width)."""
    rules, shape_range, tries = limits
    condition, size = ContextConditioning, order.size or bundle.canvas
    source = embedding_masks(
        sampler, bundle, key, condition, negative, settings, size, rules, shape_range=shape_range, prompt=prompt
    )
    wanted = CollectionSettings(count=order.count, tries=tries)
    masks, report = sampled_masks(source, key, wanted, bars.of(f"masks of {key}"))
    if own_size is None:
        return masks, report
    return on_whole_images(list(masks), bundle.trained_view(key), own_size, order.seed), report


def _procedural(dataset: AnomalyDataset, order: MaskOrder, key: str) -> tuple[Tensor, str]:
    masks, report = drawn_masks(MIXED, order, AreaDistribution(), dataset if dataset.types else None, key)
    return masks, f"{key}: {report}"
