"""Where foreign textures come from: a folder of images, or rendered ones where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.images import read_image, resize_image
from ..data.pairing import IMAGE_SUFFIXES
from ..data.splits import natural_key
from ..errors import DatasetError
from ..lazy_imports import later
from ..reading import files_below

if TYPE_CHECKING:
    from ..synthetic import captions, noise, surfaces
else:
    captions = later("..synthetic.captions", __package__)
    noise = later("..synthetic.noise", __package__)
    surfaces = later("..synthetic.surfaces", __package__)

PROCEDURAL = "procedural surfaces"
BANK_SIDE = 512
AUGMENTATIONS = 3


class Textures(Protocol):
    """A source of textures."""

    @property
    def name(self) -> str:
        """Its name in manifests."""

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Tensor, str]:
        """A texture [3, H, W] in [0, 1] and what it is called."""
        ...


class FolderTextures:
    """The images in a folder and all folders in it, such as the Describable Textures Dataset that DRAEM uses.

    Raises:
        DatasetError: there are none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        found = [
            path
            for path in files_below(self.folder, "textures")
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        ]
        self.paths = sorted(found, key=lambda path: natural_key(path.relative_to(self.folder).as_posix()))
        if not self.paths:
            raise DatasetError(f"textures: {self.folder} holds no images. Give a folder of textures, or leave empty.")

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Tensor, str]:
        """See `Textures.draw`; the image is resized, as DRAEM does."""
        path = self.paths[int(rng.integers(len(self.paths)))]
        return resize_image(read_image(path)[None], size)[0], path.relative_to(self.folder).as_posix()


class ProceduralTextures:
    """Rendered leather, fabric, stone, metal and plastic of any colour. Not the textures of the published results."""

    name = PROCEDURAL

    def __init__(self) -> None:
        self.bank = noise.NoiseBank(0, BANK_SIDE)

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Tensor, str]:
        """See `Textures.draw`."""
        names = [name for name in captions.SURFACES if name != "mask"]
        surface = names[int(rng.integers(len(names)))]
        colour = rng.uniform(0.05, 0.95, 3).astype(np.float32)
        rendered = surfaces.shade(*surfaces.render_surface(rng, self.bank, surface, colour, max(size)))
        pixels = torch.from_numpy(np.ascontiguousarray(rendered.transpose(2, 0, 1)))
        return pixels[:, : size[0], : size[1]].contiguous(), f"{PROCEDURAL}: {surface}"


def augmented(texture: Tensor, rng: np.random.Generator) -> Tensor:
    """Three of the ten augmentations that DRAEM applies to its textures, in random order; [3, H, W] in [0, 1]."""
    from torchvision.transforms import functional as transforms

    def uniform(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    pixels = (texture * 255).round().to(torch.uint8)
    for change in rng.choice(10, AUGMENTATIONS, replace=False).tolist():
        if change == 0:
            pixels = transforms.adjust_gamma(pixels, uniform(0.5, 2.0))
        elif change == 1:
            shifted = pixels.float() * uniform(0.8, 1.2) + uniform(-30, 30)
            pixels = shifted.round().clamp(0, 255).to(torch.uint8)
        elif change == 2:
            pixels = transforms.adjust_sharpness(pixels, uniform(1.0, 3.0))
        elif change == 3:
            pixels = transforms.adjust_hue(pixels, uniform(-0.2, 0.2))
            pixels = transforms.adjust_saturation(pixels, uniform(0.5, 1.5))
        elif change == 4:
            pixels = transforms.solarize(pixels, uniform(32, 128)) if rng.random() < 0.5 else pixels
        elif change == 5:
            pixels = transforms.posterize(pixels, int(rng.integers(3, 8)))
        elif change == 6:
            pixels = transforms.invert(pixels)
        elif change == 7:
            pixels = transforms.autocontrast(pixels)
        elif change == 8:
            pixels = transforms.equalize(pixels)
        else:
            turned = transforms.rotate(_mirrored(pixels), uniform(-45, 45), transforms.InterpolationMode.BILINEAR)
            pixels = transforms.center_crop(turned, list(pixels.shape[1:]))
    return pixels.float() / 255


def _mirrored(pixels: Tensor) -> Tensor:
    """Twice the size, filled by mirroring, so that rotation shows no corners."""
    wide = torch.cat([pixels.flip(2), pixels, pixels.flip(2)], dim=2)
    return torch.cat([wide.flip(1), wide, wide.flip(1)], dim=1)
