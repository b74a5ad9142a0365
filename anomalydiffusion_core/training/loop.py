"""The one training loop of this package: frozen denoiser, learned conditioning (paper, Eq. 5, 6 and 9).

All images are augmented and encoded before the loop (:func:`build_bank`) and renewed between its steps, so a step
touches only the denoiser and whatever makes the context. The loop's state can be saved at any step and resumes to the
same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..errors import InputError, TrainingError
from ..sampling.blending import check_mask
from .bank import BankRefresher, LatentBank, Pairs
from .settings import BALANCES, Frozen, LoopSettings, NonFiniteLossError, OnStep, Pause, StepReport, StopTraining

FIRST_LOSS_SCALE = 2.0**14
"""Factor on the loss where the model computes in float16, lest small gradients vanish; halved on overflow."""


def check_pairs(pairs: Mapping[str, Pairs]) -> None:
    """Refuse training pairs without a type, without images, of disagreeing sizes, or with grey or empty masks.

    Raises InputError that names the type ("object/defect").
    """
    if not pairs:
        raise InputError("training pairs: there are none. Choose at least one defect type with images.")
    for key, own in pairs.items():
        if not isinstance(own, tuple):
            if not own:
                raise InputError(f"training pairs: {key} has no images. Choose another split.")
            for view in own:
                check_mask(view.mask[None], f"training masks of {key}")
            continue
        images, masks = own
        if len(images) == 0 or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"training pairs: {key} has images of shape {tuple(images.shape)}. Give [N, 3, H, W].")
        check_mask(masks, f"training masks of {key}")
        if len(images) != len(masks) or images.shape[-2:] != masks.shape[-2:]:
            raise InputError(
                f"training pairs: {key} has images of shape {tuple(images.shape)} and masks of shape "
                f"{tuple(masks.shape)}. Give one mask of the same size per image."
            )


@dataclass(frozen=True)
class _Batch:
    types: tuple[int, ...]
    rows: Tensor
    t: Tensor
    noise: Tensor
    spread: Tensor | None = None


class TrainingLoop:
    """Adam on the parameters of ``module`` through a frozen denoiser.

    ``module(types, masks)`` gives the context [B, L, D] for a batch: type indices (a tuple of B ints) and pixel masks
    float [B, 1, H, W]. Images are drawn as ``settings.options.balance`` says, and t is uniform over the schedule,
    stratified over the batch. frozen: other parts that gradients flow through. refresher: renews the bank between
    steps at the settings' rate.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        bank: LatentBank,
        module: nn.Module,
        settings: LoopSettings,
        *,
        frozen: Sequence[Frozen] = (),
        refresher: BankRefresher | None = None,
    ) -> None:
        self.denoiser, self.bank, self.module, self.settings = denoiser, bank, module, settings
        self.frozen, self.refresher = tuple(frozen), refresher
        if settings.options.refresh_every and refresher is None:
            raise InputError("refresh: this training has nothing that renews its images. Set it to 0.")
        self.optimizer = torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.losses: list[float] = []
        self.refreshed = 0
        half = getattr(denoiser, "compute_dtype", None) is torch.float16
        self.loss_scale = FIRST_LOSS_SCALE if half else 1.0
        self._good: list[Tensor] = []
        self._pool = [(kind, row) for kind, rows in enumerate(bank.members) for row in rows]

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return len(self.losses)

    @property
    def stalled(self) -> bool:
        """Whether the rule for an early stop is met."""
        window = self.settings.options.early_stop
        if not window or self.step % window or self.step < 3 * window:
            return False
        means = torch.tensor(self.losses, dtype=torch.float64).view(-1, window).mean(dim=1)
        return bool(means[-2:].min() >= means[:-2].min())

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self.settings.steps or self.stalled

    def run(self, on_step: OnStep | None = None, pauses: Sequence[Pause] = ()) -> None:
        """Train up to the settings' number of steps or an early stop, from wherever the state is.

        An exception of ``on_step``, a pause or the model passes through, StopTraining ends quietly; in all cases the
        state is that of the last finished step and stays usable. Raises NonFiniteLossError with the weights put back
        to the last good step.
        """
        # The host may call from inside inference mode, where nothing can be trained.
        with torch.inference_mode(False):
            try:
                while not self.finished:
                    self._renew()
                    report = self._until_pause(on_step, pauses)
                    for pause in pauses:
                        if pause.due(report.step):
                            pause.action(report)
            except StopTraining:
                pass
            finally:
                self.optimizer.zero_grad(set_to_none=True)

    def _until_pause(self, on_step: OnStep | None, pauses: Sequence[Pause]) -> StepReport:
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.denoiser.training_mode())
            for part in self.frozen:
                stack.enter_context(part.training_mode())
            while True:
                self.losses.append(self._one_step())
                report = StepReport(self.step, self.settings.steps, self.losses[-1])
                if on_step is not None:
                    on_step(report)
                if self.finished or self._refreshes_due() or any(pause.due(self.step) for pause in pauses):
                    return report

    def _refreshes_due(self) -> int:
        rate = self.settings.options.refresh_every
        return self.step // rate - self.refreshed if rate else 0

    def _renew(self) -> None:
        while self.refresher is not None and self._refreshes_due() > 0:
            self.refresher.refresh(self.refreshed)
            self.refreshed += 1

    def _one_step(self) -> float:
        before = self.generator.get_state()
        try:
            batches = [self._draw(number) for number in range(self.settings.options.accumulate)]
            while True:
                value = self._gradients(batches)
                if self._unscale():
                    break
                if self.loss_scale <= 1:
                    raise NonFiniteLossError(self.step + 1, "gradient")
                self.loss_scale /= 2
        except BaseException:
            # As if the step had not begun: whoever resumes draws the same again.
            self.generator.set_state(before)
            raise
        # These weights gave a finite loss: what the update makes of them is not known yet.
        self._good = [p.detach().clone() for p in self.module.parameters()]
        self.optimizer.step()
        return value

    def _gradients(self, batches: Sequence[_Batch]) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            loss = self._loss(batch) / len(batches)
            value = float(loss.detach())
            if not math.isfinite(value):
                with torch.no_grad():
                    for parameter, good in zip(self.module.parameters(), self._good, strict=False):
                        parameter.copy_(good)
                raise NonFiniteLossError(self.step + 1, "loss")
            total += value
            (loss * self.loss_scale).backward()  # type: ignore[no-untyped-call]
        return total

    def _unscale(self) -> bool:
        """Take the loss scale off the gradients; whether they are finite."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if self.loss_scale != 1:
            for gradient in gradients:
                gradient.div_(self.loss_scale)
        return not gradients or bool(torch.stack([g.isfinite().all() for g in gradients]).all())

    def _draw(self, number: int = 0) -> _Batch:
        generator, size, options = self.generator, self.settings.batch_size, self.settings.options
        first = (self.step * options.accumulate + number) * size
        shares = torch.rand(size, generator=generator, dtype=torch.float64).tolist()
        if options.balance == BALANCES[0]:
            count = len(self.bank.members)
            types = tuple((first + place) % count for place in range(size))
            members = [self.bank.members[i] for i in types]
            rows = [own[int(share * len(own))] for own, share in zip(members, shares, strict=True)]
        else:
            chosen = [self._pool[int(share * len(self._pool))] for share in shares]
            types, rows = tuple(kind for kind, _ in chosen), [row for _, row in chosen]
        strata = torch.randperm(size, generator=generator)
        total = len(self.denoiser.alphas_cumprod)
        t = ((strata + torch.rand(size, generator=generator, dtype=torch.float64)) / size * total).long()
        shape = (size, *self.bank.latents.shape[1:])
        noise = torch.randn(shape, generator=generator)
        spread = torch.randn(shape, generator=generator) if options.sample_latents else None
        device = self.denoiser.device
        own_spread = None if spread is None else spread.to(device)
        return _Batch(types, torch.tensor(rows), t.clamp_max(total - 1).to(device), noise.to(device), own_spread)

    def _latents(self, batch: _Batch) -> Tensor:
        rows = batch.rows.to(self.bank.latents.device)
        latents = self.bank.latents[rows]
        if batch.spread is None:
            return latents
        if self.bank.deviations is None:
            raise InputError("sample latents: the images were encoded without deviations. Encode them with.")
        return latents + self.bank.deviations[rows] * batch.spread

    def _loss(self, batch: _Batch) -> Tensor:
        device = self.denoiser.device
        masks = self.bank.masks[batch.rows].to(device, torch.float32)
        alpha = self.denoiser.alphas_cumprod.to(device)[batch.t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * self._latents(batch) + (1 - alpha).sqrt() * batch.noise
        context = self.module(batch.types, masks)
        error = (batch.noise - self.denoiser.predict_noise(noisy, batch.t, context)).square()
        return self.reduce(error, self.bank.latent_masks[batch.rows.to(device)])

    def reduce(self, error: Tensor, inside: Tensor) -> Tensor:
        """The loss from squared errors [B, C, h, w] and latent masks [B, 1, h, w] of {0, 1}."""
        if not self.settings.masked:
            return error.mean()
        if self.settings.area_normalized:
            area = inside.flatten(1).sum(dim=1) * error.shape[1]
            return ((error * inside).flatten(1).sum(dim=1) / area).mean()
        return (error * inside).mean()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the coming steps, as tensors and plain values."""
        return {
            "module": {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()},
            "good": [value.cpu() for value in self._good],
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": list(self.losses),
            "refreshed": self.refreshed,
            "loss_scale": self.loss_scale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state``. Raises TrainingError when it belongs to another training."""
        try:
            with torch.inference_mode(False):
                self.module.load_state_dict(state["module"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.generator.set_state(state["generator"])
                self._good = [value.to(self.denoiser.device) for value in state["good"]]
                self.losses = [float(x) for x in state["losses"]]
                self.loss_scale = float(state["loss_scale"])
                refreshed = int(state["refreshed"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"training state: it does not fit this training ({error}). Resume with the same types and settings."
            ) from error
        if self.refresher is not None:
            self.refresher.replay(refreshed)
        self.refreshed = refreshed
