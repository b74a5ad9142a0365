"""The command ``masks``: masks from a mask embedding, from real masks or from noise, without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from ..backends.models import open_model
from ..bundles.bundle import load_bundle
from ..conditioning.context import ContextConditioning
from ..data.mask_files import read_mask
from ..data.mvtec import AnomalyDataset
from ..data.provenance import marks_of, training_marks, write_sources
from ..data.splits import SplitSettings, listed_names
from ..errors import InputError
from ..files import file_digest
from ..masks.cleanup import MaskRules
from ..masks.collection import CollectionSettings, MaskSource, embedding_masks
from ..masks.folder import collect_into
from ..masks.placement import PlacementSettings, common_region
from ..masks.procedural import KINDS, MIXED, AreaDistribution, procedural_masks
from ..masks.sources import PlacedMasksSource, own_geometry, training_areas, training_masks
from ..masks.variation import VariationSettings, vary_masks
from ..sampling.blending import fit_masks
from ..sampling.sampler import SamplingSettings
from ..sampling.schedulers import SchedulerSampler
from ..training.lora import adapted, load_lora
from .bars import TaskBars
from .errors import plain_errors
from .loading import load_and_show
from .options import with_settings

EMBEDDING, VARY, PROCEDURAL = "embedding", "vary", "procedural"
SOURCES = (EMBEDDING, VARY, PROCEDURAL)
FROM_EMBEDDING = "Source embedding"
FROM_DATA = "Sources vary and procedural"


@with_settings(
    wanted=CollectionSettings,
    sampling=SamplingSettings,
    rules=MaskRules,
    variation=VariationSettings,
    placement=PlacementSettings,
    splitting=SplitSettings,
    panels={
        "sampling": FROM_EMBEDDING,
        "rules": FROM_EMBEDDING,
        "variation": "Source vary",
        "placement": FROM_DATA,
        "splitting": "Data",
    },
    leave_out=("denoise", "impossible", "size"),
)
def masks(
    out: Annotated[Path, typer.Option(help="Folder for the masks. Run again with the same one to resume.")],
    wanted: CollectionSettings,
    sampling: SamplingSettings,
    rules: MaskRules,
    variation: VariationSettings,
    placement: PlacementSettings,
    splitting: SplitSettings,
    source: Annotated[
        str,
        typer.Option(
            help=f"One of: {', '.join(SOURCES)}. A trained mask embedding, varied training masks, or noise and lines."
        ),
    ] = EMBEDDING,
    types: Annotated[
        str,
        typer.Option(
            "--type", help="Types as object/defect, separated by commas. Empty uses all of the bundle or data set."
        ),
    ] = "",
    size: Annotated[
        int,
        typer.Option(
            help="Side of the masks in pixels. 0 takes height and width of the real masks (vary, procedural).", min=0
        ),
    ] = CollectionSettings().size,
    foreground: Annotated[Path | None, typer.Option(help="Mask image of the object. Masks lie on it.")] = None,
    allowed: Annotated[Path | None, typer.Option(help="Mask image of where the defect may occur.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a diffusers model, or a file like the demo prior.", rich_help_panel=FROM_EMBEDDING
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle of a trained mask embedding.", rich_help_panel=FROM_EMBEDDING)
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(help="The LoRA from `adapt` that the bundle was trained with.", rich_help_panel=FROM_EMBEDDING),
    ] = None,
    negative: Annotated[
        str,
        typer.Option(help="Negative caption; empty is the model's empty caption.", rich_help_panel=FROM_EMBEDDING),
    ] = "",
    cfg: Annotated[
        float, typer.Option(help="Guidance scale. 1 is twice as fast.", rich_help_panel=FROM_EMBEDDING)
    ] = 5.0,
    kind: Annotated[
        str, typer.Option(help=f"Shapes of procedural masks. One of: {', '.join(KINDS)}.", rich_help_panel=FROM_DATA)
    ] = MIXED,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that holds the category's folder.", rich_help_panel="Data"),
    ] = None,
    category: Annotated[
        str, typer.Option(help="Name of the category's folder, for example bottle.", rich_help_panel="Data")
    ] = "",
    device: Annotated[str, typer.Option(help="For example cpu or cuda; by default a GPU where there is one.")] = "",
    dtype: Annotated[str, typer.Option(help="The model computes in float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Generate masks of defects as <object>/<defect>/000.png, without ComfyUI.

    The same masks as of the nodes Mask Embedding Sampler, Vary Real Masks and Procedural Masks. Masks off the regions
    are rejected (embedding) or moved there (vary, procedural). Writes report.txt, summary.json and a record of all
    samples. A mask depends on its seed alone: existing files are kept, and a larger count adds to them.
    """
    with plain_errors(), ExitStack() as stack:
        regions = {name: path for name, path in (("foreground", foreground), ("allowed", allowed)) if path is not None}
        dataset = None if data is None or source == EMBEDDING else load_and_show(data, category, splitting)
        if source == EMBEDDING and not size:
            raise InputError("size: is 0, but the source 'embedding' samples squares. Give pixels.")
        wanted = replace(wanted, size=size) if size else wanted
        frame = (size, size) if size else own_geometry(dataset)
        plan: dict[str, Any] = {"source": source, "size": size, "seed": sampling.seed}
        plan |= {name: file_digest(path) for name, path in regions.items()}
        fitted = {name: fit_masks(read_mask(path)[None], frame, [], name) for name, path in regions.items()}
        if source == EMBEDDING:
            if model is None or bundle is None:
                raise InputError("model, bundle: required by the source 'embedding'. Give both.")
            learned, opened = load_bundle(bundle), open_model(model, device, dtype)
            if lora is not None:
                stack.enter_context(adapted(opened.denoiser, opened.unet, load_lora(lora).tensors))
            known, marks = list(learned.types), marks_of(learned.metadata)
            make: Callable[[str], MaskSource] = partial(
                embedding_masks,
                SchedulerSampler(opened.denoiser),
                learned,
                condition=lambda context: ContextConditioning(context),
                negative=ContextConditioning(opened.caption(negative)[None]) if sampling.guided else None,
                settings=sampling,
                size=wanted.size,
                rules=rules,
                regions=wanted.regions(fitted.get("foreground"), fitted.get("allowed"), []),
                shape_range=wanted.shape_range,
            )
            files = {"bundle": file_digest(bundle), "lora": file_digest(lora) if lora else None}
            own = {name: value for name, value in asdict(sampling).items() if name != "batch_size"}
            overlaps = [wanted.foreground_overlap, wanted.allowed_overlap]
            plan |= {
                "model": opened.identity,
                **files,
                "negative": negative,
                "overlaps": overlaps,
                "shape_range": wanted.shape_range,
                **own,
                **asdict(rules),
            }
        else:
            known = [one.key for one in dataset.types] if dataset else []
            marks = training_marks(dataset) if dataset else {}
            make = _drawn(source, kind, dataset, frame, variation, placement, fitted)
            plan |= {"kind": kind, "data": dataset.fingerprint() if dataset else None}
            plan |= {**asdict(variation), **asdict(placement)}
        keys = listed_names(types) or known
        if not keys:
            raise InputError("type: is empty, and no data set says which types there are. Give object/defect.")
        with TaskBars() as bars:
            report = collect_into(out, keys, make, wanted.count, wanted.tries, plan, bars.of)
        if marks:
            write_sources(out, marks)
        typer.echo(f"{report}\n\nmasks are in {out}")


def _drawn(
    source: str,
    kind: str,
    dataset: AnomalyDataset | None,
    size: tuple[int, int],
    variation: VariationSettings,
    placement: PlacementSettings,
    regions: dict[str, Tensor],
) -> Callable[[str], MaskSource]:
    """What draws a type's masks without a model. Raises InputError for an unknown source and for vary without data."""
    region = common_region(regions, 1) if regions else None

    def varied(key: str) -> MaskSource:
        if dataset is None:
            raise InputError("data: required by the source 'vary'. Give the folder that holds the category.")
        real = training_masks([dataset.defect_type(key)], size)
        return PlacedMasksSource(lambda seed: vary_masks(real, 1, seed, variation), placement, region)

    def procedural(key: str) -> MaskSource:
        areas = training_areas(dataset, key) if dataset else AreaDistribution()
        return PlacedMasksSource(lambda seed: procedural_masks(kind, 1, size, seed, areas), placement, region)

    sources = {VARY: varied, PROCEDURAL: procedural}
    if source not in sources:
        raise InputError(f"source: unknown value '{source}'. Choose one of: {', '.join(SOURCES)}.")
    return sources[source]
