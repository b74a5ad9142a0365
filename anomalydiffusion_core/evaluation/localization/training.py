"""Training the segmentation network on normal pictures and image-mask pairs (AnomalyDiffusion, section 5.1).

As the authors do: half of every batch normal, half defective, the type of defect drawn first; focal loss on the
softmax; Adam whose rate drops to a fifth at 80 and at 90 per cent. Unlike them the network of the last step is kept,
unless a rule of `selection` is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError, TrainingError
from ...files import replacing
from .batches import BatchSampler, Pairs
from .network import DiscriminativeSubNetwork, build_network
from .settings import LocalizerSettings

FOCAL_GAMMA = 2.0
DECAY_AT = (0.8, 0.9)
DECAY = 0.2
RECALIBRATION_BATCHES = 16
# Below so many values in the finest level of a batch, waking threads costs a CPU more than they bring.
SMALL_BATCH = 2**19


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
            self._sampler = BatchSampler(real, generated or {}, normals, settings)
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


def _recalibrate(
    network: DiscriminativeSubNetwork, sampler: BatchSampler, generator: torch.Generator, device: torch.device
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
