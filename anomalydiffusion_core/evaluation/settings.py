"""The settings of all evaluations. Light: the command line imports this module to show its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..options import Settings, option
from ..scale import WHOLE

LARGEST_SEED = 2**31 - 1
LEARNING_RATE: dict[str, Any] = {"min": 0.0, "max": 1.0, "step": 0.0001, "above": 0.0, "exact": True}
NONE, FEW_REAL, GENERATED, BOTH, BOTH_OURS = "none", "few real", "generated", "both", "few real + ours"
TRAINING_SETS = (NONE, FEW_REAL, GENERATED, BOTH, BOTH_OURS)
"""Normal images alone (the floor); the few real pairs; the pairs of a method; both, for each method or for ours."""
CLASSIFIER_SETS = (GENERATED, FEW_REAL, BOTH)
ARCHITECTURES = ("ResNet-34", "ResNet-18")
PUBLISHED, STAND_IN = TRUNKS = ("published", "stand-in")
LAST_STEP = "last step"
VALIDATION = "validation split"
AUTHORS = "authors (selects on the test set)"
SELECTIONS = (LAST_STEP, VALIDATION, AUTHORS)
"""Which step of a training is kept.

The authors test on the test set after every epoch of 500 images and keep the best by the sum of image AUROC, pixel
AUROC, pixel AP and PRO (train-localization.py). Numbers of a network chosen that way are better than those on unseen
defects, so this is one labeled option, beside the last step and a validation split.
"""
TILES = "tiles"
LOCALIZER_VIEWS = (WHOLE, TILES)
COLOUR_TEXTURE, PERCEPTUAL = FEATURES = ("colour and texture", "perceptual")
AUTHORS_EPOCH = 63
"""Steps of 8 images in the authors' epoch of 500."""
_METHOD = "Name of the method in tables. Empty takes it from the manifest or the folder."


@dataclass(frozen=True)
class RunSettings(Settings):
    """How often a network is trained anew."""

    runs: int = option(3, "Networks trained with different seeds, for mean and spread.", min=1, max=20)
    seed: int = option(0, "Seed of the first run; each further run uses the next number.", min=0, max=LARGEST_SEED)

    @property
    def seeds(self) -> range:
        """The seed of each run."""
        return range(self.seed, self.seed + self.runs)


@dataclass(frozen=True)
class OverlapSettings(Settings):
    """What happens when something was learned from images of the test set."""

    allow_overlap: bool = option(
        False,
        "Measure although something was learned from images of the test set, which is otherwise an error that lists "
        "them. Every table then marks these figures: they say nothing about unseen defects.",
    )


@dataclass(frozen=True)
class RowSettings(Settings):
    """What the detectors of a table are trained on."""

    training_sets: str = option(
        f"{FEW_REAL}, {BOTH}",
        f"What networks are trained on, separated by commas: {', '.join(TRAINING_SETS)}. For {GENERATED} and {BOTH} "
        f"there is one row for each method; {BOTH_OURS} is the row of {BOTH} for the pairs under test alone.",
    )
    pair_counts: str = option(
        "",
        "How many generated pairs are enough: numbers of pairs of each type, separated by commas, such as 0, 10, 30, "
        "100, 300. Each gets rows of its own, on the first so many pairs, and amounts.png shows AP over the number. "
        "0 is the few real pairs alone. Empty trains on all pairs.",
    )


@dataclass(frozen=True)
class LocalizerSettings(Settings):
    """How a segmentation network is trained and tested; `seed` is that of the initial weights and of every draw."""

    size: int = option(
        256, "Side in pixels at which the network is trained and tested; 256 in the paper.", min=32, max=2048, step=32
    )
    width: int = option(16, "Channels of the network's finest level; 64 in the paper.", min=1, max=256)
    steps: int = option(200, "Training steps of each network; 12600 in the paper.", min=1, max=1_000_000)
    batch_size: int = option(8, "Images in each step, half of them normal.", min=2, max=256)
    learning_rate: float = option(1e-3, "Initial learning rate of Adam.", **LEARNING_RATE)
    flips: bool = option(
        True, "Flip training images at random. Turn off where a mirrored part is not a possible part."
    )
    rotations: bool = option(
        True, "Rotate training images by quarter turns. Turn off where a rotated part is not a possible part."
    )
    generated_share: float = option(
        0.5,
        "Share of generated pairs among the defects when real and generated pairs are trained on.",
        min=0.0,
        max=1.0,
        step=0.05,
    )
    seed: int = 0
    selection: str = option(
        LAST_STEP,
        "Which step is kept. A validation split holds back a third of the real training pairs and of the normal "
        "images. The authors' rule looks at the test set, and every table then says so.",
        choices=SELECTIONS,
    )
    check_every: int = option(
        AUTHORS_EPOCH, "Steps between two checks, for any selection but the last step.", min=1, max=1_000_000
    )
    validation_share: float = option(
        1 / 3, "Share of the training images that a validation split holds back.", min=0.0, max=0.99, above=0.0
    )
    any_angle: bool = option(
        False,
        "Rotate half of the training images by any angle, for objects that look the same from all sides and textures "
        "without direction. Corners are filled by reflection.",
    )

    view: str = option(
        WHOLE,
        "What the network sees: whole images made as small as its size, as in the paper, or tiles: trained on "
        "windows, tested on overlapping tiles, measured at the images' own size. For small defects on large images.",
        choices=LOCALIZER_VIEWS,
    )
    tile_scale: float = option(
        1.0, "With tiles: image pixels per pixel that the network sees.", min=0.05, max=64, step=0.05, exact=True
    )

    @property
    def tiled(self) -> bool:
        """Whether windows and tiles are seen."""
        return self.view == TILES

    def selection_note(self) -> str:
        """What a table says about the selection, in words."""
        if self.selection == LAST_STEP:
            return "last step kept, nothing chosen by the test set"
        checked = f"best of the checks every {self.check_every} steps kept"
        if self.selection == VALIDATION:
            return f"{checked}, chosen by a {VALIDATION} of {self.validation_share:.0%} of the training images"
        return f"{checked} by the rule {AUTHORS}: these figures are better than on unseen defects"


@dataclass(frozen=True)
class DetectorSettings(Settings):
    """How detectors of anomalib are trained on normal images."""

    environment: str = option(
        "", "Folder or interpreter of the Python environment that holds anomalib. Empty takes this one."
    )
    backbone: str = option(
        "", "Name of the pretrained network in timm. Empty takes the one of each detector's publication."
    )
    backbone_weights: str = option(
        "",
        "File of the pretrained network, such as wide_resnet50_2-95faca4d.pth, or the folder it lies in. Empty "
        "searches torch's hub cache. Nothing is downloaded.",
    )
    layers: str = option("", "Layers of the backbone that are looked at. Empty takes those of the publication.")
    pretrained: bool = option(
        True, "Fill the backbone from its file. Turned off it stays random, which only tries out that all runs."
    )
    textures: str = option("", "Folder of texture images, which draem and sspcab paste into normal images.")
    detector_steps: int = option(
        2000, "Training steps of detectors that are trained; the others see every image once.", min=1, max=1_000_000
    )
    detector_batch: int = option(8, "Images a detector sees at once.", min=1, max=256)


@dataclass(frozen=True)
class GapSettings(Settings):
    """How what a detector misses becomes a plan of pairs."""

    count: int = option(32, "Pairs that are planned.", min=1, max=10000)
    false_positives: float = option(
        0.01,
        "Share of normal pixels that may be reported; it sets the score from which a defect counts as found.",
        min=0.0,
        max=0.99,
        step=0.001,
    )
    nearest: int = option(
        3, "Pairs of a missed region take so many of the most similar normal images in turn.", min=1, max=1000
    )
    seed: int = option(0, "Pair i uses seed + i; also the seed of the detector.", min=0, max=LARGEST_SEED)


@dataclass(frozen=True)
class ClassifierSettings(Settings):
    """How a classifier is trained; `seed` is that of the initial weights and of every draw."""

    architecture: str = option(
        "ResNet-34",
        "ResNet-34 as in the text of the paper, ResNet-18 as in the caption of its Table 4.",
        choices=ARCHITECTURES,
    )
    size: int = option(256, "Side of the images in pixels; 256 in the paper.", min=32, max=1024, step=32)
    width: int = option(64, "Channels of the first stage; 64 in the paper, 8 to 16 for a CPU.", min=1, max=256)
    steps: int = option(1000, "Training steps of each network.", min=1, max=1_000_000)
    batch_size: int = option(8, "Images in each step.", min=2, max=256)
    learning_rate: float = option(1e-4, "Initial learning rate of Adam.", **LEARNING_RATE)
    flips: bool = option(False, "Flip training images at random; the authors do not.")
    rotations: bool = option(False, "Rotate training images by quarter turns; the authors do not.")
    weights: Path | None = option(
        None,
        "File of pretrained weights in torchvision's layout, such as resnet34-b627a593.pth. Empty for random weights. "
        "Nothing is downloaded.",
    )
    seed: int = 0
    view: str = option(
        WHOLE,
        "What the network sees: whole images made as small as its size, as in the paper, or tiles: trained on windows "
        "on the defects and on normal images, tested on overlapping tiles at the images' own size, of which the one "
        "surest of a type decides. For small defects on large images.",
        choices=LOCALIZER_VIEWS,
    )
    tile_scale: float = option(
        1.0, "With tiles: image pixels per pixel that the network sees.", min=0.05, max=64, step=0.05, exact=True
    )

    @property
    def tiled(self) -> bool:
        """Whether windows and tiles are seen."""
        return self.view == TILES


@dataclass(frozen=True)
class ClassifierData(Settings):
    """What a classifier is trained on, and how tables call it."""

    training_set: str = option(
        GENERATED,
        "What the network is trained on: generated images, the few real ones, or both.",
        choices=CLASSIFIER_SETS,
    )
    method: str = option("", _METHOD)

    @property
    def uses_generated(self) -> bool:
        """Whether folders of generated images are required."""
        return self.training_set != FEW_REAL


@dataclass(frozen=True)
class GenerationSettings(Settings):
    """How generated images are measured."""

    trunk: str = option(
        PUBLISHED,
        "The published networks from local files, or small random stand-ins whose numbers cannot be compared with "
        "published ones.",
        choices=TRUNKS,
    )
    inception_weights: str = option(
        "", "torch-fidelity's Inception file or its folder. Empty searches torch's hub cache."
    )
    lpips_weights: str = option("", "torchvision's VGG-16 file or its folder. Empty searches torch's hub cache.")
    size: int = option(256, "Side in pixels at which everything is measured.", min=64, max=1024, step=32)
    splits: int = option(10, "Parts of the Inception Score, which is their mean.", min=1, max=100)
    most_pictures: int = option(
        1000, "Use at most this many images of each type, in the order of the folder.", min=2, max=100_000
    )
    seed: int = option(0, "Seed of the parts and of the sampled pairs.", min=0, max=LARGEST_SEED)
    method: str = option("", _METHOD)


@dataclass(frozen=True)
class ScoreSettings(Settings):
    """How single generated pairs are compared with the real ones."""

    quantile: float = option(
        0.05,
        "A pair is listed when one of its scores is worse than this quantile of the real ones' own scores. 0 lists "
        "what is worse than all of them.",
        min=0,
        max=0.5,
        step=0.01,
    )
    judged: str = option(
        "nearest_real, nearest_normal, effect, fill, seam",
        "The scores that count, separated by commas.",
    )
    leave_out: bool = option(False, "Leave the listed pairs out of evaluations. A review can accept them.")
    features: str = option(
        COLOUR_TEXTURE,
        "What distances are measured in: statistics of colour and texture, or LPIPS with the published network from a "
        "local file.",
        choices=FEATURES,
    )
    lpips_weights: str = option("", "torchvision's VGG-16 file or its folder. Empty searches torch's hub cache.")
