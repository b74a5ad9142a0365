"""Mask embeddings: textual inversion of the masks themselves (paper, section 3.4, Eq. 9), all types in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..bundles.bundle import AnomalyBundle
from ..conditioning.context import ContextConditioning
from ..data.training import TrainingViews, fit_view
from ..denoiser import Denoiser
from ..identity import Identity
from ..masks.shape import mask_shapes
from ..options import option
from ..progress import Quiet
from ..sampling.sampler import SamplingSettings, sample_from_noise
from ..sampling.schedulers import SchedulerSampler
from .augment import MASK_MOVES
from .bank import OnPrepare, Pairs, bank_of, views_of
from .inversion import SpatialAnomalyTokens, learned_tokens, looked_at, scale_record, start_rows
from .loop import TrainingLoop, check_pairs
from .run import Trainer, TrainingResult
from .settings import EmbeddingSettings


@dataclass(frozen=True)
class MaskEmbeddingSettings(EmbeddingSettings):
    """Settings of a mask embedding. k' is 4 in the paper's main text."""

    tokens: int = option(4, "Tokens of each defect type, k' in the paper.", min=1, max=64)


def _as_images(masks: Mapping[str, Tensor] | TrainingViews) -> Mapping[str, Pairs] | TrainingViews:
    """Masks as what the model is shown: a white shape on black."""
    if isinstance(masks, TrainingViews):
        views = {
            key: [replace(view, image=view.mask.float().cpu().expand(3, -1, -1)) for view in own]
            for key, own in masks.views.items()
        }
        return replace(masks, views=views)
    plain = {key: own.detach().clone().float().cpu() for key, own in masks.items()}
    return {key: (own.expand(-1, 3, -1, -1), own) for key, own in plain.items()}


class MaskTrainer(Trainer):
    """One training of mask embeddings that can be run, saved, resumed (``loop``) and asked for its result."""

    def __init__(
        self,
        denoiser: Denoiser,
        masks: Mapping[str, Tensor] | TrainingViews,
        settings: MaskEmbeddingSettings,
        *,
        initial_context: Tensor | None = None,
        on_prepare: OnPrepare | None = None,
    ) -> None:
        """Augments and encodes the masks as white on black.

        masks: views of a data set, whose scale is recorded, or "object/defect" -> float [N, 1, H, W] of {0, 1}.
        """
        with torch.inference_mode(False):
            looked = looked_at(_as_images(masks), settings.resolution)
            check_pairs(looked.views)
            self.settings, self.keys, self._looked = settings, tuple(looked.views), looked
            self.base = Identity(denoiser.fingerprint(), denoiser.adaptation())
            generator = torch.Generator().manual_seed(settings.seed)
            width = denoiser.context_width
            starts = [start_rows(initial_context, settings.tokens, width, generator) for _ in self.keys]
            self.module = SpatialAnomalyTokens(starts, None).to(denoiser.device)
            own = [views_of(one, looked.canvas) for one in looked.views.values()]
            real = [torch.stack([fit_view(view, looked.canvas, mirror=False)[1] for view in views]) for views in own]
            self._shown = [masks[0] for masks in real]
            self._shapes = {key: mask_shapes(x).to_record() for key, x in zip(self.keys, real, strict=True)}
            bank, refresher = bank_of(denoiser, own, settings, on_prepare, MASK_MOVES, looked.canvas)
            self.loop = TrainingLoop(denoiser, bank, self.module, settings, refresher=refresher)

    def preview(self, number: int, steps: int = 8) -> list[Tensor]:
        """The first mask of a type, and one that is drawn from what is learned by now."""
        kind = number % len(self.keys)
        positive = ContextConditioning(learned_tokens(self.keys, self.module)[self.keys[kind]][None])
        settings = SamplingSettings(self.settings.seed, steps, cfg=1.0, scheduler="simple")
        sampler = SchedulerSampler(self.loop.denoiser)
        sample = sample_from_noise(sampler, 1, self._looked.canvas, positive, None, settings, Quiet())
        return [self._shown[kind].expand(3, -1, -1), sample[0]]

    def result(self) -> TrainingResult:
        """What has been learned so far, as copies on the CPU."""
        losses = tuple(self.loop.losses)
        metadata = {
            **self.base.metadata(),
            "token_route": "context",
            "settings": asdict(self.settings),
            "losses": [round(x, 6) for x in losses],
            "shapes": self._shapes,
            **scale_record(self._looked),
        }
        with torch.inference_mode(False):
            tokens = learned_tokens(self.keys, self.module)
        return TrainingResult(AnomalyBundle("mask", tokens, None, metadata), losses)
