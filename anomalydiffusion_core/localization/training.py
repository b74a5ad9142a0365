"""Training the segmentation network on normal pictures and image-mask pairs (AnomalyDiffusion, section 5.1).

As the authors do: half of every batch normal, half defective, the type of defect drawn first; focal loss on the
softmax; Adam whose rate drops to a fifth at 80 and at 90 per cent. Unlike them the network of the last step is kept:
nothing is ever chosen by the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.pictures import resize_image, resize_mask
from ..errors import InputError, TrainingError
from .network import DiscriminativeSubNetwork, build_network

Pairs = Mapping[str, tuple[Tensor, Tensor]]

FOCAL_GAMMA = 2.0
DECAY_AT = (0.8, 0.9)
DECAY = 0.2
RECALIBRATION_BATCHES = 16
# Below so many values in the finest level of a batch, waking threads costs a CPU more than they bring.
SMALL_BATCH = 2**19


@dataclass(frozen=True)
class LocalizerSettings:
    """How a segmentation network is trained and used.

    Attributes:
        size: edge in pixels to which all pictures are resized for the network; 256 in the paper.
        width: channels of the finest level; 64 in the paper, 8 to 16 for a CPU.
        steps, batch_size, learning_rate: Adam steps, pictures a step, initial rate.
        flips, rotations: ordinary augmentation (mirror images, quarter turns). Switch off what the object does not
            allow: a bottle may be turned, a transistor may not.
        generated_share: part of the defective samples that is drawn from the generated pairs while both kinds are
            given, so that hundreds of generated pairs do not drown the few real ones.
        seed: of the initial weights and of every draw.
    """

    size: int = 256
    width: int = 16
    steps: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-3
    flips: bool = True
    rotations: bool = True
    generated_share: float = 0.5
    seed: int = 0

    def check(self) -> None:
        """Raise InputError for a value that cannot work."""
        for name, least in (("size", 32), ("width", 1), ("steps", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)}. Give at least {least}.")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate: {self.learning_rate}. Give a value between 0 and 1, such as 0.001.")
        if not 0 <= self.generated_share <= 1:
            raise InputError(f"generated_share: {self.generated_share}. Give a share from 0 to 1.")


@dataclass(frozen=True)
class LocalizerStep:
    """Progress after one step: `step` of `steps` (from 1), loss of its batch."""

    step: int
    steps: int
    loss: float


OnStep = Callable[[LocalizerStep], None]


def train_localizer(
    real: Pairs,
    normals: Tensor,
    settings: LocalizerSettings,
    generated: Pairs | None = None,
    on_step: OnStep | None = None,
    device: torch.device | str = "cpu",
) -> DiscriminativeSubNetwork:
    """Train one network from nothing and return it in eval mode, on `device`.

    Args:
        real, generated: `object/defect` -> (images [N,3,H,W] in [0,1], masks [N,1,H,W] in {0,1}). Either may be
            empty, not both.
        normals: pictures without defect [N,3,H,W]; their masks are all zero.
        on_step: called after each step; an exception in it (an interrupt) ends the training and passes on.

    The same arguments give the same weights on a CPU. Works under `torch.inference_mode` and with tensors made there.

    Raises:
        InputError: nothing to train on, an empty mask, shapes that do not fit, or a bad setting.
        TrainingError: the loss is not finite; names the step.
    """
    settings.check()
    with torch.inference_mode(False), torch.enable_grad(), _fitting_threads(settings):
        sampler = _Sampler(real, generated or {}, normals, settings)
        generator = torch.Generator().manual_seed(settings.seed)
        network = build_network(settings.width, generator)
        network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        milestones = [max(1, round(part * settings.steps)) for part in DECAY_AT]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, DECAY)
        for step in range(1, settings.steps + 1):
            images, masks = sampler.draw(generator)
            logits = network(images.to(device).contiguous(memory_format=torch.channels_last))
            loss = focal_loss(logits, masks.to(device))
            value = float(loss.detach())
            if not torch.isfinite(loss.detach()):
                raise TrainingError(f"localization: loss {value} at step {step}. Lower the learning rate.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(LocalizerStep(step, settings.steps, value))
        _recalibrate(network, sampler, generator, torch.device(device))
    return network.eval()


@contextmanager
def _fitting_threads(settings: LocalizerSettings) -> Iterator[None]:
    before = torch.get_num_threads()
    if settings.batch_size * settings.width * settings.size**2 <= SMALL_BATCH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def focal_loss(logits: Tensor, masks: Tensor, gamma: float = FOCAL_GAMMA) -> Tensor:
    """Mean of -(1-p)^gamma log p, p being the softmax of the true class (Lin et al., ICCV 2017, without alpha).

    Args:
        logits: [B,2,H,W], class 1 is defect.
        masks: [B,1,H,W] in {0,1}.
    """
    log_p = F.log_softmax(logits.float(), dim=1).gather(1, masks.long())
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


class _Sampler:
    """Draws batches: the second half defective, source, then type, then picture each drawn uniformly."""

    def __init__(self, real: Pairs, generated: Pairs, normals: Tensor, settings: LocalizerSettings) -> None:
        self.settings = settings
        self.real = _prepared(real, "real", settings.size)
        self.generated = _prepared(generated, "generated", settings.size)
        if not self.real and not self.generated:
            raise InputError("pairs: none. Give real or generated pairs to train on.")
        if normals.ndim != 4 or normals.shape[1] != 3 or not len(normals):
            raise InputError(f"normals: shape {tuple(normals.shape)}. Give at least one picture as [N,3,H,W].")
        self.normals = resize_image(_ordinary(normals), settings.size)
        self.no_mask = torch.zeros(1, settings.size, settings.size)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """[B,3,s,s] and [B,1,s,s], augmented."""
        defective = self.settings.batch_size // 2
        samples = []
        for _ in range(self.settings.batch_size - defective):
            samples.append((self.normals[_pick(len(self.normals), generator)], self.no_mask))
        for _ in range(defective):
            source = self.real or self.generated
            if self.real and self.generated:
                share = float(torch.rand((), generator=generator))
                source = self.generated if share < self.settings.generated_share else self.real
            images, masks = source[_pick(len(source), generator)]
            index = _pick(len(images), generator)
            samples.append((images[index], masks[index]))
        augmented = [self._augment(image, mask, generator) for image, mask in samples]
        return torch.stack([image for image, _ in augmented]), torch.stack([mask for _, mask in augmented])

    def _augment(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mirrors = [axis for axis in (1, 2) if self.settings.flips and _pick(2, generator)]
        turns = _pick(4, generator) if self.settings.rotations else 0
        both = [torch.rot90(torch.flip(part, mirrors), turns, (1, 2)) for part in (image, mask)]
        return both[0], both[1]


def _prepared(pairs: Pairs, label: str, size: int) -> list[tuple[Tensor, Tensor]]:
    prepared = []
    for key in sorted(pairs):
        images, masks = pairs[key]
        fits = images.ndim == 4 and masks.ndim == 4 and images.shape[1] == 3 and masks.shape[1] == 1
        if not fits or len(images) != len(masks) or images.shape[2:] != masks.shape[2:]:
            shapes = f"images {tuple(images.shape)}, masks {tuple(masks.shape)}"
            raise InputError(f"{label} pairs: {key} has {shapes}. Give [N,3,H,W] and [N,1,H,W] of equal N and size.")
        if not len(images):
            continue
        empty = [str(index) for index in range(len(masks)) if not bool(masks[index].any())]
        if empty:
            raise InputError(f"{label} pairs: mask {', '.join(empty)} of {key} is empty. Leave these pairs out.")
        prepared.append((resize_image(_ordinary(images), size), resize_mask(_ordinary(masks), size)))
    return prepared


def _ordinary(tensor: Tensor) -> Tensor:
    # a tensor made in inference mode may not take part in a backward pass
    plain = tensor.detach().to(device="cpu", dtype=torch.float32)
    return plain.clone() if plain.is_inference() else plain


def _pick(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _recalibrate(
    network: DiscriminativeSubNetwork, sampler: _Sampler, generator: torch.Generator, device: torch.device
) -> None:
    """Take the statistics of the norm layers anew from the final weights.

    Running averages lag behind the weights, which in a short training costs more than a few forward passes.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches that follow
    with torch.no_grad():
        for _ in range(RECALIBRATION_BATCHES):
            images, _masks = sampler.draw(generator)
            network(images.to(device).contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
