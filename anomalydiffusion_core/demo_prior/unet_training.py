"""Second stage of pretraining: the noise predictor and the word table, on latents of rendered images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backends.ldm_autoencoder import Autoencoder
from ..backends.ldm_schedule import alphas_cumprod
from ..backends.ldm_unet import UNet
from ..synthetic.captions import PLACES as PLACE_WORDS
from ..synthetic.captions import SLOTS, Caption, caption_ids, vocabulary
from ..synthetic.scene import MASK_SHARE
from .renders import Render, RenderRing, as_tensor
from .stages import Report, Stage

PEAK_RATE, DECAY = 7e-4, 0.999
PEAK_RATE_ON, DECAY_ON = 6e-4, 0.998
"""Of a training that starts from a finished prior."""
DEFECT_WEIGHT, PLACE_WEIGHT = 3.0, 3.0
BROAD = ((4, 2.0), (8, 20.0))
"""Grids, as cells a side, over which the error is averaged as well, and how much that counts at full noise."""
SEEN_FROM = 0.05
"""Share of the image in the noisy input (alpha bar) at which a defect's weight has faded to the half."""


@dataclass(frozen=True)
class Phase:
    """What is trained on for a while.

    Attributes:
        size, batch, fresh: side of the images in pixels, images a step, and new ones rendered for each.
        capacity: images that are kept to draw from.
        mask_share: part of the images that show a mask alone, white on black.
        noisy_from, noisy_share: of the noise levels, from 0 to 1, this share is drawn above that one, the rest of all.
    """

    size: int = 256
    batch: int = 12
    fresh: int = 2
    capacity: int = 3000
    mask_share: float = MASK_SHARE
    noisy_from: float = 0.45
    noisy_share: float = 0.4


SMALL = Phase(size=128, batch=32, fresh=6, capacity=6000)
PLACES = Phase(mask_share=0.7, noisy_from=0.6, noisy_share=1.0)
"""Where a defect lies is so small a part of the loss that hours of training on surfaces taught no place word. On masks
alone, at high noise, it is most of the loss, and learned in minutes."""
FULL = Phase()
PHASES = ((0.45, SMALL), (0.6, PLACES), (1.0, FULL))
PHASES_ON = ((0.15, PLACES), (1.0, FULL))
"""Phases and the share of the time at which each ends; at 128 px a step costs a quarter."""
_UNKNOWN_PART = (SLOTS.index("surface"), SLOTS.index("surface_colour"))
_UNKNOWN_PLACE = (SLOTS.index("size"), SLOTS.index("place"))
_PLACE = SLOTS.index("place")
_FIRST_PLACE = caption_ids(Caption("plastic", place=PLACE_WORDS[0]))[_PLACE]


class Prior(nn.Module):
    """The trained pair: noise predictor and word table [words, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet()
        self.words = nn.Embedding(len(vocabulary()), self.unet.config.context_dim)
        nn.init.normal_(self.words.weight, std=0.5)

    def forward(self, latents: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Noise predicted for latents [B, 4, h, w] at timesteps t [B] with caption ids [B, slots]."""
        return self.unet(latents, t, self.words(ids))


class LatentRing:
    """Latents, defect weights and captions of a ring of images; encoding happens once per image."""

    def __init__(self, autoencoder: Autoencoder, seed: int, phase: Phase) -> None:
        self.autoencoder = autoencoder
        self.phase = phase
        self.ring = RenderRing(seed, phase.size, phase.capacity, mask_share=phase.mask_share)
        cells = phase.size // 8
        self.latents = torch.empty(phase.capacity, 4, cells, cells)
        self.weights = torch.empty(phase.capacity, 1, cells, cells)
        self.ids = torch.empty(phase.capacity, len(SLOTS), dtype=torch.long)
        self.count = 0

    @torch.no_grad()
    def renew(self, count: int) -> None:
        """Render and encode `count` new images in place of the oldest."""
        for start in range(0, count, 8):
            positions = self.ring.renew(min(8, count - start))
            images = [self.ring.renders[position] for position in positions]
            self.latents[positions] = self.autoencoder.encode(as_tensor(images))
            masks = torch.stack([torch.from_numpy(image.mask)[None].float() for image in images])
            self.weights[positions] = 1 + (DEFECT_WEIGHT - 1) * functional.max_pool2d(masks, 8)
            self.ids[positions] = torch.tensor([caption_ids(image.caption) for image in images])
            for position, image in zip(positions, images, strict=True):
                # The pixels are not needed again; keep the ring light.
                light = Render(image.pixels[:1, :1], image.mask[:1, :1], image.caption)
                self.ring.renders[position] = light
            self.count = max(self.count, max(positions) + 1)

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """`size` random rows: latents [B, 4, h, w], loss weights [B, 1, h, w] and caption ids [B, slots]."""
        picks = torch.randint(self.count, (size,), generator=generator)
        return self.latents[picks], self.weights[picks], self.ids[picks]


def drop_words(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Captions with some words replaced by the empty word.

    All words (10 %), those of the part (15 %), size and place (25 %), or single ones (5 %). With the part's words a
    normal image also loses its `none` words, which leaves the normal caption.
    """
    rows, slots = ids.shape
    draw = torch.rand(rows, generator=generator)
    single = torch.rand(rows, slots, generator=generator) < 0.05
    ids = ids.masked_fill(single, 0)
    good = caption_ids(Caption("plastic"))[SLOTS.index("defect")]
    for row in torch.nonzero((draw >= 0.10) & (draw < 0.25)).flatten().tolist():
        ids[row, list(_UNKNOWN_PART)] = 0
        if ids[row, SLOTS.index("defect")] == good:
            ids[row, SLOTS.index("defect") + 1 :] = 0
    placed = torch.tensor([slot in _UNKNOWN_PLACE for slot in range(slots)])
    ids = ids.masked_fill(((draw >= 0.25) & (draw < 0.50))[:, None] & placed, 0)
    return ids.masked_fill((draw < 0.10)[:, None], 0)


def train_prior(
    autoencoder: Autoencoder, out: Path, seconds: float, seed: int, report: Report, start: Prior | None = None
) -> Prior:
    """Train, or resume from `<out>/prior.pt`, until `seconds` are spent; returns the averaged networks.

    Args:
        start: a finished prior to start from, which is changed; its time is spent by `PHASES_ON` instead of `PHASES`.
            It may have predicted the noise: at low noise the two are nearly the same, the rest is soon learned.
    """
    torch.manual_seed(seed + 1)
    model = start or Prior()
    model.train().requires_grad_(True).to(memory_format=torch.channels_last)
    rate, decay = (PEAK_RATE_ON, DECAY_ON) if start else (PEAK_RATE, DECAY)
    stage = Stage(out / "prior.pt", model, rate, decay=decay, weight_decay=1e-3, seconds=seconds)
    schedule = alphas_cumprod()
    generator = torch.Generator().manual_seed(seed * 1_000_003 + stage.step)
    ring: LatentRing | None = None
    smooth = float("nan")
    with stage:
        while (share := stage.budget.share) < 1.0:
            phase = next(phase for end, phase in (PHASES_ON if start else PHASES) if share < end)
            if ring is None or ring.phase != phase:
                report("noise predictor", share, f"rendering {phase.size} px images")
                ring = LatentRing(autoencoder, seed + stage.step, phase)
                ring.renew(600 if seconds > 600 else 64)
            ring.renew(phase.fresh)
            latents, weights, ids = ring.batch(generator, phase.batch)
            loss = denoising_loss(model, schedule, latents, weights, drop_words(ids, generator), generator, phase)
            stage.advance(loss)
            smooth = loss.item() if smooth != smooth else 0.98 * smooth + 0.02 * loss.item()
            if stage.step % 20 == 0:
                report("noise predictor", share, f"step {stage.step} at {phase.size} px, loss {smooth:.4f}")
    stage.finish()
    return model


def denoising_loss(
    model: Prior,
    schedule: Tensor,
    latents: Tensor,
    weights: Tensor,
    ids: Tensor,
    generator: torch.Generator,
    phase: Phase = FULL,
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
        latents: [B, 4, h, w]; weights: [B, 1, h, w], see `LatentRing`; ids: word numbers [B, 6].
    """
    count = latents.shape[0]
    draw = torch.rand(count, generator=generator)
    noisy_step = torch.rand(count, generator=generator) < phase.noisy_share
    t = (torch.where(noisy_step, phase.noisy_from + (1 - phase.noisy_from) * draw, draw) * len(schedule)).long()
    t = t.clamp(max=len(schedule) - 1)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = schedule[t][:, None, None, None]
    noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    error = model(noisy, t, ids) - velocity
    ninth = named_ninth(ids)
    seen = alpha / (alpha + SEEN_FROM)
    fading = torch.where(ninth.amax((1, 2, 3), keepdim=True) > 0, seen, 1.0)
    named = functional.interpolate(ninth, latents.shape[2:], mode="bilinear", align_corners=False)
    counts = (1 + (PLACE_WEIGHT - 1) * named) * (1 + (weights - 1) * fading)
    loss = (counts * error.square()).mean()
    for cells, share in BROAD:
        broad = functional.adaptive_avg_pool2d(error, cells).square()
        loss = loss + share * ((1 - alpha) * functional.adaptive_avg_pool2d(counts, cells) * broad).mean()
    return loss


def named_ninth(ids: Tensor) -> Tensor:
    """Word numbers [B, 6] -> [B, 1, 3, 3]: 1 at the place that the caption names; all 0 where it names none."""
    place = ids[:, _PLACE] - _FIRST_PLACE
    known = (place >= 0) & (place < len(PLACE_WORDS))
    cells = functional.one_hot(place.clamp(0, len(PLACE_WORDS) - 1), len(PLACE_WORDS)) * known[:, None]
    return cells.float().unflatten(1, (1, 3, 3))
