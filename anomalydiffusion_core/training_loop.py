"""The one training loop of this package: frozen denoiser, learned conditioning (paper, Eq. 5, 6 and 9).

All pictures are augmented and encoded before the loop (:func:`build_bank`), so a step touches only the denoiser and
whatever makes the context. The loop's state can be saved at any step and resumes to the same numbers.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .augment import AugmentSettings, augment_pair
from .blending import check_mask, latent_mask
from .denoiser import Denoiser
from .errors import InputError, TrainingError

OnStep = Callable[["StepReport"], None]
OnPrepare = Callable[[int, int], None]


@dataclass(frozen=True)
class StepReport:
    """One finished step: its number from 1, the number of steps in all, its loss before the update."""

    step: int
    total: int
    loss: float


class StopTraining(Exception):  # noqa: N818 - a signal like StopIteration, not an error
    """Raised by ``on_step`` to end training early and keep what was learned."""


class NonFiniteLossError(TrainingError):
    """A loss or gradient was not finite. The weights are those of the last good step.

    step: the step that failed, from 1. result: what had been learned by then, set by the trainer where it can.
    """

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"training: the {what} is not finite at step {step}. What was learned before is kept; lower the learning "
            "rate or use float32."
        )
        self.step = step
        self.result: Any = None


@dataclass(frozen=True)
class LoopSettings:
    """Steps, pictures per step, Adam's learning rate, seed; whether the loss is divided by the mask's area.

    masked: count the loss inside the latent mask only (Eq. 5), else everywhere (Eq. 9).
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    masked: bool = True
    normalize_by_mask_area: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps: {self.steps} is not possible. Give at least 1.")
        if self.batch_size < 1:
            raise InputError(f"batch size: {self.batch_size} is not possible. Give at least 1.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning rate: {self.learning_rate} is not possible. Give one above 0, like 0.005.")


@dataclass(frozen=True)
class LatentBank:
    """Encoded pictures, ready for the loop.

    latents [M, C, h, w]; latent_masks [M, 1, h, w] of {0, 1}, max-pooled; masks uint8 [M, 1, H, W]; members: for each
    type the rows that belong to it.
    """

    latents: Tensor
    latent_masks: Tensor
    masks: Tensor
    members: tuple[tuple[int, ...], ...]


def build_bank(
    denoiser: Denoiser,
    pairs: Sequence[tuple[Tensor, Tensor]],
    *,
    resolution: int,
    copies: int,
    seed: int,
    batch_size: int,
    augment: AugmentSettings | None = None,
    on_prepare: OnPrepare | None = None,
) -> LatentBank:
    """Augment and encode the pairs of each type: every pair once as it is and ``copies`` times augmented.

    pairs: per type, images [N, 3, H, W] in [0, 1] and masks [N, 1, H, W] of {0, 1}. ``on_prepare(done, total)`` is
    called after each encoded batch and may raise. Raises InputError for bad sizes, grey or empty masks.
    """
    if resolution < denoiser.downscale or resolution % denoiser.downscale:
        raise InputError(
            f"resolution: {resolution} is not a multiple of {denoiser.downscale}. Choose one, for example 256."
        )
    if copies < 0:
        raise InputError(f"augmented copies: {copies} is not possible. Give 0 or more.")
    generator = torch.Generator().manual_seed(seed)
    images: list[Tensor] = []
    masks: list[Tensor] = []
    members: list[tuple[int, ...]] = []
    for type_images, type_masks in pairs:
        first = len(images)
        for image, mask in zip(type_images, type_masks, strict=True):
            plain_image, plain_mask = _resized(image, mask, resolution)
            images.append(plain_image)
            masks.append(plain_mask)
            for _ in range(copies):
                new_image, new_mask = augment_pair(image, mask, generator, resolution, augment)
                images.append(new_image)
                masks.append(new_mask)
        members.append(tuple(range(first, len(images))))
    all_masks = torch.stack(masks)
    latents = []
    for start in range(0, len(images), batch_size):
        with torch.no_grad():
            chunk = torch.stack(images[start : start + batch_size])
            latents.append(denoiser.encode(chunk.to(denoiser.device)).float().clone())
        if on_prepare is not None:
            on_prepare(min(start + batch_size, len(images)), len(images))
    return LatentBank(
        latents=torch.cat(latents),
        latent_masks=latent_mask(all_masks, denoiser.downscale).to(denoiser.device),
        masks=all_masks.to(torch.uint8),
        members=tuple(members),
    )


def _resized(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    if image.shape[-2:] == (size, size):
        return image, mask
    from .data.pictures import resize_image, resize_mask

    return resize_image(image[None], size)[0], resize_mask(mask[None], size)[0]


def check_pairs(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Refuse training pairs without a type, without pictures, of disagreeing sizes, or with grey or empty masks.

    Raises InputError that names the type ("object/defect").
    """
    if not pairs:
        raise InputError("training pairs: there are none. Choose at least one defect type with pictures.")
    for key, (images, masks) in pairs.items():
        if len(images) == 0 or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"training pairs: {key} has pictures of shape {tuple(images.shape)}. Give [N, 3, H, W].")
        check_mask(masks, f"training masks of {key}")
        if len(images) != len(masks) or images.shape[-2:] != masks.shape[-2:]:
            raise InputError(
                f"training pairs: {key} has pictures of shape {tuple(images.shape)} and masks of shape "
                f"{tuple(masks.shape)}. Give one mask of the same size per picture."
            )


@dataclass(frozen=True)
class _Batch:
    types: tuple[int, ...]
    rows: Tensor
    t: Tensor
    noise: Tensor


class TrainingLoop:
    """Adam on the parameters of ``module`` through a frozen denoiser.

    ``module(types, masks)`` gives the context [B, L, D] for a batch: type indices (a tuple of B ints) and pixel masks
    float [B, 1, H, W]. Types take turns, pictures of a type are drawn uniformly, and t is uniform over the schedule,
    stratified over the batch.
    """

    def __init__(self, denoiser: Denoiser, bank: LatentBank, module: nn.Module, settings: LoopSettings) -> None:
        self.denoiser, self.bank, self.module, self.settings = denoiser, bank, module, settings
        self.optimizer = torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.losses: list[float] = []
        self._good: list[Tensor] = []

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return len(self.losses)

    def run(self, on_step: OnStep | None = None) -> None:
        """Train up to the settings' number of steps, from wherever the state is.

        An exception of ``on_step`` passes through after the finished step, StopTraining ends quietly; in both cases
        the state stays usable. Raises NonFiniteLossError with the weights put back to the last good step.
        """
        # The host may call from inside inference mode, where nothing can be trained.
        with torch.inference_mode(False), torch.enable_grad(), self.denoiser.training_mode():
            try:
                while self.step < self.settings.steps:
                    loss = self._one_step()
                    self.losses.append(loss)
                    if on_step is not None:
                        on_step(StepReport(self.step, self.settings.steps, loss))
            except StopTraining:
                pass
            finally:
                self.optimizer.zero_grad(set_to_none=True)

    def _one_step(self) -> float:
        loss = self._loss(self._draw())
        value = float(loss.detach())
        if not math.isfinite(value):
            with torch.no_grad():
                for parameter, good in zip(self.module.parameters(), self._good, strict=False):
                    parameter.copy_(good)
            raise NonFiniteLossError(self.step + 1, "loss")
        # These weights gave a finite loss: what the coming update makes of them is not known yet.
        self._good = [p.detach().clone() for p in self.module.parameters()]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if not all(bool(g.isfinite().all()) for g in gradients):
            raise NonFiniteLossError(self.step + 1, "gradient")
        self.optimizer.step()
        return value

    def _draw(self) -> _Batch:
        generator, size = self.generator, self.settings.batch_size
        count = len(self.bank.members)
        types = tuple((self.step * size + place) % count for place in range(size))
        shares = torch.rand(size, generator=generator, dtype=torch.float64).tolist()
        members = [self.bank.members[i] for i in types]
        rows = [own[int(share * len(own))] for own, share in zip(members, shares, strict=True)]
        strata = torch.randperm(size, generator=generator)
        total = len(self.denoiser.alphas_cumprod)
        t = ((strata + torch.rand(size, generator=generator, dtype=torch.float64)) / size * total).long()
        noise = torch.randn((size, *self.bank.latents.shape[1:]), generator=generator)
        device = self.denoiser.device
        return _Batch(types, torch.tensor(rows), t.clamp_max(total - 1).to(device), noise.to(device))

    def _loss(self, batch: _Batch) -> Tensor:
        device = self.denoiser.device
        latents = self.bank.latents[batch.rows.to(self.bank.latents.device)]
        masks = self.bank.masks[batch.rows].to(device, torch.float32)
        alpha = self.denoiser.alphas_cumprod.to(device)[batch.t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * batch.noise
        context = self.module(batch.types, masks)
        error = (batch.noise - self.denoiser.predict_noise(noisy, batch.t, context)).square()
        return self.reduce(error, self.bank.latent_masks[batch.rows.to(device)])

    def reduce(self, error: Tensor, inside: Tensor) -> Tensor:
        """The loss from squared errors [B, C, h, w] and latent masks [B, 1, h, w] of {0, 1}."""
        if not self.settings.masked:
            return error.mean()
        if self.settings.normalize_by_mask_area:
            area = inside.flatten(1).sum(dim=1) * error.shape[1]
            return ((error * inside).flatten(1).sum(dim=1) / area).mean()
        return (error * inside).mean()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the coming steps, as tensors and plain values."""
        return {
            "module": {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": list(self.losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. Raises TrainingError when it belongs to another training."""
        try:
            with torch.inference_mode(False):
                self.module.load_state_dict(state["module"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.generator.set_state(state["generator"])
                self.losses = [float(x) for x in state["losses"]]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"training state: it does not fit this training ({error}). Resume with the same types and settings."
            ) from error

    def save_state(self, path: Path) -> None:
        """Write the state to ``path`` in one step; a file already there is replaced whole or not at all."""
        buffer = io.BytesIO()
        torch.save(self.state_dict(), buffer)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(buffer.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def load_state(self, path: Path) -> None:
        """Go on from a file of :meth:`save_state`. Raises TrainingError for a file that is none."""
        try:
            state = torch.load(Path(path), map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes the reader raise almost anything
            raise TrainingError(f"training state: {Path(path).name} cannot be read ({error}). Start anew.") from error
        self.load_state_dict(state)
