"""Masked textual inversion with a spatial encoder: learn e_a per defect type and one shared E (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..bundles.bundle import CLIP_ROUTE, CONTEXT_ROUTE, SCALE_KEY, AnomalyBundle
from ..bundles.conditioning import anomaly_conditioning
from ..conditioning.prompt_encoder import Prompt
from ..conditioning.spatial_encoder import (
    NO_ENCODER,
    PRETRAINED,
    VARIANTS,
    SpatialEncoder,
    build_spatial_encoder,
    start_from_backbone,
)
from ..data.training import TrainingViews, fit_view
from ..denoiser import Denoiser
from ..errors import InputError
from ..identity import Identity
from ..options import option
from ..progress import Quiet
from ..sampling.sampler import SamplingSettings
from ..sampling.scene import Recipe, sample_blended
from ..sampling.schedulers import SchedulerSampler
from ..scale import TrainedView
from .augment import WINDOW_MOVES, AugmentSettings
from .bank import OnPrepare, Pairs, bank_of, views_of
from .loop import TrainingLoop, check_pairs
from .run import Trainer, TrainingResult
from .settings import EmbeddingSettings


@dataclass(frozen=True)
class InversionSettings(EmbeddingSettings):
    """Settings of an anomaly embedding. k and n are 8 and 4 in the paper."""

    anomaly_tokens: int = option(8, "Tokens of each defect type, k in the paper.", min=1, max=64)
    spatial_tokens: int = option(4, "Tokens of a mask, n in the paper.", min=1, max=64)
    encoder: str = option(
        VARIANTS[0],
        "Spatial encoder: light for a CPU, resnet50_fpn as in the paper, none for an ablation without spatial tokens.",
        choices=VARIANTS,
    )
    normalize_by_mask_area: bool = option(False, "Let small defects weigh as much as large ones. Off in the paper.")
    masked_loss: bool = option(
        True, "Count the loss only inside the mask, as the paper does (Eq. 5). Off is an ablation (Table 6)."
    )

    @property
    def masked(self) -> bool:
        """Count the loss inside the latent mask only."""
        return self.masked_loss

    @property
    def area_normalized(self) -> bool:
        """Divide the loss of each sample by the area of its mask."""
        return self.normalize_by_mask_area


def start_rows(initial_context: Tensor | None, rows: int, width: int, generator: torch.Generator) -> Tensor:
    """``rows`` starting tokens [rows, width]: near the rows of a context, else small noise N(0, 0.02).

    initial_context: [L, width] or [1, L, width], for example the caption of a good part. Token i gets its row i modulo
    L, so that training starts from what the caption means, plus noise of a tenth of the context's own deviation, so
    that tokens of one row can part. Raises InputError with both widths.
    """
    noise = torch.randn(rows, width, generator=generator)
    if initial_context is None:
        return noise * 0.02
    context = initial_context.detach().clone().float().cpu().reshape(-1, initial_context.shape[-1])
    if context.shape[1] != width:
        raise InputError(
            f"initial conditioning: its width is {context.shape[1]}, the model's context has {width}. "
            "Use conditioning made for this model."
        )
    return context[torch.arange(rows) % len(context)] + noise * 0.1 * context.square().mean().sqrt()


class SpatialAnomalyTokens(nn.Module):
    """The trained part: e = [e_a of the sample's type, E(mask)], or e_a alone without an encoder.

    Each type's tokens are a parameter of their own, so that Adam moves only the types of the batch. With a prompt the
    result is the context that the text encoder makes of e.
    """

    def __init__(self, tokens: Sequence[Tensor], encoder: SpatialEncoder | None, prompt: Prompt | None = None) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(nn.Parameter(x) for x in tokens)
        self.encoder = encoder
        self.prompt = prompt

    def forward(self, types: Sequence[int], masks: Tensor) -> Tensor:
        """Type indices (B of them) and masks [B, 1, H, W] of {0, 1} to context [B, L, width]."""
        rows = torch.stack([self.tokens[i] for i in types])
        if self.encoder is not None:
            rows = torch.cat([rows, self.encoder(masks)], dim=1)
        return rows if self.prompt is None else self.prompt.contexts(rows)


def learned_tokens(keys: Sequence[str], module: SpatialAnomalyTokens) -> dict[str, Tensor]:
    """Copies of the tokens per type on the CPU."""
    return {key: rows.detach().cpu().clone() for key, rows in zip(keys, module.tokens, strict=True)}


@dataclass(frozen=True)
class Looked:
    """What a training looks at, on one canvas (height, width). trained: how, by type; empty where it is not known."""

    canvas: tuple[int, int]
    views: Mapping[str, Pairs]
    trained: Mapping[str, TrainedView]


def looked_at(pairs: Mapping[str, Pairs] | TrainingViews, resolution: int) -> Looked:
    """Views of a data set, or pairs in memory as squares of the resolution."""
    if isinstance(pairs, TrainingViews):
        return Looked(pairs.canvas, pairs.views, pairs.trained)
    return Looked((resolution, resolution), pairs, {})


def moves_of(looked: Looked) -> AugmentSettings:
    """How copies are augmented."""
    return WINDOW_MOVES if any(view.windows for view in looked.trained.values()) else AugmentSettings()


def scale_record(looked: Looked) -> dict[str, Any]:
    """The bundle's entry ``scale``: how each type was looked at."""
    if not looked.trained:
        return {}
    return {SCALE_KEY: {key: view.record() for key, view in looked.trained.items()}}


def copied(pairs: Pairs) -> Pairs:
    """Tensors of the same values that a training can use, whatever mode they were made in."""
    if isinstance(pairs, tuple):
        images, masks = pairs
        return images.detach().clone().cpu(), masks.detach().clone().cpu()

    def own(value: Tensor) -> Tensor:
        return value.detach().clone().cpu()

    return [
        replace(
            view, image=own(view.image), mask=own(view.mask), focus=None if view.focus is None else own(view.focus)
        )
        for view in pairs
    ]


class AnomalyTrainer(Trainer):
    """One training of e_a and E that can be run, saved, resumed (``loop``) and asked for its result at any time."""

    def __init__(
        self,
        denoiser: Denoiser,
        pairs: Mapping[str, Pairs] | TrainingViews,
        settings: InversionSettings,
        *,
        initial_context: Tensor | None = None,
        on_prepare: OnPrepare | None = None,
        prompt: Prompt | None = None,
        backbone: dict[str, Tensor] | None = None,
    ) -> None:
        """Augments and encodes the images.

        pairs: views of a data set, whose scale is recorded, or "object/defect" -> (images float [N, 3, H, W] in
        [0, 1], masks float [N, 1, H, W] of {0, 1}), learned as squares of the resolution.
        initial_context: rows [L, width] that the tokens start near, for example the conditioning of a normal part;
        with ``prompt`` token embeddings of words. prompt: a text encoder that the tokens pass through; without it they
        are the context itself (Eq. 8). backbone: ImageNet weights of ``spatial_encoder.load_backbone`` that
        resnet50_fpn starts from. on_prepare: called with (done, total) while images are encoded.
        Same inputs and seed give the same result on the CPU. Raises InputError that names the input.
        """
        looked = looked_at(pairs, settings.resolution)
        check_pairs(looked.views)
        self.settings, self.keys, self.prompt, self._looked = settings, tuple(looked.views), prompt, looked
        if backbone is not None and settings.encoder != VARIANTS[1]:
            raise InputError(
                f"encoder weights: they are for the encoder {VARIANTS[1]}, chosen is {settings.encoder}. Choose that "
                "encoder, or no weights."
            )
        self._variant = settings.encoder if backbone is None else PRETRAINED
        self.base = Identity(denoiser.fingerprint(), denoiser.adaptation())
        self.width = denoiser.context_width if prompt is None else prompt.encoder.width
        if prompt is not None:
            prompt.check_room(
                settings.anomaly_tokens + (0 if settings.encoder == NO_ENCODER else settings.spatial_tokens)
            )
        # A host may call this in inference mode; nothing made there could be trained.
        with torch.inference_mode(False):
            generator = torch.Generator().manual_seed(settings.seed)
            starts = [start_rows(initial_context, settings.anomaly_tokens, self.width, generator) for _ in self.keys]
            encoder = self._encoder(settings.seed)
            if backbone is not None:
                start_from_backbone(encoder, backbone)
            spatial = start_rows(initial_context, settings.spatial_tokens, self.width, generator)
            encoder.start_near(spatial, spread=0.3 * float(torch.cat(starts).square().mean().sqrt()))
            self.module = SpatialAnomalyTokens(starts, encoder, prompt).to(denoiser.device)
            # Cloned: tensors made in inference mode cannot be used for training.
            own = [views_of(copied(one), looked.canvas) for one in looked.views.values()]
            self._shown = [fit_view(views[0], looked.canvas) for views in own]
            bank, refresher = bank_of(denoiser, own, settings, on_prepare, moves_of(looked), looked.canvas)
            frozen = () if prompt is None else (prompt.encoder,)
            self.loop = TrainingLoop(denoiser, bank, self.module, settings, frozen=frozen, refresher=refresher)

    def _encoder(self, seed: int = 0) -> SpatialEncoder:
        return build_spatial_encoder(self._variant, self.settings.spatial_tokens, self.width, seed)

    def preview(self, number: int, steps: int = 8) -> list[Tensor]:
        """The first pair of a type and its defect as it is generated now: image, mask, blended sample."""
        kind = number % len(self.keys)
        image, mask = self._shown[kind]
        positive = anomaly_conditioning(self.result().bundle, self.keys[kind], mask[None], self.prompt)
        recipe = Recipe(SamplingSettings(self.settings.seed, steps, cfg=1.0, scheduler="simple"))
        sampler = SchedulerSampler(self.loop.denoiser)
        samples = sample_blended(sampler, image[None], mask[None], positive, None, recipe, Quiet())
        return [image, mask.expand(3, -1, -1), samples.images[0]]

    def result(self) -> TrainingResult:
        """What has been learned so far, as copies on the CPU."""
        with torch.inference_mode(False):
            encoder = self._encoder()
            if self.module.encoder is not None:
                encoder.load_state_dict(self.module.encoder.state_dict())
            tokens = learned_tokens(self.keys, self.module)
        losses = tuple(self.loop.losses)
        metadata = {
            **self.base.metadata(),
            "token_route": CONTEXT_ROUTE,
            "anomaly_tokens": self.settings.anomaly_tokens,
            "spatial_tokens": encoder.tokens,
            "settings": asdict(self.settings),
            "losses": [round(x, 6) for x in losses],
            **scale_record(self._looked),
        }
        if self.prompt is not None:
            metadata |= {
                "token_route": CLIP_ROUTE,
                "template": self.prompt.template,
                "placeholder": self.prompt.placeholder,
                "text_encoder_fingerprint": self.prompt.encoder.fingerprint(),
                "text_encoder_adaptation": self.prompt.encoder.adaptation(),
            }
        return TrainingResult(AnomalyBundle("anomaly", tokens, encoder.eval().requires_grad_(False), metadata), losses)
