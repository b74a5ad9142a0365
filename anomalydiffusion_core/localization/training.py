"""Training the segmentation network on normal pictures and image-mask pairs (AnomalyDiffusion, section 5.1).

As the authors do: half of every batch normal, half defective, the type of defect drawn first; focal loss on the
softmax; Adam whose rate drops to a fifth at 80 and at 90 per cent. Unlike them the network of the last step is kept,
unless a rule of `selection` is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..atomic import replacing
from ..data.pictures import resize_image, resize_mask
from ..errors import InputError, TrainingError
from .network import DiscriminativeSubNetwork, build_network
from .selection import AUTHORS_EPOCH, LAST_STEP, SELECTIONS

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
        selection: which step is kept, one of `SELECTIONS`; check_every: steps between two checks of the others than
            the last step; validation_share: part of the training pictures that a validation split holds back.
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
    selection: str = LAST_STEP
    check_every: int = AUTHORS_EPOCH
    validation_share: float = 1 / 3

    def check(self) -> None:
        """Raise InputError for a value that cannot work."""
        for name, least in (("size", 32), ("width", 1), ("steps", 1), ("batch_size", 2), ("check_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)}. Give at least {least}.")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate: {self.learning_rate}. Give a value between 0 and 1, such as 0.001.")
        if not 0 <= self.generated_share <= 1:
            raise InputError(f"generated_share: {self.generated_share}. Give a share from 0 to 1.")
        if self.selection not in SELECTIONS:
            raise InputError(f"selection: '{self.selection}'. Choose one of: {', '.join(SELECTIONS)}.")
        if not 0 < self.validation_share < 1:
            raise InputError(f"validation_share: {self.validation_share}. Give a share between 0 and 1.")


@dataclass(frozen=True)
class LocalizerStep:
    """Progress after one step: `step` of `steps` (from 1), loss of its batch, and the network as it is now.

    The network is in training; `score_pictures` looks at it without disturbing it.
    """

    step: int
    steps: int
    loss: float
    network: DiscriminativeSubNetwork | None = field(default=None, repr=False, compare=False)


OnStep = Callable[[LocalizerStep], None]
Choose = Callable[[DiscriminativeSubNetwork], float]


def train_localizer(
    real: Pairs,
    normals: Tensor,
    settings: LocalizerSettings,
    generated: Pairs | None = None,
    on_step: OnStep | None = None,
    device: torch.device | str = "cpu",
    choose: Choose | None = None,
) -> DiscriminativeSubNetwork:
    """Train one network from nothing and return it in eval mode, on `device`.

    Args:
        real, generated: `object/defect` -> (images [N,3,H,W] in [0,1], masks [N,1,H,W] in {0,1}). Either may be
            empty, not both.
        normals: pictures without defect [N,3,H,W]; their masks are all zero.
        on_step: called after each step; an exception in it (an interrupt) ends the training and passes on.
        choose: rates a network that is ready for testing. Called every `settings.check_every` steps and after the
            last; the network with the highest rate is returned. Without it that of the last step is.

    The same arguments give the same weights on a CPU. Works under `torch.inference_mode` and with tensors made there.

    Raises:
        InputError: nothing to train on, an empty mask, shapes that do not fit, or a bad setting.
        TrainingError: the loss is not finite; names the step.
    """
    if not any(len(images) for source in (real, generated or {}) for images, _ in source.values()):
        raise InputError("pairs: none. Give real or generated pairs to train on.")
    return LocalizerTraining(real, normals, settings, generated, device).run(on_step, choose)


class LocalizerTraining:
    """A training that can be stopped after any step and goes on to the same numbers, also in another process.

    Arguments as in `train_localizer`. Without any pairs all pictures of a batch are normal ones.
    """

    def __init__(
        self,
        real: Pairs,
        normals: Tensor,
        settings: LocalizerSettings,
        generated: Pairs | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        settings.check()
        self.settings = settings
        self.losses: list[float] = []
        self.best_step = 0
        self._best: dict[str, Tensor] = {}
        self._best_rate = -math.inf
        self._checked = 0
        self._device = torch.device(device)
        with torch.inference_mode(False):
            self._sampler = _Sampler(real, generated or {}, normals, settings)
            self._generator = torch.Generator().manual_seed(settings.seed)
            network = build_network(settings.width, self._generator)
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._network = network.train()
            self._optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
            milestones = [max(1, round(part * settings.steps)) for part in DECAY_AT]
            self._schedule = torch.optim.lr_scheduler.MultiStepLR(self._optimizer, milestones, DECAY)

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return len(self.losses)

    def run(self, on_step: OnStep | None = None, choose: Choose | None = None) -> DiscriminativeSubNetwork:
        """Train from wherever the state is to the last step; see `train_localizer`."""
        settings = self.settings
        with torch.inference_mode(False), torch.enable_grad(), _fitting_threads(settings):
            while self.step < settings.steps:
                # Before the step, so that a check that was interrupted is made up for.
                if choose is not None and self.step and self.step % settings.check_every == 0:
                    self._check(choose)
                self._one_step()
                if on_step is not None:
                    on_step(LocalizerStep(self.step, settings.steps, self.losses[-1], self._network))
            if choose is not None:
                self._check(choose)
                self._network.load_state_dict(self._best)
            else:
                self.best_step = self.step
                self._ready()
        return self._network.eval()

    def _one_step(self) -> None:
        images, masks = self._sampler.draw(self._generator)
        logits = self._network(images.to(self._device).contiguous(memory_format=torch.channels_last))
        loss = focal_loss(logits, masks.to(self._device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"localization: loss {value} at step {self.step + 1}. Lower the learning rate.")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        self.losses.append(value)

    def _ready(self) -> DiscriminativeSubNetwork:
        # A copy of the generator: looking at the network must not change how the training goes on.
        generator = torch.Generator()
        generator.set_state(self._generator.get_state())
        _recalibrate(self._network, self._sampler, generator, self._device)
        return self._network

    def _check(self, choose: Choose) -> None:
        if self._checked == self.step:
            return
        rate = choose(self._ready().eval())
        self._network.train()
        if rate > self._best_rate:
            self._best_rate, self.best_step = rate, self.step
            self._best = {name: value.detach().cpu().clone() for name, value in self._network.state_dict().items()}
        self._checked = self.step

    def save(self, path: Path) -> None:
        """Write the whole state, atomically."""
        state = {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._generator.get_state(),
            "losses": list(self.losses),
            "best": [self._best, self._best_rate, self.best_step, self._checked],
        }
        with replacing(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Go on from a file of `save` of the same training. Raises TrainingError for a file that is none."""
        try:
            with torch.inference_mode(False):
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                self._network.load_state_dict(state["network"])
                self._optimizer.load_state_dict(state["optimizer"])
                self._schedule.load_state_dict(state["schedule"])
                self._generator.set_state(state["generator"])
                self.losses = list(state["losses"])
                self._best, self._best_rate, self.best_step, self._checked = state["best"]
        except Exception as error:  # a damaged file makes the reader raise almost anything
            raise TrainingError(f"training state: {path.name} cannot be read ({error}). Remove it.") from error


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
        if normals.ndim != 4 or normals.shape[1] != 3 or not len(normals):
            raise InputError(f"normals: shape {tuple(normals.shape)}. Give at least one picture as [N,3,H,W].")
        self.normals = resize_image(_ordinary(normals), settings.size)
        self.no_mask = torch.zeros(1, settings.size, settings.size)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """[B,3,s,s] and [B,1,s,s], augmented."""
        defective = self.settings.batch_size // 2 if self.real or self.generated else 0
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
