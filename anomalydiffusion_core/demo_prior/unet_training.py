"""Second stage of pretraining: the noise predictor and the word table, on latents of rendered images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backends.ldm_schedule import alphas_cumprod
from ..backends.ldm_unet import UNet, UNetConfig
from ..synthetic.captions import PLACES as PLACE_WORDS
from ..synthetic.captions import SLOTS, vocabulary
from .latents import LatentSet
from .parts import Parts
from .settings import PretrainSettings
from .stages import Report, Stage, mixed_precision

PEAK_RATE, DECAY = 7e-4, 0.999
PEAK_RATE_ON, DECAY_ON = 6e-4, 0.998
"""Of a training that starts from a finished prior."""
PLACE_WEIGHT = 3.0
BROAD = ((4, 2.0), (8, 20.0))
"""Grids, as cells a side, over which the error is averaged as well, and how much that counts at full noise."""
SEEN_FROM = 0.05
"""Share of the image in the noisy input (alpha bar) at which a defect's weight has faded to the half."""


@dataclass(frozen=True)
class Phase:
    """What is trained on for a while.

    Attributes:
        mask_share: part of the images that show a mask alone, white on black.
        noisy_from, noisy_share: of the noise levels, from 0 to 1, this share is drawn above that one, the rest of all.
        crop: side of the part of an image that is trained on, in cells, around a defect if there is one; 0: all of it.
        rows: such parts for each image of the batch size.
    """

    mask_share: float = 0.18
    noisy_from: float = 0.45
    noisy_share: float = 0.4
    crop: int = 0
    rows: int = 1


PLACES = Phase(mask_share=0.7, noisy_from=0.6, noisy_share=1.0)
"""Where a defect lies is so small a part of the loss that hours of training on surfaces taught no place word. On masks
alone, at high noise, it is most of the loss, and learned in minutes."""
DETAILS = Phase(mask_share=0.05, noisy_from=0.3, noisy_share=0.3, crop=16, rows=2)
"""A scratch is a hundredth of an image. On a quarter of it, around the defect, a step costs a quarter and shows four
times as much of what is to be learned; where in the image it lies, the caption then leaves open."""
FULL = Phase()
PHASES = ((0.08, PLACES), (0.65, DETAILS), (1.0, FULL))
"""Phases and the share of the time at which each ends."""
_UNKNOWN_PART = (SLOTS.index("surface"), SLOTS.index("surface_colour"))
_UNKNOWN_PLACE = (SLOTS.index("size"), SLOTS.index("place"))
_PLACE = SLOTS.index("place")
_DEFECT = SLOTS.index("defect")


class Prior(nn.Module):
    """The trained pair: noise predictor and word table [words, 128]."""

    def __init__(self, config: UNetConfig | None = None, words: Sequence[str] | None = None) -> None:
        super().__init__()
        names = words or vocabulary()
        self.unet = UNet(config or UNetConfig())
        self.words = nn.Embedding(len(names), self.unet.config.context_dim)
        self.first_place = names.index(f"place:{PLACE_WORDS[0]}")
        nn.init.normal_(self.words.weight, std=0.5)

    def forward(self, latents: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Noise predicted for latents [B, 4, h, w] at timesteps t [B] with caption ids [B, slots]."""
        return self.unet(latents, t, self.words(ids))


def drop_words(ids: Tensor, words: Sequence[str], generator: torch.Generator, single: float = 0.05) -> Tensor:
    """Captions with some words replaced by the empty word.

    All words (10 %), those of the part (15 %), size and place (25 %), or each one by itself (`single`). With the
    part's words a normal image also loses its `none` words, which leaves the normal caption.

    Args:
        ids: rows [B, slots] of the word table; words: its words.
    """
    rows, slots = ids.shape
    draw = torch.rand(rows, 1, generator=generator, device=ids.device)
    ids = ids.masked_fill(torch.rand(rows, slots, generator=generator, device=ids.device) < single, 0)
    number = torch.arange(slots, device=ids.device)
    of_part = torch.isin(number, torch.tensor(_UNKNOWN_PART, device=ids.device))
    after_defect = number > _DEFECT
    normal = ids[:, _DEFECT, None] == words.index("defect:good")
    ids = ids.masked_fill((draw >= 0.10) & (draw < 0.25) & (of_part | (normal & after_defect)), 0)
    of_place = torch.isin(number, torch.tensor(_UNKNOWN_PLACE, device=ids.device))
    ids = ids.masked_fill((draw >= 0.25) & (draw < 0.50) & of_place, 0)
    return ids.masked_fill(draw < 0.10, 0)


def around_defects(latents: Tensor, weights: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One part of each image, `side` cells a side, at a random offset that holds a random cell of its defect.

    Args:
        latents: [B, C, h, w]; weights: [B, 1, h, w], above 1 on cells with a defect; images without one are cut
            anywhere.

    Returns:
        [B, C, side, side] and [B, 1, side, side]; both unchanged where the image is no larger.
    """
    rows, _, height, width = latents.shape
    defect = (weights > 1).flatten(1)
    defect = torch.where(defect.any(1, keepdim=True), defect, True).float()
    cell = torch.multinomial(defect, 1, generator=generator).flatten()
    device = latents.device
    draw = torch.rand(2, rows, generator=generator, device=device)
    offsets = []
    for place, length, share in ((cell // width, height, draw[0]), (cell % width, width, draw[1])):
        first = (place - side + 1).clamp(min=0)
        last = place.clamp(max=max(length - side, 0))
        offsets.append(first + (share * (last - first + 1)).long())
    down, along = (torch.arange(min(side, length), device=device) for length in (height, width))
    row = (offsets[0][:, None] + down)[:, :, None]
    column = (offsets[1][:, None] + along)[:, None, :]
    number = torch.arange(rows, device=device)[:, None, None]
    return latents[number, :, row, column].movedim(3, 1), weights[number, :, row, column].movedim(3, 1)


def train_prior(
    latents: LatentSet,
    out: Path,
    seconds: float,
    seed: int,
    report: Report,
    settings: PretrainSettings,
    start: Prior | None = None,
) -> Prior:
    """Train, or resume from `<out>/prior.pt`, until `seconds` are spent; returns the averaged networks.

    Args:
        latents: what to train on, on the device to train on.
        start: a finished prior to start from, which is changed. It may have predicted the noise: at low noise the two
            are nearly the same, the rest is soon learned.
    """
    torch.manual_seed(seed + 1)
    device = latents.ids.device
    words = settings.source.words
    model = start or Prior(settings.unet(), words)
    model.train().requires_grad_(True).to(device).to(memory_format=torch.channels_last)
    rate, decay = (PEAK_RATE_ON, DECAY_ON) if start else (PEAK_RATE, DECAY)
    stage = Stage(out / "prior.pt", model, rate, decay=decay, weight_decay=1e-3, seconds=seconds)
    schedule = alphas_cumprod().to(device)
    generators = [
        torch.Generator(device).manual_seed(seed * 1_000_003 + stage.step + 500_009 * part)
        for part in range(settings.threads)
    ]
    generator = generators[0]
    smooth = float("nan")
    with ExitStack() as running:
        parts = running.enter_context(Parts(model, generators))
        running.enter_context(stage)
        while (share := stage.budget.share) < 1.0:
            phase = next(phase for end, phase in PHASES if share < end)
            clean, weights, ids = latents.batch(generator, settings.batch * phase.rows, phase.mask_share)
            if phase.crop:
                clean, weights = around_defects(clean, weights, phase.crop, generator)
                ids = ids.index_fill(1, torch.tensor(_UNKNOWN_PLACE, device=device), 0)
            ids = drop_words(ids, words, generator, settings.word_dropping)
            part_loss = partial(_part_loss, schedule, phase, settings.min_snr)
            loss = parts.backward(part_loss, clean, weights, ids)
            stage.step_with_gradients()
            if stage.step % 20 == 1:
                value = loss.item()
                smooth = value if smooth != smooth else 0.8 * smooth + 0.2 * value
                report("noise predictor", share, f"step {stage.step}, loss {smooth:.4f}")
    stage.finish()
    return model


def _part_loss(
    schedule: Tensor, phase: Phase, min_snr: float, model: Prior, part: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    latents, weights, ids = part
    with mixed_precision(latents.device):
        return denoising_loss(model, schedule, latents, weights, ids, generator, phase, min_snr)


def denoising_loss(
    model: Prior,
    schedule: Tensor,
    latents: Tensor,
    weights: Tensor,
    ids: Tensor,
    generator: torch.Generator,
    phase: Phase = FULL,
    min_snr: float = 0.0,
) -> Tensor:
    """Squared error of the predicted velocity, and of the broad colours of the image that it implies.

    At high noise it is decided which surface there is, in which colour, and where a defect lies. A network that
    predicts the noise must hand its input through there, and a tiny error of that is a large one of the image; one
    that predicts the velocity gives the image itself. Averaged over the grids of `BROAD`, the error of that image
    loses the texture, which nobody can foresee, and keeps the defect; so that counts more, the higher the noise.

    A weight on the cells of the defect teaches a network that does not know yet where the defect is to expect it
    too often, by that factor, and its images to have several. So where the caption names a place, `weights` fade
    with the noise, and the named ninth of the image, which depends on the caption alone, counts `PLACE_WEIGHT`
    times. Where it names none, as in training on a few defects, the mask will decide: a network that expects a
    defect anywhere fills it.

    Args:
        latents: [B, C, h, w]; weights: [B, 1, h, w], see `LatentSet`; ids: word numbers [B, 6].
        min_snr: at a signal-to-noise ratio s the cells' error counts min(s, min_snr) / (s + 1) (Hang et al., ICCV
            2023, for velocities), over its largest value; 0: it counts alike at all. The broad colours always do.
    """
    count, device = latents.shape[0], latents.device
    draw = torch.rand(count, generator=generator, device=device)
    noisy_step = torch.rand(count, generator=generator, device=device) < phase.noisy_share
    t = (torch.where(noisy_step, phase.noisy_from + (1 - phase.noisy_from) * draw, draw) * len(schedule)).long()
    t = t.clamp(max=len(schedule) - 1)
    noise = torch.randn(latents.shape, generator=generator, device=device)
    alpha = schedule[t][:, None, None, None]
    noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    error = model(noisy, t, ids).float() - velocity
    ninth = named_ninth(ids, model.first_place)
    seen = alpha / (alpha + SEEN_FROM)
    fading = torch.where(ninth.amax((1, 2, 3), keepdim=True) > 0, seen, 1.0)
    named = functional.interpolate(ninth, latents.shape[2:], mode="bilinear", align_corners=False)
    counts = (1 + (PLACE_WEIGHT - 1) * named) * (1 + (weights - 1) * fading)
    level = torch.ones_like(alpha)
    if min_snr:
        # s = alpha / (1 - alpha); the weight is largest, min_snr / (min_snr + 1), at s = min_snr.
        level = torch.minimum(alpha, min_snr * (1 - alpha)) * (min_snr + 1) / min_snr
    loss = (level * counts * error.square()).mean()
    for cells, share in BROAD:
        broad = functional.adaptive_avg_pool2d(error, cells).square()
        loss = loss + share * ((1 - alpha) * functional.adaptive_avg_pool2d(counts, cells) * broad).mean()
    return loss


def named_ninth(ids: Tensor, first_place: int) -> Tensor:
    """Word numbers [B, 6] -> [B, 1, 3, 3]: 1 at the place that the caption names; all 0 where it names none.

    first_place: number of the first place word; the others follow it.
    """
    place = ids[:, _PLACE] - first_place
    known = (place >= 0) & (place < len(PLACE_WORDS))
    cells = functional.one_hot(place.clamp(0, len(PLACE_WORDS) - 1), len(PLACE_WORDS)) * known[:, None]
    return cells.float().unflatten(1, (1, 3, 3))
