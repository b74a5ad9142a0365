"""Adapting a base model to a normal object, so that it can redraw a normal part inside a mask (design, decision 8).

A low-rank addition to the U-Net is tuned on normal images alone, under the caption of a normal part, with the ordinary
noise-prediction loss. Each image has a random mask; the errors inside it and outside it weigh the same, whatever
their areas, because a part is redrawn inside a region from what lies around it. Defects are never shown: they would be
drawn under every caption then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning.context import ContextConditioning
from ..denoiser import Denoiser
from ..errors import InputError
from ..options import option
from ..progress import Quiet
from ..sampling.sampler import SamplingSettings
from ..sampling.scene import Recipe, sample_blended
from ..sampling.schedulers import SchedulerSampler
from ..scale import AUTO, VIEWS
from .bank import OnPrepare, build_bank
from .loop import TrainingLoop
from .lora import Lora, LoraFile
from .run import Trainer, TrainingResult
from .settings import LoopSettings, learning_rate

EMPTY_EVERY = 5
SHOWN = 4
"""Normal images that previews show in turn."""


@dataclass(frozen=True)
class AdaptationSettings(LoopSettings):
    """Settings of an adaptation to normal images."""

    steps: int = option(200, "Optimizer steps.", min=1, max=1_000_000)
    learning_rate: float = learning_rate(0.002, "Learning rate of Adam. Large models usually take about 0.0001.")
    rank: int = option(8, "Rank of the LoRA. A higher rank has more capacity.", min=1, max=512)
    view: str = option(
        AUTO,
        "What is looked at: whole normal images, or windows at random places. auto does what a training of the data "
        "set's defects does.",
        choices=VIEWS,
    )
    scale: float = option(
        0.0,
        "With windows: image pixels per learned pixel. 0 is that of the defects.",
        min=0,
        max=64,
        exact=True,
        step=0.05,
    )


class _Captions(nn.Module):
    """The context of each sample of a batch, and the low-rank pairs that are trained.

    drawn: gives the number of samples before this batch, which says whose turn the empty caption is.
    """

    def __init__(self, lora: Lora, normal: Tensor, empty: Tensor | None, drawn: Callable[[], int]) -> None:
        super().__init__()
        self.lora, self._drawn = lora, drawn
        self.register_buffer("normal", normal, persistent=False)
        self.register_buffer("empty", empty, persistent=False)

    def forward(self, types: Sequence[int], masks: Tensor) -> Tensor:
        normal, empty = self.normal, self.empty
        assert isinstance(normal, Tensor)
        if not isinstance(empty, Tensor):
            return normal.expand(len(types), -1, -1)
        places = torch.arange(len(types), device=normal.device) + self._drawn()
        return torch.where((places % EMPTY_EVERY == EMPTY_EVERY - 1).view(-1, 1, 1), empty, normal)


def _row(context: Tensor) -> Tensor:
    return context.detach().clone().float().reshape(1, -1, context.shape[-1])


class _AdaptationLoop(TrainingLoop):
    _reduced = (-1, 0)

    def reduce(self, error: Tensor, inside: Tensor) -> Tensor:
        """The mean error inside and the mean error outside a new random mask for each sample, half and half.

        The masks follow from seed, step and batch of the step, so that a resumed training draws the same ones.
        """
        step, number = self._reduced
        number = number + 1 if step == self.step else 0
        self._reduced = (self.step, number)
        drawn = self.settings.seed + 1 + self.step * self.settings.options.accumulate + number
        cells, size = self.denoiser.downscale, error.shape[-2:]
        masks = random_masks(len(error), (size[0] * cells, size[1] * cells), drawn)
        return half_and_half(error, F.max_pool2d(masks, cells).to(inside))


def half_and_half(error: Tensor, inside: Tensor) -> Tensor:
    """Mean of the mean error [B, C, h, w] inside and the mean error outside a mask [B, 1, h, w] of {0, 1}."""
    means = []
    for region in (inside, 1 - inside):
        area = region.flatten(1).sum(dim=1) * error.shape[1]
        means.append((error * region).flatten(1).sum(dim=1) / area.clamp_min(1))
    return torch.stack(means).mean()


class NormalAdapter(Trainer):
    """One adaptation that can be run and asked for its result at any time, also after an exception.

    The network that ``denoiser`` computes with is given as ``unet``; neither is changed.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        unet: nn.Module,
        images: Tensor,
        context: Tensor,
        settings: AdaptationSettings,
        *,
        empty_context: Tensor | None = None,
        on_prepare: OnPrepare | None = None,
        canvas: tuple[int, int] | None = None,
    ) -> None:
        """Encodes the images.

        images: normal images float [N, 3, H, W] in [0, 1]. canvas: (height, width) at which they are learned, by
        default a square of the resolution. context: [L, width], the caption of a normal part.
        empty_context: the empty caption, of the same shape. One sample in EMPTY_EVERY is learned under it, so that
        guidance against it does not push a normal part away from what it is. Same inputs and seed give the same result
        on the CPU. Raises InputError that names the input.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise InputError(f"normal images: have the shape {tuple(images.shape)}. Give [N, 3, H, W], at least one.")
        for name, given in (("normal", context), ("negative", empty_context)):
            if given is not None and given.shape[-1] != denoiser.context_width:
                raise InputError(
                    f"{name}: its width is {given.shape[-1]}, the model's context has {denoiser.context_width}. "
                    "Connect conditioning made for this model."
                )
        if empty_context is not None and _row(empty_context).shape != _row(context).shape:
            raise InputError(
                f"negative: has {_row(empty_context).shape[1]} rows, normal has {_row(context).shape[1]}. Connect "
                "captions of one length."
            )
        # A host may call this in inference mode; nothing made there could be trained.
        with torch.inference_mode(False):
            own = images.detach().clone().float().cpu()
            bank = build_bank(
                denoiser,
                [(own, random_masks(len(own), own.shape[-2:], settings.seed))],
                resolution=canvas or settings.resolution,
                copies=0,
                seed=settings.seed,
                batch_size=settings.batch_size,
                on_prepare=on_prepare,
                deviations=settings.options.sample_latents,
            )
            # A few are kept to be shown; all of them may be large.
            self._shown, self._normal = own[:SHOWN].clone(), _row(context)
            empty = None if empty_context is None else _row(empty_context)
            self.settings = settings
            self._lora, self._unet = Lora(unet, settings.rank, settings.seed), unet
            module = _Captions(self._lora, _row(context), empty, lambda: self.loop.step * settings.batch_size).to(
                denoiser.device
            )
            self.loop: TrainingLoop = _AdaptationLoop(denoiser, bank, module, settings)

    def computing(self) -> AbstractContextManager[None]:
        """The network computes with the LoRA while it is trained."""
        return self._lora.attached(self._unet)

    def preview(self, number: int, steps: int = 8) -> list[Tensor]:
        """A normal image, a new random mask, and the image redrawn inside it as the LoRA does it by now.

        While the training runs, where the network computes with the LoRA.
        """
        image = self._shown[number % len(self._shown)][None]
        mask = random_masks(1, image.shape[-2:], self.settings.seed + 1 + number)
        recipe = Recipe(SamplingSettings(self.settings.seed, steps, cfg=1.0, scheduler="simple"))
        sampler, positive = SchedulerSampler(self.loop.denoiser), ContextConditioning(self._normal)
        samples = sample_blended(sampler, image, mask, positive, None, recipe, Quiet())
        return [image[0], mask[0].expand(3, -1, -1), samples.images[0]]

    def result(self) -> TrainingResult:
        """What has been learned so far, as copies on the CPU."""
        losses = tuple(self.loop.losses)
        metadata = {"settings": asdict(self.settings), "losses": [round(x, 6) for x in losses]}
        return TrainingResult(LoraFile(self._lora.file_tensors(), metadata), losses)


def random_masks(count: int, size: Sequence[int], seed: int) -> Tensor:
    """Masks float [count, 1, H, W] of {0, 1}, none empty: one to three ellipses each, turned at random.

    Their half axes are 5 to 25 % of the shorter side.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = int(size[0]), int(size[1])
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    masks = torch.zeros(count, 1, height, width)
    for mask in masks:
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            across, down, long, wide, turn = torch.rand(5, generator=generator).tolist()
            angle = turn * math.pi
            dx, dy = x - across * width, y - down * height
            along, beside = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
            # Half axes below a pixel could miss every pixel centre.
            axes = [max((0.05 + 0.2 * share) * min(height, width), 1.0) for share in (long, wide)]
            mask[0][(along / axes[0]).square() + (beside / axes[1]).square() <= 1] = 1
    return masks
