"""Masked textual inversion with a spatial encoder: learn e_a per defect type and one shared E (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .augment import AugmentSettings
from .bundle import AnomalyBundle
from .denoiser import Denoiser
from .errors import InputError
from .spatial_encoder import VARIANTS, SpatialEncoder, build_spatial_encoder
from .training_loop import (
    LatentBank,
    LoopSettings,
    NonFiniteLossError,
    OnPrepare,
    OnStep,
    TrainingLoop,
    build_bank,
    check_pairs,
)

Pairs = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class InversionSettings:
    """Settings of :func:`train_anomaly_embedding`; the defaults follow the paper except for the number of steps.

    resolution: side in pixels the pairs are brought to. augmented_copies: augmented versions of each pair in the bank,
    beside the pair itself. normalize_by_mask_area: divide each sample's loss by its mask's area (off in the paper).
    masked_loss: count the loss inside the mask only (Eq. 5); off is an ablation (Table 6).
    flips: whether augmentation may mirror. The rest is named in LoopSettings and SpatialEncoder.
    """

    steps: int = 300
    batch_size: int = 4
    learning_rate: float = 5e-3
    anomaly_tokens: int = 8
    spatial_tokens: int = 4
    encoder: str = "light"
    resolution: int = 256
    augmented_copies: int = 8
    normalize_by_mask_area: bool = False
    masked_loss: bool = True
    flips: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.anomaly_tokens < 1 or self.spatial_tokens < 1:
            raise InputError(
                f"tokens: {self.anomaly_tokens} anomaly and {self.spatial_tokens} spatial tokens are not possible. "
                "Give at least 1 of each."
            )
        if self.encoder not in VARIANTS:
            raise InputError(f"encoder: there is no variant {self.encoder!r}. Choose one of {', '.join(VARIANTS)}.")
        self.loop()

    def loop(self) -> LoopSettings:
        """The part of the settings that the training loop needs. Raises InputError for impossible values."""
        return LoopSettings(
            self.steps,
            self.batch_size,
            self.learning_rate,
            seed=self.seed,
            masked=self.masked_loss,
            normalize_by_mask_area=self.normalize_by_mask_area,
        )


@dataclass(frozen=True)
class TrainingResult:
    """What was learned, and the loss of every step."""

    bundle: AnomalyBundle
    losses: tuple[float, ...]


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

    Each type's tokens are a parameter of their own, so that Adam moves only the types of the batch.
    """

    def __init__(self, tokens: Sequence[Tensor], encoder: SpatialEncoder | None) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(nn.Parameter(x) for x in tokens)
        self.encoder = encoder

    def forward(self, types: Sequence[int], masks: Tensor) -> Tensor:
        rows = torch.stack([self.tokens[i] for i in types])
        if self.encoder is None:
            return rows
        return torch.cat([rows, self.encoder(masks)], dim=1)


def learned_tokens(keys: Sequence[str], module: SpatialAnomalyTokens) -> dict[str, Tensor]:
    """Copies of the tokens per type on the CPU."""
    return {key: rows.detach().cpu().clone() for key, rows in zip(keys, module.tokens, strict=True)}


class AnomalyTrainer:
    """One training of e_a and E that can be run, saved, resumed (``loop``) and asked for its result at any time."""

    def __init__(
        self,
        denoiser: Denoiser,
        pairs: Pairs,
        settings: InversionSettings,
        *,
        initial_context: Tensor | None = None,
        on_prepare: OnPrepare | None = None,
    ) -> None:
        """Prepares the bank of encoded pictures; see :func:`train_anomaly_embedding`."""
        check_pairs(pairs)
        self.settings, self.keys = settings, tuple(pairs)
        self.fingerprint = denoiser.fingerprint()
        width = denoiser.context_width
        # A host may call this in inference mode; nothing made there could be trained.
        with torch.inference_mode(False):
            generator = torch.Generator().manual_seed(settings.seed)
            starts = [start_rows(initial_context, settings.anomaly_tokens, width, generator) for _ in self.keys]
            encoder = build_spatial_encoder(settings.encoder, settings.spatial_tokens, width, settings.seed)
            spatial = start_rows(initial_context, settings.spatial_tokens, width, generator)
            encoder.start_near(spatial, spread=0.3 * float(torch.cat(starts).square().mean().sqrt()))
            self.module = SpatialAnomalyTokens(starts, encoder).to(denoiser.device)
            bank = self._bank(denoiser, pairs, on_prepare)
            self.loop = TrainingLoop(denoiser, bank, self.module, settings.loop())

    def _bank(self, denoiser: Denoiser, pairs: Pairs, on_prepare: OnPrepare | None) -> LatentBank:
        # Cloned: tensors made in inference mode cannot be used for training.
        own = [(images.detach().clone().cpu(), masks.detach().clone().cpu()) for images, masks in pairs.values()]
        return build_bank(
            denoiser,
            own,
            resolution=self.settings.resolution,
            copies=self.settings.augmented_copies,
            seed=self.settings.seed,
            batch_size=self.settings.batch_size,
            augment=AugmentSettings(flips=self.settings.flips),
            on_prepare=on_prepare,
        )

    def run(self, on_step: OnStep | None = None) -> TrainingResult:
        """Train to the end. Exceptions as in TrainingLoop.run; NonFiniteLossError carries the result so far."""
        try:
            self.loop.run(on_step)
        except NonFiniteLossError as error:
            error.result = self.result()
            raise
        return self.result()

    def result(self) -> TrainingResult:
        """What has been learned so far, as copies on the CPU."""
        with torch.inference_mode(False):
            trained = self.module.encoder
            encoder = build_spatial_encoder(
                self.settings.encoder, self.settings.spatial_tokens, self.loop.denoiser.context_width
            )
            if trained is not None:
                encoder.load_state_dict(trained.state_dict())
            tokens = learned_tokens(self.keys, self.module)
        losses = tuple(self.loop.losses)
        metadata = {
            "base_fingerprint": self.fingerprint,
            "token_route": "context",
            "anomaly_tokens": self.settings.anomaly_tokens,
            "spatial_tokens": self.settings.spatial_tokens,
            "settings": asdict(self.settings),
            "losses": [round(x, 6) for x in losses],
        }
        return TrainingResult(AnomalyBundle("anomaly", tokens, encoder.eval().requires_grad_(False), metadata), losses)


def train_anomaly_embedding(
    denoiser: Denoiser,
    pairs: Pairs,
    settings: InversionSettings,
    *,
    initial_context: Tensor | None = None,
    on_step: OnStep | None = None,
    on_prepare: OnPrepare | None = None,
) -> TrainingResult:
    """Learn the spatial anomaly embedding of one or more defect types on a frozen denoiser (paper, Eq. 5 and 6).

    pairs: "object/defect" -> (images float [N, 3, H, W] in [0, 1], masks float [N, 1, H, W] of {0, 1}).
    initial_context: conditioning [L, width] the tokens start near, for example of a good part.
    on_step: called after every step; an exception passes through, StopTraining ends early and keeps what was learned.
    on_prepare: called with (done, total) while pictures are encoded.
    Same inputs and seed give the same result on the CPU. Raises InputError that names the input, and
    NonFiniteLossError (with ``result``) at the first loss that is not finite.
    """
    trainer = AnomalyTrainer(denoiser, pairs, settings, initial_context=initial_context, on_prepare=on_prepare)
    return trainer.run(on_step)
