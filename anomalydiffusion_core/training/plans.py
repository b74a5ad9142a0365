"""The plans of the three trainings: an anomaly embedding, a mask embedding, an adaptation to normal images.

A host says which model it is and what the tokens start from; what is trained, and what decides its identity, is here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..bundles.bundle import load_bundle
from ..conditioning.prompt_encoder import Prompt
from ..conditioning.spatial_encoder import load_backbone
from ..data.mvtec import AnomalyDataset
from ..data.provenance import SOURCES, Mark, file_marks, marks_of, plain_marks, training_marks
from ..data.training import TrainingViews, normal_view, normal_views, training_files, training_views
from ..denoiser import Denoiser
from ..errors import InputError
from ..files import file_digest, tensor_digest
from ..identity import Identity
from ..options import Settings, option
from ..progress import MakeProgress
from ..sampling.control import measure_control
from ..sampling.sampler import Conditioning, Sampler, SamplingSettings
from ..scale import WHOLE, WINDOWS
from ..store import stored_metadata
from .adaptation import AdaptationSettings, NormalAdapter, random_masks
from .augment import MASK_MOVES, WINDOW_MOVES, AugmentSettings
from .bank import OnPrepare
from .inversion import AnomalyTrainer, InversionSettings
from .lora import load_lora
from .mask_embedding import MaskEmbeddingSettings, MaskTrainer
from .run import Learned
from .session import TrainingPlan
from .settings import EmbeddingSettings

CONTROL_STEPS = 16
CONTROL_CFG = 2.5
"""As the sampler's default; without a negative the control is measured at 1."""


@dataclass(frozen=True)
class Base:
    """The frozen model of a training. content: what tells it from another, with its autoencoder and number format.

    lora: the file of the LoRA that is applied to it, where it is known.
    """

    denoiser: Denoiser
    content: Mapping[str, Any]
    lora: Path | None = None

    def identity(self) -> Identity:
        """Which model something was learned on, for its metadata."""
        name = "" if self.lora is None else self.lora.name
        return Identity(self.denoiser.fingerprint(), self.denoiser.adaptation(), name)

    def learned_from(self) -> dict[str, Mark]:
        """Marks of the images that its LoRA was learned from, where its file says them."""
        return {} if self.lora is None else marks_of(stored_metadata(self.lora))


@dataclass(frozen=True)
class Start:
    """What the tokens start from. rows [L, width], None for small noise. prompt: what they are learned inside, if any.

    content: what tells it from another start. metadata: what to write about it with the result.
    """

    rows: Tensor | None = None
    prompt: Prompt | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


def anomaly_plan(
    base: Base,
    dataset: AnomalyDataset,
    settings: InversionSettings,
    start: Start,
    name: str,
    encoder_weights: Path | None = None,
) -> TrainingPlan:
    """Masked textual inversion with a spatial encoder (paper, section 3.2), all types of a data set in one run.

    encoder_weights: torchvision's resnet50 file, for the encoder resnet50_fpn. Raises InputError for a data set
    without defects and for unusable weights.
    """
    _require_defects(dataset)
    backbone = None if encoder_weights is None else load_backbone(encoder_weights)
    weights = {} if backbone is None else {"encoder_weights": tensor_digest(*backbone.values())[:16]}

    def make(on_prepare: OnPrepare) -> AnomalyTrainer:
        return AnomalyTrainer(
            base.denoiser,
            _views(dataset, settings),
            settings,
            initial_context=start.rows,
            on_prepare=on_prepare,
            prompt=start.prompt,
            backbone=backbone,
        )

    provenance = _provenance(base, dataset)
    return TrainingPlan(
        name,
        "anomaly embedding",
        {"kind": "anomaly", **_content(base, start, settings, provenance), **weights},
        {**base.identity().metadata(), **provenance, **start.metadata, **weights},
        _encoded(dataset, settings.augmented_copies),
        make,
        load_bundle,
    )


def mask_plan(
    base: Base, dataset: AnomalyDataset, settings: MaskEmbeddingSettings, start: Start, name: str
) -> TrainingPlan:
    """Textual inversion of the masks themselves (paper, section 3.4), all types of a data set in one run.

    Raises InputError for a data set without defects.
    """
    _require_defects(dataset)

    def make(on_prepare: OnPrepare) -> MaskTrainer:
        views = _views(dataset, settings)
        return MaskTrainer(base.denoiser, views, settings, initial_context=start.rows, on_prepare=on_prepare)

    provenance = _provenance(base, dataset)
    return TrainingPlan(
        name,
        "mask embedding",
        {"kind": "mask", **_content(base, start, settings, provenance)},
        {**base.identity().metadata(), **provenance, **start.metadata},
        _encoded(dataset, settings.augmented_copies),
        make,
        load_bundle,
    )


@dataclass(frozen=True)
class NormalImages(Settings):
    """Which normal images an adaptation learns from, and on how many others its control is measured."""

    pictures: int = option(
        40, "How many normal images, or windows of them, are learned from, chosen with the seed.", min=1, max=100000
    )
    control_samples: int = option(
        4,
        "Normal images, other than those learned from if there are any, on which the control is measured before and "
        "after. 0 measures nothing.",
        min=0,
        max=1000,
    )


def adaptation_plan(
    base: Base,
    unet: nn.Module,
    dataset: AnomalyDataset,
    settings: AdaptationSettings,
    images: NormalImages,
    normal: tuple[Tensor, Conditioning],
    negative: tuple[Tensor, Conditioning] | None,
    sampler_with: Callable[[Mapping[str, Tensor] | None], Sampler],
    make_progress: MakeProgress,
    name: str,
    release: Callable[[], None] = lambda: None,
) -> TrainingPlan:
    """A LoRA tuned on normal images under the normal conditioning (design, decision 8), with its control.

    unet: the network that the denoiser computes with. normal, negative: context rows [L, width] and the same as
    conditioning. sampler_with: a sampler of the model with a LoRA, or without for None; release: called when that
    sampler is no longer used. Raises InputError for a data
    set without normal images.
    """
    if not dataset.normals:
        raise InputError(f"dataset: {dataset.object} has no normal images. Add some to train/good.")
    shuffled = random.Random(settings.seed).sample(list(dataset.normals), len(dataset.normals))
    chosen, others = shuffled[: images.pictures], shuffled[images.pictures :]
    root = dataset.folder
    files = {f"{dataset.object}/{path.relative_to(root).as_posix()}": file_digest(path)[:16] for path in chosen}
    tested = (others or chosen)[: images.control_samples]

    look = (settings.resolution, settings.view, settings.scale)
    learned = images.pictures if normal_view(dataset, *look[:2]) == WINDOWS else len(chosen)

    def control(tensors: Mapping[str, Tensor] | None) -> float | None:
        if not tested:
            return None
        loaded = normal_views(dataset, tested, len(tested), *look, settings.seed + 1)
        # Other masks than those of the training, which come from the seed itself.
        masks = random_masks(len(loaded), loaded.shape[-2:], settings.seed + 1)
        cfg = 1.0 if negative is None else CONTROL_CFG
        sampling = SamplingSettings(settings.seed + 1, CONTROL_STEPS, cfg)
        against = None if negative is None else negative[1]
        try:
            return measure_control(sampler_with(tensors), loaded, masks, normal[1], against, sampling, make_progress)
        finally:
            release()

    def make(on_prepare: OnPrepare) -> NormalAdapter:
        loaded = normal_views(dataset, chosen, learned, *look, settings.seed)
        adapter = NormalAdapter(
            base.denoiser,
            unet,
            loaded,
            normal[0],
            settings,
            empty_context=None if negative is None else negative[0],
            on_prepare=on_prepare,
            canvas=(loaded.shape[-2], loaded.shape[-1]),
        )
        sampler_with(adapter.result().bundle.tensors)  # what does not fit should fail before the training
        release()
        return adapter

    def after(learned: Learned) -> dict[str, Any]:
        return {"control_after": control(learned.tensors)}  # type: ignore[attr-defined]

    content = {
        "kind": "adaptation",
        **base.content,
        "settings": asdict(settings),
        "good_pictures": files,
        "normal": tensor_digest(normal[0]),
        "negative": tensor_digest(None if negative is None else negative[0]),
    }
    metadata = {
        "kind": "adaptation",
        **base.identity().metadata(),
        "good_pictures": files,
        SOURCES: plain_marks(file_marks(dataset, chosen)),
    }
    return TrainingPlan(
        name,
        "adaptation",
        content,
        metadata,
        learned,
        make,
        load_lora,
        before=lambda: {"control_before": control(None)},
        after=after,
    )


def control_report(metadata: Mapping[str, Any]) -> str:
    """What an adaptation learned from, and the control before and after it, as two sentences."""
    learned = f"Learned from {len(metadata['good_pictures'])} normal images."
    before, after = metadata.get("control_before"), metadata.get("control_after")
    if before is None or after is None:
        return f"{learned} The control was not measured."
    return (
        f"{learned} Control (change inside random masks under the normal conditioning, 0 to 255): {before:.1f} "
        f"before, {after:.1f} after."
    )


def _views(dataset: AnomalyDataset, settings: EmbeddingSettings) -> TrainingViews:
    zooms = {WHOLE: AugmentSettings(), WINDOWS: WINDOW_MOVES}
    if isinstance(settings, MaskEmbeddingSettings):
        zooms = dict.fromkeys(zooms, MASK_MOVES)
    ranges = {name: (moves.min_scale, moves.max_scale) for name, moves in zooms.items()}
    return training_views(dataset.types, settings.resolution, settings.view, settings.scale, ranges)


def _require_defects(dataset: AnomalyDataset) -> None:
    if not dataset.types:
        raise InputError(
            f"dataset: {dataset.object} has no defect images. Add test/<defect> and ground_truth/<defect>."
        )


def _provenance(base: Base, dataset: AnomalyDataset) -> dict[str, Any]:
    return {
        "split": dataset.split_rule,
        "split_options": dict(dataset.split_options),
        "split_names": {kind.key: kind.split_names for kind in dataset.types},
        "training_files": training_files(dataset),
        SOURCES: plain_marks(training_marks(dataset) | base.learned_from()),
    }


def _content(base: Base, start: Start, settings: Any, provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **base.content,
        "settings": asdict(settings),
        "start": dict(start.content),
        "training_files": provenance["training_files"],
    }


def _encoded(dataset: AnomalyDataset, copies: int) -> int:
    return sum(len(kind.train) for kind in dataset.types) * (1 + copies)
