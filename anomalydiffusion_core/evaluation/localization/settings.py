"""How a segmentation network is trained and used."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from .selection import AUTHORS_EPOCH, LAST_STEP, SELECTIONS


@dataclass(frozen=True)
class LocalizerSettings:
    """How a segmentation network is trained and used.

    Attributes:
        size: edge in pixels to which all pictures are resized for the network; 256 in the paper.
        width: channels of the finest level; 64 in the paper, 8 to 16 for a CPU.
        steps, batch_size, learning_rate: Adam steps, pictures a step, initial rate.
        flips, rotations: ordinary augmentation (mirror images, quarter turns). Switch off what the object does not
            allow: a bottle may be turned, a transistor may not.
        any_angle: half of the pictures are turned by any angle instead of by quarter turns alone, mirrored beyond
            their border. For objects that look the same from all sides, and textures without direction.
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
    any_angle: bool = False

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
