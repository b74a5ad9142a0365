"""Mask embeddings: textual inversion of the masks themselves (paper, section 3.4, Eq. 9), all types in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from ..bundles.bundle import AnomalyBundle
from ..conditioning.context import ContextConditioning
from ..denoiser import Denoiser
from ..errors import InputError
from ..progress import Quiet
from ..sampling.sampler import SamplingSettings, sample_from_noise
from ..sampling.schedulers import SchedulerSampler
from .bank import bank_of, fit_pair
from .inversion import SpatialAnomalyTokens, learned_tokens, start_rows
from .loop import LoopOptions, LoopSettings, OnPrepare, OnStep, Pause, TrainingLoop, check_pairs
from .run import SAVE_EVERY, Trainer, TrainingResult
from .state import StateFile


@dataclass(frozen=True)
class MaskEmbeddingSettings:
    """Settings of :func:`train_mask_embedding`.

    tokens: k' per type, 4 in the paper's main text. augmented_copies: cropped, moved and turned versions of each mask
    beside the mask itself. resolution: side in pixels of the mask pictures.
    """

    steps: int = 300
    batch_size: int = 4
    learning_rate: float = 5e-3
    tokens: int = 4
    resolution: int = 256
    augmented_copies: int = 8
    flips: bool = False
    seed: int = 0
    options: LoopOptions = field(default_factory=LoopOptions)

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"tokens: {self.tokens} is not possible. Give at least 1.")
        self.loop()

    def loop(self) -> LoopSettings:
        """The part of the settings that the training loop needs. Raises InputError for impossible values."""
        return LoopSettings(
            self.steps, self.batch_size, self.learning_rate, seed=self.seed, masked=False, options=self.options
        )


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
        """Prepares the bank of encoded mask pictures; see :func:`train_mask_embedding`."""
        with torch.inference_mode(False):
            # A mask is shown to the model as a white shape on black.
            own = {key: x.detach().clone().float().cpu() for key, x in masks.items()}
            pairs = {key: (x.expand(-1, 3, -1, -1), x) for key, x in own.items()}
            check_pairs(pairs)
            self.settings, self.keys = settings, tuple(masks)
            self.fingerprint = denoiser.fingerprint()
            generator = torch.Generator().manual_seed(settings.seed)
            width = denoiser.context_width
            starts = [start_rows(initial_context, settings.tokens, width, generator) for _ in self.keys]
            self.module = SpatialAnomalyTokens(starts, None).to(denoiser.device)
            self._shown = [fit_pair(images[0], masks[0], settings.resolution)[1] for images, masks in pairs.values()]
            bank, refresher = bank_of(denoiser, list(pairs.values()), settings, on_prepare)
            self.loop = TrainingLoop(denoiser, bank, self.module, settings.loop(), refresher=refresher)

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
            "base_fingerprint": self.fingerprint,
            "token_route": "context",
            "settings": asdict(self.settings),
            "losses": [round(x, 6) for x in losses],
        }
        with torch.inference_mode(False):
            tokens = learned_tokens(self.keys, self.module)
        return TrainingResult(AnomalyBundle("mask", tokens, None, metadata), losses)


def train_mask_embedding(
    denoiser: Denoiser,
    masks: Mapping[str, Tensor],
    settings: MaskEmbeddingSettings,
    *,
    initial_context: Tensor | None = None,
    on_step: OnStep | None = None,
    on_prepare: OnPrepare | None = None,
    pauses: Sequence[Pause] = (),
    state: StateFile | None = None,
    save_every: int = SAVE_EVERY,
) -> TrainingResult:
    """Learn one mask embedding per type on a frozen denoiser (paper, Eq. 9: the loss covers the whole picture).

    masks: "object/defect" -> float [N, 1, H, W] of {0, 1}. The rest is as in train_anomaly_embedding.
    """
    trainer = MaskTrainer(denoiser, masks, settings, initial_context=initial_context, on_prepare=on_prepare)
    return trainer.run(on_step, pauses=pauses, state=state, save_every=save_every)
