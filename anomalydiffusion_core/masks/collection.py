"""Collecting masks: sampling until the wanted number can be used, with a report of those that were rejected."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..bundles.bundle import CLIP_ROUTE, AnomalyBundle
from ..conditioning.prompt_encoder import Prompt
from ..data.mask_resizing import target_size
from ..devices import check_images_fit
from ..errors import InputError
from ..identity import check_identity
from ..options import LARGEST_SEED, Settings, option
from ..progress import MakeProgress, Progress, Quiet
from ..sampling.blending import fit_masks
from ..sampling.sampler import VAE_STEPS, Conditioning, Sampler, SamplingSettings, sample_from_noise
from .cleanup import CleanedMasks, MaskRegion, MaskRules, clean_masks
from .shape import ShapeLimits, Shapes

_PLANES = 2
"""Values of a pixel of a mask, once more where masks are put together."""
SAMPLED_AT_ONCE = 64
"""Decoded images are large, so a long collection is sampled in parts."""
_OVERLAP = "Smallest share of a mask that must lie {}. 0 accepts any that touches it; what is outside is cut off."


@dataclass(frozen=True)
class CollectionSettings(Settings):
    """How many masks are wanted, and how much of a mask must lie in the regions that are given."""

    count: int = option(8, "Number of masks.", min=1, max=10000)
    size: int = option(256, "Side of the masks in pixels, as in training.", min=64, max=2048, step=8)
    tries: int = option(4, "Give up after sampling this many times the wanted number.", min=1, max=100)
    foreground_overlap: float = option(0.5, _OVERLAP.format("on the foreground"), min=0, max=1, step=0.05)
    allowed_overlap: float = option(0.5, _OVERLAP.format("in the allowed region"), min=0, max=1, step=0.05)
    shape_range: float = option(
        0.0,
        "Reject masks whose area, thickness or elongation lies beyond those of the training masks by more than this "
        "factor, such as 1.3. 0 takes any shape.",
        min=0,
        max=100,
        step=0.05,
    )

    def regions(self, foreground: Tensor | None, allowed: Tensor | None, notices: list[str]) -> list[MaskRegion]:
        """The regions that are given as [1, 1, H, W] of {0, 1}, at the size of the masks.

        Appends to ``notices`` what was resized. Raises InputError for several masks and for another aspect.
        """
        found = []
        for name, title, mask, share in (
            ("foreground", "foreground", foreground, self.foreground_overlap),
            ("allowed", "allowed region", allowed, self.allowed_overlap),
        ):
            if mask is None:
                continue
            if len(mask) > 1:
                raise InputError(f"{name}: has {len(mask)} masks, but new masks belong to no image yet. Give one.")
            fitted = fit_masks(mask, (self.size, self.size), notices, name, "mask")
            found.append(MaskRegion(title, fitted[0, 0].numpy() > 0, share))
        return found


class MaskSource(Protocol):
    """Makes samples that are masks, or not: sample i depends on i alone."""

    @property
    def cost(self) -> int:
        """Steps of a progress for each sample."""
        ...

    @property
    def at_once(self) -> int:
        """Samples that are made at once at most."""
        ...

    def __call__(self, first: int, count: int, progress: Progress) -> CleanedMasks:
        """The samples ``first`` to ``first + count - 1``; ``progress`` advances by ``cost`` for each."""
        ...


@dataclass(frozen=True)
class EmbeddingMasks:
    """Samples of a mask embedding (paper, Eq. 10): images of masks, thresholded and judged by ``rules``.

    Sample i uses ``settings.seed + i``. positive: the tokens of the type alone, one row.
    """

    sampler: Sampler
    positive: Conditioning
    negative: Conditioning | None
    settings: SamplingSettings
    size: int | tuple[int, int]
    rules: MaskRules
    regions: Sequence[MaskRegion] = ()
    limits: ShapeLimits | None = None

    @property
    def cost(self) -> int:
        """Sampling steps, and decoding."""
        return self.settings.steps + VAE_STEPS

    @property
    def at_once(self) -> int:
        """At least one batch of the sampler."""
        return max(self.settings.batch_size, SAMPLED_AT_ONCE)

    def __call__(self, first: int, count: int, progress: Progress) -> CleanedMasks:
        """As of a MaskSource."""
        part = replace(self.settings, seed=self.settings.seed + first)
        size = target_size(self.size)
        images = sample_from_noise(self.sampler, count, size, self.positive, self.negative, part, progress)
        return clean_masks(images, self.rules, self.regions, self.limits)


def embedding_masks(
    sampler: Sampler,
    bundle: AnomalyBundle,
    key: str,
    condition: Callable[[Tensor], Conditioning],
    negative: Conditioning | None,
    settings: SamplingSettings,
    size: int | tuple[int, int],
    rules: MaskRules,
    regions: Sequence[MaskRegion] = (),
    shape_range: float = 0.0,
    prompt: Prompt | None = None,
) -> EmbeddingMasks:
    """What samples masks of the type ``key`` of a bundle; each type gets other samples from one seed.

    condition: context [1, L, width] to the sampler's conditioning. shape_range: see ``CollectionSettings``. prompt:
    the text encoder for a bundle whose tokens belong into a prompt, as the authors' mask embeddings do. Raises
    BundleError or InputError for a bundle of another kind, width or base model, for a negative that does not fit, and
    for a range where the bundle does not tell the shapes of its training masks.
    """
    denoiser = sampler.denoiser
    if prompt is None:
        bundle.require("mask", denoiser.context_width)
    else:
        bundle.require("mask", prompt.encoder.width, CLIP_ROUTE)
    check_identity(denoiser, bundle.base, "bundle")
    if negative is not None:
        negative.check(denoiser, "negative", 1)
    own = replace(settings, seed=first_seed(settings.seed, key))
    rows = bundle.type_tokens(key)[None]
    positive = condition(rows if prompt is None else _in_prompt(prompt, rows))
    limits = ShapeLimits.around(_trained_shapes(bundle, key), shape_range) if shape_range else None
    return EmbeddingMasks(sampler, positive, negative, own, size, rules, regions, limits)


def _in_prompt(prompt: Prompt, rows: Tensor) -> Tensor:
    with prompt.encoder.training_mode(), torch.no_grad():
        return prompt.contexts(rows)


def _trained_shapes(bundle: AnomalyBundle, key: str) -> Shapes:
    known = bundle.metadata.get("shapes", {})
    if key not in known:
        raise InputError(
            f"shape_range: the bundle does not tell the shapes of the training masks of {key}. Train the mask "
            "embedding again, or set shape_range to 0."
        )
    return Shapes.from_record(known[key])


@dataclass
class Collection:
    """Masks [1, H, W] that were kept, and the outcome of each sample: "" or why it was rejected.

    ``outcomes`` may begin with those of an earlier run, whose masks are then not in ``masks``.
    """

    outcomes: list[str] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """How many samples were kept."""
        return self.outcomes.count("")

    def repeated(self, count: int) -> Tensor:
        """``count`` masks [count, 1, H, W]: the kept ones in turn."""
        return torch.stack([self.masks[i % len(self.masks)] for i in range(count)])

    def describe(self) -> str:
        """How many were kept, and how many were rejected for which kind of reason."""
        reasons = Counter(outcome.split(":")[0] for outcome in self.outcomes if outcome)
        listed = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common()) or "none rejected"
        return f"{self.kept} of {len(self.outcomes)} sampled masks kept ({listed})"


def collect_masks(
    source: MaskSource,
    count: int,
    tries: int,
    make_progress: MakeProgress = Quiet,
    found: Collection | None = None,
    on_part: Callable[[int, CleanedMasks], None] | None = None,
) -> Collection:
    """Sample until ``count`` masks are kept, at most ``tries * count`` samples.

    found: the samples of an earlier run, which are not made again. on_part: called with the number of the first
    sample of each part and its masks, for example to save them. Raises InputError when no mask is kept.
    """
    found = found or Collection()
    most = tries * count
    progress = make_progress(max(count - found.kept, 0) * source.cost)
    while found.kept < count and len(found.outcomes) < most:
        first = len(found.outcomes)
        wanted = min(count - found.kept, most - first, source.at_once)
        progress.expect(max(progress.done + wanted * source.cost - progress.total, 0))
        judged = source(first, wanted, progress)
        if len(judged.masks):
            check_images_fit("count", count, judged.masks.shape[-2:], _PLANES)
        rejected = dict(judged.rejected)
        found.masks += list(judged.masks)
        found.outcomes += [rejected.get(place, "") for place in range(wanted)]
        if on_part is not None:
            on_part(first, judged)
    if not found.kept:
        raise InputError(f"mask: {found.describe()}. Relax the rules or train longer.")
    return found


def sampled_masks(
    source: MaskSource, key: str, wanted: CollectionSettings, make_progress: MakeProgress = Quiet
) -> tuple[Tensor, str]:
    """As many masks [count, 1, H, W] of a type as are wanted, and a line of report.

    When too few are kept, those are repeated in turn, which the report says. Raises InputError when none is kept.
    """
    found = collect_masks(source, wanted.count, wanted.tries, make_progress)
    few = "" if found.kept >= wanted.count else f"; {wanted.count} were wanted, so these are repeated in turn"
    return found.repeated(wanted.count), f"{key}: {found.describe()}{few}"


def first_seed(seed: int, key: str) -> int:
    """The seed of the first sample of a type. From the same noise all types would get nearly the same masks."""
    return (seed + (zlib.crc32(key.encode()) << 24)) % LARGEST_SEED
