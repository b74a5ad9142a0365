"""Mask embeddings: textual inversion of the masks themselves (paper, section 3.4, Eq. 9), all types in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..bundles.bundle import AnomalyBundle
from ..conditioning.context import ContextConditioning
from ..denoiser import Denoiser
from ..identity import Identity
from ..masks.shape import mask_shapes
from ..options import option
from ..progress import Quiet
from ..sampling.sampler import SamplingSettings, sample_from_noise
from ..sampling.schedulers import SchedulerSampler
from .augment import MASK_MOVES
from .bank import OnPrepare, bank_of, fit_pair
from .inversion import SpatialAnomalyTokens, learned_tokens, start_rows
from .loop import TrainingLoop, check_pairs
from .run import Trainer, TrainingResult
from .settings import EmbeddingSettings


@dataclass(frozen=True)
class MaskEmbeddingSettings(EmbeddingSettings):
    """Settings of a mask embedding. k' is 4 in the paper's main text."""

    tokens: int = option(4, "Tokens of each defect type, k' in the paper.", min=1, max=64)


class MaskTrainer(Trainer):
    """One training of mask embeddings that can be run, saved, resumed (``loop``) and asked for its result."""

    def __init__(
        self,
        denoiser: Denoiser,
        masks: Mapping[str, Tensor],
        settings: MaskEmbeddingSettings,
        *,
        initial_context: Tensor | None = None,
        on_prepare: OnPrepare | None = None,
    ) -> None:
        """Augments and encodes the masks ("object/defect" -> float [N, 1, H, W] of {0, 1}) as white on black."""
        with torch.inference_mode(False):
            # A mask is shown to the model as a white shape on black.
            own = {key: x.detach().clone().float().cpu() for key, x in masks.items()}
            pairs = {key: (x.expand(-1, 3, -1, -1), x) for key, x in own.items()}
            check_pairs(pairs)
            self.settings, self.keys = settings, tuple(masks)
            self._shapes = {key: mask_shapes(x).to_record() for key, x in own.items()}
            self.base = Identity(denoiser.fingerprint(), denoiser.adaptation())
            generator = torch.Generator().manual_seed(settings.seed)
            width = denoiser.context_width
            starts = [start_rows(initial_context, settings.tokens, width, generator) for _ in self.keys]
            self.module = SpatialAnomalyTokens(starts, None).to(denoiser.device)
            self._shown = [fit_pair(images[0], masks[0], settings.resolution)[1] for images, masks in pairs.values()]
            bank, refresher = bank_of(denoiser, list(pairs.values()), settings, on_prepare, MASK_MOVES)
            self.loop = TrainingLoop(denoiser, bank, self.module, settings, refresher=refresher)

    def preview(self, number: int, steps: int = 8) -> list[Tensor]:
        """The first mask of a type, and one that is drawn from what is learned by now."""
        kind, side = number % len(self.keys), self.settings.resolution
        positive = ContextConditioning(learned_tokens(self.keys, self.module)[self.keys[kind]][None])
        settings = SamplingSettings(self.settings.seed, steps, cfg=1.0, scheduler="simple")
        sampler = SchedulerSampler(self.loop.denoiser)
        sample = sample_from_noise(sampler, 1, (side, side), positive, None, settings, Quiet())
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
        }
        with torch.inference_mode(False):
            tokens = learned_tokens(self.keys, self.module)
        return TrainingResult(AnomalyBundle("mask", tokens, None, metadata), losses)
