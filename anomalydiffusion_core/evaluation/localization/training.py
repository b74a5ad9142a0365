"""Training the segmentation network on normal images and image-mask pairs (AnomalyDiffusion, section 5.1).

As the authors do: half of every batch normal, half defective, the type of defect drawn first; focal loss on the
softmax; Adam whose rate drops to a fifth at 80 and at 90 percent. Unlike theirs, the network of the last step is kept
unless another selection is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.images import resize_image
from ...data.mask_resizing import resize_mask
from ...errors import InputError, TrainingError
from ...files import replacing
from ...restricted_pickle import read_restricted
from ..settings import LocalizerSettings
from ..training import adam, recalibrate
from .network import DiscriminativeSubNetwork, build_network

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""`object/defect` -> (images [N,3,H,W] in [0,1], masks [N,1,H,W] in {0,1})."""

FOCAL_GAMMA = 2.0
# With fewer values in the finest level of a batch, waking threads costs a CPU more than they save.
SMALL_BATCH = 2**19


@dataclass(frozen=True)
class LocalizerStep:
    """Progress after one step: its number (from 1), the loss of its batch, and the network as it is now.

    The network is in training; `score_images` tests it without disturbing it.
    """

    step: int
    loss: float
    network: DiscriminativeSubNetwork


OnStep = Callable[[LocalizerStep], None]
Choose = Callable[[DiscriminativeSubNetwork], float]


class LocalizerTraining:
    """A training that can be stopped after any step and resumed, also in another process, to the same numbers.

    The same arguments give the same weights on a CPU. Works under `torch.inference_mode` and with tensors made there.
    """

    def __init__(
        self,
        real: Pairs,
        normals: Tensor,
        settings: LocalizerSettings,
        generated: Pairs | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start from random weights.

        Args:
            real, generated: pairs to train on. Without any, all images of a batch are normal.
            normals: images without defect [N,3,H,W] in [0,1]; their masks are all zero.

        Raises:
            InputError: no normal images, or an empty mask.
        """
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
            self._optimizer, self._schedule = adam(network, settings.learning_rate, settings.steps)

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return len(self.losses)

    def run(self, on_step: OnStep | None = None, choose: Choose | None = None) -> DiscriminativeSubNetwork:
        """Train up to the last step and return the network in eval mode, on its device.

        Args:
            on_step: called after each step; an exception in it (an interrupt) ends the training and passes on.
            choose: rates a network that is ready for testing. Called every `settings.check_every` steps and after the
                last; the network with the highest rate is returned. Without it that of the last step is.

        Raises:
            TrainingError: the loss is not finite; names the step.
        """
        settings = self.settings
        with torch.inference_mode(False), torch.enable_grad(), _fitting_threads(settings):
            while self.step < settings.steps:
                # Before the step, so that a check that was interrupted is repeated.
                if choose is not None and self.step and self.step % settings.check_every == 0:
                    self._check(choose)
                self._one_step()
                if on_step is not None:
                    on_step(LocalizerStep(self.step, self.losses[-1], self._network))
            if choose is not None:
                self._check(choose)
                self._network.load_state_dict(self._best)
            else:
                self.best_step = self.step
                self._ready()
        return self._network.eval()

    def _one_step(self) -> None:
        images, masks = self._sampler.draw(self._generator)
        logits = self._network(self._input(images))
        loss = focal_loss(logits, masks.to(self._device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"localization: loss {value} at step {self.step + 1}. Lower the learning rate.")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        self.losses.append(value)

    def _input(self, images: Tensor) -> Tensor:
        return images.to(self._device).contiguous(memory_format=torch.channels_last)

    def _ready(self) -> DiscriminativeSubNetwork:
        # A copy of the generator: looking at the network must not change how the training goes on.
        generator = torch.Generator()
        generator.set_state(self._generator.get_state())
        recalibrate(self._network, lambda: self._input(self._sampler.draw(generator)[0]))
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
        """Write the whole state in one step."""
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
        """Resume from what `save` of the same training wrote. Raises TrainingError for another or a damaged file."""
        try:
            with torch.inference_mode(False):
                state: dict[str, Any] = read_restricted(path)
                self._network.load_state_dict(state["network"])
                self._optimizer.load_state_dict(state["optimizer"])
                self._schedule.load_state_dict(state["schedule"])
                self._generator.set_state(state["generator"])
                self.losses = list(state["losses"])
                self._best, self._best_rate, self.best_step, self._checked = state["best"]
        except Exception as error:  # a damaged file makes the reader raise almost anything
            raise TrainingError(f"training state: {path.name} cannot be read ({error}). Remove it.") from error


class BatchSampler:
    """Draws batches: the second half defective; source, then type, then image are each drawn uniformly."""

    def __init__(self, real: Pairs, generated: Pairs, normals: Tensor, settings: LocalizerSettings) -> None:
        self.settings = settings
        self.real = _prepared(real, "real", settings.size)
        self.generated = _prepared(generated, "generated", settings.size)
        if not len(normals):
            raise InputError("normals: none. Give at least one normal image.")
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
        image, mask = (torch.rot90(torch.flip(part, mirrors), turns, (1, 2)) for part in (image, mask))
        # Half stay as sharp as the test images: rotating by an odd angle blurs.
        if self.settings.any_angle and _pick(2, generator):
            turned, label = rotate(image, mask, float(torch.rand((), generator=generator)) * math.tau)
            # A defect near a corner may leave the image, which then shows nothing to find.
            if bool(label.any()) == bool(mask.any()):
                return turned, label
        return image, mask


def focal_loss(logits: Tensor, masks: Tensor, gamma: float = FOCAL_GAMMA) -> Tensor:
    """Mean of -(1-p)^gamma log p, p being the softmax of the true class (Lin et al., ICCV 2017, without alpha).

    Args:
        logits: [B,2,H,W], class 1 is defect.
        masks: [B,1,H,W] in {0,1}.
    """
    log_p = F.log_softmax(logits.float(), dim=1).gather(1, masks.long())
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


def rotate(image: Tensor, mask: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Rotate an image and its mask about the center, counterclockwise; beyond the border both are reflected.

    Args:
        image: [C,s,s], sampled bilinearly; mask: [1,s,s] in {0,1}, by the nearest pixel, so that it stays in {0,1}.
        angle: radians.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    grid = F.affine_grid(torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]]), [1, 1, *image.shape[1:]], False)
    turned = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    label = F.grid_sample(mask[None], grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return turned[0], label[0]


def _prepared(pairs: Pairs, label: str, size: int) -> list[tuple[Tensor, Tensor]]:
    prepared = []
    for key in sorted(pairs):
        images, masks = pairs[key]
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


@contextmanager
def _fitting_threads(settings: LocalizerSettings) -> Iterator[None]:
    before = torch.get_num_threads()
    if settings.batch_size * settings.width * settings.size**2 <= SMALL_BATCH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
