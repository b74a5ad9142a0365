"""Second stage of pretraining: the noise predictor and the word table, on latents of rendered pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..synthetic.captions import SLOTS, Caption, caption_ids, vocabulary
from .autoencoder import Autoencoder
from .pictures import Picture, PictureRing, as_tensor
from .schedule import alphas_cumprod
from .stages import Report, Stage
from .unet import UNet

PEAK_RATE, DECAY = 7e-4, 0.999
PEAK_RATE_ON, DECAY_ON = 6e-4, 0.998
"""Of a training that goes on from a finished prior."""
SMALL, FULL = 128, 256
SMALL_SHARE = 0.5
DEFECT_WEIGHT = 3.0
NOISY_FROM, NOISY_SHARE = 0.45, 0.5
COLOUR_WEIGHT = 2.0
_UNKNOWN_PART = (SLOTS.index("surface"), SLOTS.index("surface_colour"))
_UNKNOWN_PLACE = (SLOTS.index("size"), SLOTS.index("place"))


class Prior(nn.Module):
    """The trained pair: noise predictor and word table [words, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet()
        self.words = nn.Embedding(len(vocabulary()), self.unet.config.context_dim)
        nn.init.normal_(self.words.weight, std=0.5)

    def forward(self, latents: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(latents, t, self.words(ids))


class LatentRing:
    """Latents, defect weights and captions of a ring of pictures; encoding happens once per picture."""

    def __init__(self, autoencoder: Autoencoder, seed: int, size: int, capacity: int) -> None:
        self.autoencoder = autoencoder
        self.ring = PictureRing(seed, size, capacity)
        cells = size // 8
        self.latents = torch.empty(capacity, 4, cells, cells)
        self.weights = torch.empty(capacity, 1, cells, cells)
        self.ids = torch.empty(capacity, len(SLOTS), dtype=torch.long)
        self.count = 0

    @torch.no_grad()
    def renew(self, count: int) -> None:
        for start in range(0, count, 8):
            positions = self.ring.renew(min(8, count - start))
            pictures = [self.ring.pictures[position] for position in positions]
            self.latents[positions] = self.autoencoder.encode(as_tensor(pictures))
            masks = torch.stack([torch.from_numpy(picture.mask)[None].float() for picture in pictures])
            self.weights[positions] = 1 + (DEFECT_WEIGHT - 1) * functional.max_pool2d(masks, 8)
            self.ids[positions] = torch.tensor([caption_ids(picture.caption) for picture in pictures])
            for position, picture in zip(positions, pictures, strict=True):
                # The pixels are not needed again; keep the ring light.
                light = Picture(picture.pixels[:1, :1], picture.mask[:1, :1], picture.caption)
                self.ring.pictures[position] = light
            self.count = max(self.count, max(positions) + 1)

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        picks = torch.randint(self.count, (size,), generator=generator)
        return self.latents[picks], self.weights[picks], self.ids[picks]


def drop_words(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Captions with words replaced by the empty word: all (10 %), those of the part (15 %), size and place (15 %), or
    single ones (5 %).

    With the part's words a good picture also loses its `none` words, which leaves the normal caption.
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
    ids = ids.masked_fill(((draw >= 0.25) & (draw < 0.40))[:, None] & placed, 0)
    return ids.masked_fill((draw < 0.10)[:, None], 0)


def train_prior(
    autoencoder: Autoencoder, out: Path, seconds: float, seed: int, report: Report, start: Prior | None = None
) -> Prior:
    """Train, or go on from `<out>/prior.pt`, until `seconds` are spent; returns the averaged networks.

    The first half of the time on 128 px pictures, at a quarter of the cost, the rest at the full 256 px.

    Args:
        start: a finished prior to go on from, which is changed; all of the time is then spent at 256 px. It may have
            predicted the noise: at low noise the two are nearly the same, the rest is soon learned.
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
            size, batch, fresh = (SMALL, 32, 6) if share < SMALL_SHARE and not start else (FULL, 12, 2)
            if ring is None or ring.ring.size != size:
                report("noise predictor", share, f"rendering {size} px pictures")
                ring = LatentRing(autoencoder, seed + stage.step, size, capacity=6000 if size == SMALL else 3000)
                ring.renew(600 if seconds > 600 else 64)
            ring.renew(fresh)
            latents, weights, ids = ring.batch(generator, batch)
            loss = denoising_loss(model, schedule, latents, weights, drop_words(ids, generator), generator)
            stage.advance(loss)
            smooth = loss.item() if smooth != smooth else 0.98 * smooth + 0.02 * loss.item()
            if stage.step % 20 == 0:
                report("noise predictor", share, f"step {stage.step} at {size} px, loss {smooth:.4f}")
    stage.finish()
    return model


def denoising_loss(
    model: Prior, schedule: Tensor, latents: Tensor, weights: Tensor, ids: Tensor, generator: torch.Generator
) -> Tensor:
    """Squared error of the predicted velocity, weighted inside defects, and of the broad colours it implies.

    At high noise it is decided which surface there is, in which colour, and where a defect lies. A network that
    predicts the noise must hand its input through there, and a tiny error of that is a large one of the picture; one
    that predicts the velocity gives the picture itself. `NOISY_SHARE` of the steps are drawn above `NOISY_FROM`, the
    rest uniformly. The clean latent's error, averaged over a 4 x 4 grid, counts `COLOUR_WEIGHT` times once more.
    """
    count = latents.shape[0]
    draw = torch.rand(count, generator=generator)
    noisy_step = torch.rand(count, generator=generator) < NOISY_SHARE
    t = (torch.where(noisy_step, NOISY_FROM + (1 - NOISY_FROM) * draw, draw) * len(schedule)).long()
    t = t.clamp(max=len(schedule) - 1)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = schedule[t][:, None, None, None]
    noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    error = model(noisy, t, ids) - velocity
    broad = functional.adaptive_avg_pool2d(error, 4).square().mean((1, 2, 3))
    return (weights * error.square()).mean() + COLOUR_WEIGHT * ((1 - alpha).flatten() * broad).mean()
