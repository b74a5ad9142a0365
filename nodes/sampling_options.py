"""The optional inputs of Blended AAR KSampler: cropping, finishing, drawing again, and the details of re-weighting."""

from __future__ import annotations

from comfy_api.latest import io

from ..anomalydiffusion_core.sampling.reweighting import DIFFERENCES, TOKEN_SCOPES
from ..anomalydiffusion_core.sampling.windows import CROP_MODES


def finishing_inputs() -> list[io.Input]:
    """Where samples may lie, how small masks are sampled, and what happens to weak samples."""
    return [
        io.Mask.Input(
            "foreground",
            optional=True,
            tooltip=(
                "The object. Masks are cut to it; a mask that does not lie on it is an error. One, or one for each "
                "sample."
            ),
        ),
        io.Float.Input(
            "foreground_overlap",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="Smallest share of a mask that must lie on the foreground. 0 allows any that touches it.",
        ),
        io.Combo.Input(
            "crop",
            options=list(CROP_MODES),
            default=CROP_MODES[0],
            optional=True,
            tooltip=(
                "Sample an enlarged window around the mask and put it back. auto does so for masks that touch fewer "
                "latent cells than crop_cells."
            ),
        ),
        io.Int.Input(
            "crop_cells",
            default=8,
            min=0,
            max=4096,
            optional=True,
            tooltip="With crop auto: masks that touch fewer latent cells (8 x 8 pixels each) are enlarged.",
        ),
        io.Int.Input(
            "crop_margin",
            default=32,
            min=0,
            max=4096,
            optional=True,
            tooltip="Context in pixels on every side of the mask in its window.",
        ),
        io.Int.Input(
            "crop_size",
            default=0,
            min=0,
            max=4096,
            step=8,
            optional=True,
            tooltip="Resolution in pixels that windows are sampled at. 0 takes the one the embedding was trained at.",
        ),
        io.Float.Input(
            "min_effect",
            default=0.0,
            min=0.0,
            max=255.0,
            step=0.5,
            optional=True,
            tooltip="Samples with a smaller effect (0 to 255) are drawn again with another seed. 0 draws none again.",
        ),
        io.Int.Input(
            "retries",
            default=2,
            min=0,
            max=20,
            optional=True,
            tooltip="How often a sample is drawn again at most. The try with the largest effect is kept.",
        ),
        io.Boolean.Input(
            "grey_lock",
            default=False,
            optional=True,
            tooltip="Keep grey pictures grey: where the picture has equal channels everywhere, so has the result.",
        ),
    ]


def reweighting_inputs() -> list[io.Input]:
    """The details of adaptive attention re-weighting."""
    return [
        io.Float.Input(
            "cap",
            default=2.0,
            min=1.0,
            max=1000000.0,
            step=0.05,
            optional=True,
            tooltip="Largest weight that the re-weighting may give; authors is never above 1.5.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Share of the sampling run at which the re-weighting starts.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Share of the sampling run at which the re-weighting ends.",
        ),
        io.Combo.Input(
            "difference",
            options=list(DIFFERENCES),
            default=DIFFERENCES[0],
            optional=True,
            tooltip=(
                "What tells how much has changed: the latent of the previous step (free), that of the same step (one "
                "more model call), or decoded pictures. authors always takes the noisy latent, as its code does."
            ),
        ),
        io.Int.Input(
            "decode_every",
            default=5,
            min=1,
            max=1000,
            optional=True,
            tooltip="With difference decoded: decode every so many steps.",
        ),
        io.Combo.Input(
            "token_scope",
            options=list(TOKEN_SCOPES),
            default=TOKEN_SCOPES[0],
            optional=True,
            tooltip="Which part of the conditioning gets more attention: the anomaly's tokens alone, or all of it.",
        ),
        io.Float.Input(
            "temperature",
            default=1.0,
            min=0.001,
            max=1000.0,
            step=0.05,
            round=False,
            optional=True,
            tooltip="Temperature of the softmax of the mode paper. Higher spreads the weights more evenly.",
        ),
        io.Boolean.Input(
            "raw_difference",
            default=False,
            optional=True,
            tooltip=(
                "In the mode paper: the difference as it is, not divided by its mean in the mask. With temperature 1 "
                "and a large cap this is Eq. 7 literally."
            ),
        ),
    ]
