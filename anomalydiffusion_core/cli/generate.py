"""The command ``generate``: image and mask pairs from a bundle, without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from ..backends.models import Model, open_model
from ..bundles.bundle import CLIP_ROUTE, AnomalyBundle, load_bundle
from ..bundles.conditioning import anomaly_conditioning
from ..conditioning.context import ContextConditioning
from ..conditioning.prompt_encoder import Prompt
from ..data.export import ExportSettings
from ..data.mvtec import AnomalyDataset, load_dataset, load_pairs
from ..data.selection import NormalSettings, masks_in
from ..data.splits import SplitSettings, listed_names
from ..denoiser import check_base
from ..errors import InputError
from ..files import file_digest, folder_fingerprint
from ..masks.procedural import MIXED, procedural_masks
from ..masks.variation import vary_masks
from ..sampling.generation import PairGeneration
from ..sampling.run import BlendingSettings
from ..sampling.schedulers import SchedulerSampler
from ..training.lora import load_lora, with_lora
from .bars import TaskBars
from .errors import plain_errors
from .options import with_settings

MASKS = "Masks"
SOURCES = ("vary", "procedural")


@with_settings(
    sampling=BlendingSettings,
    normals=NormalSettings,
    splitting=SplitSettings,
    panels={"sampling": "Sampling", "normals": "Sampling", "splitting": "Data"},
    leave_out=("foreground_overlap",),
)
def generate(
    model: Annotated[Path, typer.Option(help="Folder of a diffusers model, or a file like the demo prior.")],
    bundle: Annotated[Path, typer.Option(help="Bundle of learned defects, from the command train or the node.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the category, in the MVTec layout.")],
    category: Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")],
    out: Annotated[Path, typer.Option(help="Folder for the pairs. Run again with the same one to resume.")],
    sampling: BlendingSettings,
    normals: NormalSettings,
    splitting: SplitSettings,
    types: Annotated[
        str, typer.Option(help="Types of the bundle to generate, separated by commas. Empty generates all.")
    ] = "",
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks, or with a folder for each defect.", rich_help_panel=MASKS)
    ] = None,
    mask_source: Annotated[
        str,
        typer.Option(
            help=f"Masks without --masks, one of: {', '.join(SOURCES)}: real training masks varied, or shapes from "
            "noise.",
            rich_help_panel=MASKS,
        ),
    ] = SOURCES[0],
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
) -> None:
    """Generate image and mask pairs of learned defects on normal images, without ComfyUI.

    Writes the folder that the node Export Pairs writes: images, masks, normal images and manifest.jsonl. A stopped
    generation resumes behind its last pair when the same command is run again.
    """
    with plain_errors(), ExitStack() as stack:
        limit = sampling.retry.min_effect if export_min_effect is None else export_min_effect
        learned, dataset = load_bundle(bundle), load_dataset(data, category, splitting)
        opened = open_model(model, device, dtype)
        if lora is not None:
            stack.enter_context(with_lora(opened.unet, load_lora(lora).tensors))
        check_base(opened.denoiser, learned.base_fingerprint, "bundle")
        keys = listed_names(types) or list(learned.types)
        source = _mask_source(dataset, masks, mask_source, normals, sampling.sampling.seed)
        generation = PairGeneration(
            SchedulerSampler(opened.denoiser),
            dataset,
            keys,
            source,
            partial(anomaly_conditioning, learned, prompt=_prompt(learned, opened)),
            ContextConditioning(opened.caption(negative)[None]) if sampling.sampling.guided else None,
            ContextConditioning((opened.normal(category) if control is None else opened.caption(control))[None]),
            normals,
            sampling,
            ExportSettings(limit),
        )
        plan = {
            "model": opened.identity,
            "bundle": file_digest(bundle),
            "lora": "" if lora is None else file_digest(lora),
            "negative": negative,
            "control": control,
            "masks": mask_source if masks is None else folder_fingerprint(masks),
        }
        with TaskBars() as bars:
            done = generation.run(out, plan, bars.of("generating"))
        (out / "report.txt").write_text(f"{done.report}\n", encoding="utf-8")
        typer.echo(done.report)


def _prompt(bundle: AnomalyBundle, model: Model) -> Prompt | None:
    """The prompt that the bundle's tokens were trained in, where they were."""
    if bundle.token_route != CLIP_ROUTE:
        return None
    return Prompt(model.text_encoder(), bundle.template, bundle.placeholder)


def _mask_source(
    dataset: AnomalyDataset, folder: Path | None, source: str, normals: NormalSettings, seed: int
) -> Callable[[str], tuple[Tensor, str]]:
    """What gives the masks of a type and says how they were made. Raises InputError for an unknown source."""
    if folder is not None:
        return lambda key: (masks_in(folder, key, normals.count), f"masks from {folder.name}")
    if source not in SOURCES:
        raise InputError(f"mask_source: unknown value '{source}'. Choose one of: {', '.join(SOURCES)}.")
    side = normals.size or None

    def varied(key: str) -> tuple[Tensor, str]:
        real = load_pairs(dataset.defect_type(key).train, side)[1]
        return vary_masks(real, normals.count, seed), f"{len(real)} training masks varied"

    def procedural(key: str) -> tuple[Tensor, str]:
        if side is None:
            raise InputError("size: is 0, but masks from noise need a size. Give it in pixels.")
        return procedural_masks(MIXED, normals.count, side, seed), "masks from noise"

    return varied if source == SOURCES[0] else procedural
