"""Mask Embedding Sampler: new masks in the manner of the learned ones."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.bundles.bundle import AnomalyBundle
from ..anomalydiffusion_core.bundles.conditioning import chosen_type
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.masks.cleanup import MaskRegion, MaskRules, clean_masks
from ..anomalydiffusion_core.sampling.sampler import VAE_STEPS, SamplingSettings, sample_from_noise
from .host import conditioning as host_conditioning
from .host import denoiser as host_models
from .host import tensors
from .host.progress import LARGEST_SEED, Progress
from .host.sampler import ComfySampler
from .inputs import sampling_inputs
from .sockets import CATEGORY, Bundle, shown

DECODED_AT_ONCE = 64


class MaskEmbeddingSampler(io.ComfyNode):
    """Samples pictures of masks (paper, Eq. 10), thresholds them, and keeps those that can be used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionMaskEmbeddingSampler",
            display_name="Mask Embedding Sampler",
            category=f"{CATEGORY}/sampling",
            description=(
                "Draws new masks of a defect type until the wanted number obeys the rules. The report counts the "
                "rejected ones by reason. No mask is ever empty."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that the mask embedding was trained on."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                Bundle.Input("bundle", tooltip="From Train Mask Embedding, or a loaded bundle of kind mask."),
                io.String.Input(
                    "defect_type",
                    default="",
                    tooltip="The type as object/defect. Empty takes the only type of the bundle.",
                ),
                io.Int.Input("count", default=8, min=1, max=10000, tooltip="How many masks."),
                io.Int.Input(
                    "size",
                    default=256,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the masks in pixels, as in training.",
                ),
                *sampling_inputs(
                    cfg=5.0,
                    seed_use=(
                        "Sample i of a type uses the seed + i, and is the same as when it is drawn alone. Other types "
                        "get other samples from the same seed."
                    ),
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="Brightness above which a pixel belongs to the mask; 0.9 in the authors' code.",
                ),
                io.Float.Input(
                    "smallest_area",
                    default=0.0005,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="Share of the picture that a mask must cover at least.",
                ),
                io.Float.Input(
                    "largest_area",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the picture that a mask may cover at most.",
                ),
                io.Int.Input(
                    "most_components",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Largest number of separate parts of a mask. 0 allows any.",
                ),
                io.Float.Input(
                    "speck_area",
                    default=0.0002,
                    min=0.0,
                    max=0.1,
                    step=0.0001,
                    round=False,
                    tooltip="Parts smaller than this share of the picture are removed before a mask is judged.",
                ),
                io.Boolean.Input("fill_holes", default=False, tooltip="Fill holes that a mask surrounds."),
                io.Boolean.Input(
                    "border_rule",
                    default=True,
                    tooltip="Reject masks that cover more than a third of a border of the picture.",
                ),
                io.Int.Input(
                    "tries",
                    default=4,
                    min=1,
                    max=100,
                    tooltip="At most this many times the wanted number is sampled before giving up.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="The empty caption, needed when cfg is not 1."
                ),
                *region_inputs(),
            ],
            outputs=[
                io.Mask.Output(
                    "mask",
                    display_name="masks",
                    tooltip="The wanted number of masks. When too few passed, those that did are repeated in turn.",
                ),
                io.String.Output("report", display_name="report", tooltip="How many were kept and rejected, and why."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        bundle: AnomalyBundle,
        defect_type: str,
        count: int,
        size: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        batch_size: int,
        tries: int,
        negative: host_conditioning.Conditioning | None = None,
        foreground: Tensor | None = None,
        foreground_overlap: float = 0.5,
        allowed: Tensor | None = None,
        allowed_overlap: float = 0.5,
        **rules: Any,
    ) -> io.NodeOutput:
        denoiser = host_models.ComfyDenoiser(model, vae)
        bundle.require("mask", denoiser.context_width)
        denoiser.check_base(bundle.base_fingerprint, "bundle")
        key = chosen_type(bundle, defect_type)
        if size % denoiser.downscale:
            raise InputError(f"size: {size} is no multiple of {denoiser.downscale}. Choose for example 256.")
        first = _first_seed(seed, key)
        settings = SamplingSettings(first, steps, cfg, sampler_name, scheduler, batch_size)
        context = bundle.type_tokens(key)[None]
        positive = host_conditioning.ComfyConditioning(host_conditioning.to_conditioning(context))
        against = host_conditioning.ComfyConditioning.of(negative)
        if against is not None:
            against.check(denoiser, "negative", 1)
        notices: list[str] = []
        regions = [
            MaskRegion(name, one_region(mask, name, (size, size), notices), share)
            for name, mask, share in (
                ("foreground", foreground, foreground_overlap),
                ("allowed region", allowed, allowed_overlap),
            )
            if mask is not None
        ]
        order = _Order(count, size, tries, MaskRules(**rules), tuple(regions))
        masks, summary = _collect(ComfySampler(denoiser), positive, against, settings, order)
        report = "\n".join([f"{key}: {summary}", *notices])
        return io.NodeOutput(tensors.to_host_masks(masks), report, ui=shown(report))


def _first_seed(seed: int, key: str) -> int:
    # A workflow runs all types with one seed; from the same noise they would get nearly the same masks.
    return (seed + (zlib.crc32(key.encode()) << 24)) % LARGEST_SEED


def region_inputs() -> list[io.Input]:
    """The object and the part of it where defects may lie, with the share of a mask that must lie there."""
    overlap = "Smallest share of a mask that must lie {}. 0 takes any that touches it; what is outside is cut off."
    return [
        io.Mask.Input(
            "foreground",
            optional=True,
            tooltip="The object, for example from Estimate Foreground. Masks off it are rejected.",
        ),
        io.Float.Input(
            "foreground_overlap",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip=overlap.format("on the foreground"),
        ),
        io.Mask.Input(
            "allowed",
            optional=True,
            tooltip="Where this defect may occur. Masks outside are rejected.",
        ),
        io.Float.Input(
            "allowed_overlap",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip=overlap.format("in the allowed region"),
        ),
    ]


def one_region(mask: Tensor, name: str, size: tuple[int, int], notices: list[str]) -> np.ndarray:
    """A connected region as bool [H, W] of ``size``. Raises InputError for several and for an empty one."""
    masks = tensors.to_core_masks(mask, name)
    if len(masks) > 1:
        raise InputError(f"{name}: has {len(masks)} masks, but new masks belong to no picture yet. Connect one.")
    return tensors.fit_masks(masks, size, notices, name, "mask")[0, 0].numpy() > 0


@dataclass(frozen=True)
class _Order:
    """What is wanted: ``count`` masks of ``size`` pixels, out of at most ``tries`` times as many."""

    count: int
    size: int
    tries: int
    rules: MaskRules
    regions: tuple[MaskRegion, ...]


def _collect(
    sampler: ComfySampler,
    positive: host_conditioning.ComfyConditioning,
    negative: host_conditioning.ComfyConditioning | None,
    settings: SamplingSettings,
    order: _Order,
) -> tuple[Tensor, str]:
    """``count`` masks [count, 1, size, size] and a report. Raises InputError when none obeys the rules."""
    kept: list[Tensor] = []
    reasons: Counter[str] = Counter()
    drawn, most = 0, order.tries * order.count
    cost = settings.steps + VAE_STEPS
    progress = Progress(order.count * cost)
    while len(kept) < order.count and drawn < most:
        # Decoded pictures are large: not all of a long order at once.
        wanted = min(order.count - len(kept), most - drawn, max(settings.batch_size, DECODED_AT_ONCE))
        progress.expect(max(progress.done + wanted * cost - progress.total, 0))
        size, part = (order.size, order.size), replace(settings, seed=settings.seed + drawn)
        images = sample_from_noise(sampler, wanted, size, positive, negative, part, progress)
        judged = clean_masks(images, order.rules, order.regions)
        kept += list(judged.masks)
        reasons.update(reason.split(":")[0] for _, reason in judged.rejected)
        drawn += wanted
    listed = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common()) or "none rejected"
    if not kept:
        raise InputError(
            f"mask: none of {drawn} sampled masks can be used ({listed}). Relax the rules or train longer."
        )
    report = f"{len(kept)} of {drawn} sampled masks kept ({listed})"
    if len(kept) < order.count:
        report += f"; {order.count} were wanted, so these are used again in turn"
    return torch.stack([kept[i % len(kept)] for i in range(order.count)]), report
