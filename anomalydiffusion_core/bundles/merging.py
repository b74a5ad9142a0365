"""Several bundles as one, where that is possible without changing what any of them means."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..data.provenance import SOURCES
from ..errors import BundleError
from .bundle import CLIP_ROUTE, SCALE_KEY, AnomalyBundle, Encoder

_OWN = ("format_version", "kind", "types", "width", "encoder", "content_key", "stopped_at_step", "losses")
"""Entries that belong to one training or one file; the merged bundle keeps them below ``merged_from`` at most."""
_HISTORY = ("content_key", "split", "settings", "stopped_at_step", "merged_from", "imported_from")
"""What a merged bundle keeps of each of its parts."""


def merge_bundles(bundles: Mapping[str, AnomalyBundle], spatial_encoder_of: str = "") -> AnomalyBundle:
    """One bundle with the types of all, which the errors call by the names they have in ``bundles``.

    spatial_encoder_of: name of the bundle whose spatial encoder is kept; "" demands that all are the same. Tokens that
    were trained beside another spatial encoder are kept as they are. Raises BundleError, giving both values and both
    names, for bundles of different kind, base model, width, token route, spatial tokens or resolution, and for a type
    that two of them hold.
    """
    if len(bundles) < 2:
        raise BundleError(f"bundles: merging {len(bundles)} requires at least 2. Connect another one.")
    if spatial_encoder_of and spatial_encoder_of not in bundles:
        known = ", ".join(bundles)
        raise BundleError(f"spatial encoder: unknown bundle '{spatial_encoder_of}'. Give one of {known}.")
    for (name, one), (other_name, other) in combinations(bundles.items(), 2):
        _check_alike(name, one, other_name, other)
        for key in one.types:
            if key in other.tokens:
                raise BundleError(f"type: '{key}' is in {name} and in {other_name}. Merge bundles of different types.")
        if not spatial_encoder_of and not _same_encoder(one.spatial_encoder, other.spatial_encoder):
            raise BundleError(
                f"spatial encoder: those of {name} and of {other_name} are not the same. Choose whose is kept, or "
                "train all types in one run."
            )
    chosen = bundles[spatial_encoder_of or next(iter(bundles))]
    tokens = {key: rows for bundle in bundles.values() for key, rows in bundle.tokens.items()}
    return AnomalyBundle(chosen.kind, tokens, chosen.spatial_encoder, _merged_metadata(bundles, chosen))


def _check_alike(name: str, one: AnomalyBundle, other_name: str, other: AnomalyBundle) -> None:
    questions: list[tuple[str, Any, Any]] = [
        ("kind", one.kind, other.kind),
        ("base model", one.base_fingerprint, other.base_fingerprint),
        ("LoRA", one.base.adaptation, other.base.adaptation),
        ("width", one.width, other.width),
        ("token route", one.token_route, other.token_route),
        ("number of spatial tokens", _count(one), _count(other)),
        ("resolution", one.resolution, other.resolution),
        ("size of what was learned", one.canvas, other.canvas),
    ]
    if one.token_route == CLIP_ROUTE:
        questions.append(("template", one.template, other.template))
        questions.append(("placeholder", one.placeholder, other.placeholder))
        for what in ("text_encoder_fingerprint", "text_encoder_adaptation"):
            questions.append((what.replace("_", " "), one.metadata.get(what, ""), other.metadata.get(what, "")))
    for what, value, other_value in questions:
        if value != other_value:
            raise BundleError(
                f"{what}: {name} has {value or 'none'}, {other_name} has {other_value or 'none'}. Only bundles that "
                "agree in it can be merged."
            )


def _count(bundle: AnomalyBundle) -> int:
    return bundle.spatial_encoder.tokens if bundle.spatial_encoder is not None else 0


def _same_encoder(one: Encoder | None, other: Encoder | None) -> bool:
    if one is None or other is None:
        return one is other
    first, second = one.state_dict(), other.state_dict()
    alike = one.variant == other.variant and one.looks_at_batch == other.looks_at_batch
    return alike and first.keys() == second.keys() and all(_equal(first[name], second[name]) for name in first)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.cpu(), other.cpu())


def _merged_metadata(bundles: Mapping[str, AnomalyBundle], chosen: AnomalyBundle) -> dict[str, Any]:
    metadata = {name: value for name, value in chosen.metadata.items() if name not in _OWN}
    files: dict[str, str] = {}
    for bundle in bundles.values():
        files |= bundle.metadata.get("training_files", {})
    if files:
        metadata["training_files"] = files
    scales = {key: view for bundle in bundles.values() for key, view in (bundle.metadata.get(SCALE_KEY) or {}).items()}
    if scales:
        metadata[SCALE_KEY] = scales
    sources = {name: mark for bundle in bundles.values() for name, mark in bundle.learned_from.items()}
    if sources:
        metadata[SOURCES] = sources
    metadata["merged_from"] = [
        {"types": list(bundle.types), **{key: bundle.metadata[key] for key in _HISTORY if key in bundle.metadata}}
        for bundle in bundles.values()
    ]
    return metadata
