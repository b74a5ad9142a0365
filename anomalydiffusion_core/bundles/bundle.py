"""Bundles: what training learned, in one safetensors file.

Keys: ``<kind>/<object>/<defect>`` [k, width] for each type and ``spatial/...`` for the spatial encoder of an anomaly
bundle. Everything else is JSON under the one metadata key ``anomalydiffusion``: format version, kind, width, token
route, encoder, base-model fingerprint, settings, loss history and whatever the trainer added. Nothing in the file
depends on the time or the machine, so the same training gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditioning.spatial_encoder import SpatialEncoder, build_spatial_encoder
from ..conditioning.template import DEFAULT_PLACEHOLDER, DEFAULT_TEMPLATE
from ..data.provenance import marks_of, plain_marks
from ..errors import BundleError, InputError
from ..files import write_new as write_new_file
from ..identity import Identity
from ..plain_json import finite_values
from ..restricted_pickle import Between
from ..sampling.blending import check_mask
from ..scale import TrainedView
from ..store import METADATA_KEY
from ..weights import (
    LARGEST_RESOLUTION,
    Header,
    check_finite,
    check_shapes,
    parsed_metadata,
    read_header,
    read_safetensors,
    shapes_of,
    whole_number,
)
from .authors_encoder import AUTHORS_VARIANT, RUNNING_STATISTICS, AuthorsEncoder

FORMAT_VERSION = 1
KINDS = ("anomaly", "mask")
CONTEXT_ROUTE, CLIP_ROUTE = "context", "clip"
TOKEN_ROUTES = (CONTEXT_ROUTE, CLIP_ROUTE)
"""``context``: the tokens are the cross-attention context itself (Eq. 8). ``clip``: they pass through the text encoder
in place of the placeholder of a prompt template, as in the authors' code."""
MOST_VALUES = 16384
"""Largest width, and most tokens of a type or of a spatial encoder, that a file may have."""
_SPATIAL = "spatial/"
SCALE_KEY = "scale"
"""Metadata entry: how each type was looked at, see `scale.TrainedView`. Older bundles do not have it."""
Encoder = SpatialEncoder | AuthorsEncoder
"""A spatial encoder that was trained here, or one in the layout of the authors' code."""


@dataclass
class AnomalyBundle:
    """Learned tokens per type ("object/defect" -> float32 [k, width]) and, for kind "anomaly", the spatial encoder.

    metadata is JSON-able; its reserved entries are rewritten on saving.
    """

    kind: str
    tokens: dict[str, Tensor]
    spatial_encoder: Encoder | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BundleError(f"bundle: the kind {self.kind!r} is not known. It must be one of {', '.join(KINDS)}.")
        if not self.tokens:
            raise BundleError("bundle: holds no defect type. Train at least one.")
        for key, rows in self.tokens.items():
            if key.count("/") != 1 or not all(key.split("/")):
                raise BundleError(f"bundle: the type {key!r} is not of the form object/defect. Rename it.")
            if rows.ndim != 2 or rows.shape[1] != self.width:
                raise BundleError(
                    f"bundle: the tokens of {key!r} have the shape {tuple(rows.shape)}, those of "
                    f"{next(iter(self.tokens))!r} the width {self.width}. All types of a bundle share one width."
                )
        if (self.kind == "anomaly") != (self.spatial_encoder is not None):
            has = "has a" if self.spatial_encoder is not None else "has no"
            raise BundleError(f"bundle: the kind is {self.kind!r} but it {has} spatial encoder. The two must agree.")
        if self.spatial_encoder is not None and self.spatial_encoder.width != self.width:
            raise BundleError(
                f"bundle: the spatial encoder has the width {self.spatial_encoder.width}, the tokens {self.width}. "
                "Both must come from one training."
            )

    @property
    def types(self) -> tuple[str, ...]:
        """The types, each "object/defect"."""
        return tuple(self.tokens)

    @property
    def width(self) -> int:
        """Width of the tokens: that of the model's context, or of the text encoder's token embeddings."""
        return int(next(iter(self.tokens.values())).shape[-1])

    @property
    def token_route(self) -> str:
        """How the tokens reach the model; a bundle is only used the way it was trained."""
        return str(self.metadata.get("token_route", CONTEXT_ROUTE))

    @property
    def template(self) -> str:
        """Prompt template of the token route ``clip``."""
        return str(self.metadata.get("template") or DEFAULT_TEMPLATE)

    @property
    def placeholder(self) -> str:
        """What stands in the template where the tokens belong."""
        return str(self.metadata.get("placeholder") or DEFAULT_PLACEHOLDER)

    @property
    def resolution(self) -> int:
        """The resolution in pixels that it was trained at, 0 when not recorded."""
        return int((self.metadata.get("settings") or {}).get("resolution") or 0)

    @property
    def base(self) -> Identity:
        """The model that it was trained on, with its LoRA."""
        return Identity.of(self.metadata)

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) in pixels that it was trained at, 0 when not recorded."""
        views = [self.trained_view(key) for key in self.types]
        known = next((view for view in views if view is not None), None)
        return (self.resolution, self.resolution) if known is None else (known.height, known.width)

    def trained_view(self, key: str) -> TrainedView | None:
        """How a type was looked at; None for a bundle from before that was recorded. BundleError for a damaged one."""
        recorded = self.metadata.get(SCALE_KEY) or {}
        try:
            return TrainedView.of_record(recorded.get(key))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"bundle: its scale of {key!r} is damaged ({error!r}). Use another copy.") from error

    def scale_summary(self) -> str:
        """The scale of each type, or that it is not recorded."""
        views = {key: self.trained_view(key) for key in self.types}
        texts = {key: "scale not recorded" if view is None else view.text() for key, view in views.items()}
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        return "; ".join(f"{key}: {text}" for key, text in texts.items())

    @property
    def base_fingerprint(self) -> str:
        """Fingerprint of the base model that it was trained on, "" when not recorded."""
        return self.base.base

    @property
    def learned_from(self) -> dict[str, Any]:
        """Marks of the images that it was learned from, as plain values."""
        return plain_marks(marks_of(self.metadata))

    def summary(self) -> str:
        """Kind, sizes, token route, spatial encoder, scale and types, on one line."""
        encoder = self.spatial_encoder
        spatial = "no spatial encoder" if encoder is None else f"encoder {encoder.variant}, {encoder.tokens} tokens"
        if isinstance(encoder, AuthorsEncoder):
            spatial += f", {encoder.normalisation}"
        counts = " or ".join(str(count) for count in sorted({len(rows) for rows in self.tokens.values()}))
        lora = f"; trained with {self.base.lora}" if self.base.adaptation else ""
        return (
            f"kind {self.kind}, {counts} tokens of width {self.width} per type, token route {self.token_route}, "
            f"{spatial}, {self.scale_summary()}, types {', '.join(self.types)}{lora}{self._unfinished()}"
        )

    def _unfinished(self) -> str:
        """What to say of the bundle of a training that was stopped, "" for a finished one."""
        stopped = self.metadata.get("stopped_at_step")
        if stopped is None:
            return ""
        wanted = (self.metadata.get("settings") or {}).get("steps", "?")
        return f". Warning: its training was stopped after step {stopped} of {wanted}; run it again to finish it"

    def type_tokens(self, key: str) -> Tensor:
        """Tokens of one type [k, width]. Raises BundleError that lists the types."""
        if key not in self.tokens:
            raise BundleError(f"type: {key!r} is not in this bundle. Choose one of: {', '.join(self.types)}.")
        return self.tokens[key]

    def require(self, kind: str, width: int | None = None, route: str = CONTEXT_ROUTE) -> None:
        """Raise BundleError, giving both values, unless the bundle is of ``kind`` and fits ``width`` and ``route``.

        width: that of the model's context, with the route ``clip`` that of the text encoder's token embeddings.
        """
        if self.kind != kind:
            raise BundleError(
                f"bundle: this is a bundle of kind {self.kind!r}, kind {kind!r} is required. Connect the other one."
            )
        if self.token_route not in TOKEN_ROUTES:
            raise BundleError(
                f"bundle: it was trained with the token route {self.token_route!r}, this version knows "
                f"{', '.join(TOKEN_ROUTES)}. Update the extension."
            )
        if self.token_route != route:
            advice = "Connect the CLIP of its model" if self.token_route == CLIP_ROUTE else "Use it without a CLIP"
            raise BundleError(
                f"bundle: it was trained with the token route {self.token_route!r} and cannot be used with "
                f"{route!r}. {advice}."
            )
        if width is not None and self.width != width:
            what = "the model's context" if route == CONTEXT_ROUTE else "the text encoder"
            raise BundleError(
                f"bundle: its tokens have the width {self.width}, {what} has {width}. "
                "Use the model it was trained on, or train it on this model."
            )

    def save(self, path: Path) -> None:
        """Write the bundle to ``path`` in one step. Raises BundleError when the file exists or cannot be written."""
        write_new(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file; the same for the same bundle."""
        from safetensors.torch import save

        tensors = {f"{self.kind}/{key}": rows for key, rows in self.tokens.items()}
        reserved: dict[str, Any] = {"format_version": FORMAT_VERSION, "kind": self.kind, "types": list(self.types)}
        reserved |= {"width": self.width, "token_route": self.token_route}
        if self.spatial_encoder is not None:
            state = self.spatial_encoder.state_dict()
            tensors |= {f"spatial/{name}": value for name, value in state.items()}
            reserved["encoder"] = {"variant": self.spatial_encoder.variant, "tokens": self.spatial_encoder.tokens}
            if isinstance(self.spatial_encoder, AuthorsEncoder):
                reserved["encoder"]["normalisation"] = self.spatial_encoder.normalisation
        plain = {name: value.detach().float().cpu().contiguous().clone() for name, value in tensors.items()}
        text = json.dumps(finite_values({**self.metadata, **reserved}), sort_keys=True, ensure_ascii=True)
        return bytes(save(plain, metadata={METADATA_KEY: text}))


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet, whole or not at all. Raises BundleError."""
    try:
        write_new_file(path, content)
    except FileExistsError as error:
        raise BundleError(f"file: {path.name} exists already. Choose another name.") from error
    except OSError as error:
        raise BundleError(
            f"file: {path} cannot be written ({error.strerror}). Check the folder and the free space."
        ) from error


def read_metadata(path: Path, header: Header) -> dict[str, Any]:
    """The metadata of a bundle, compared with the shapes that its file holds. Raises BundleError that names the file.

    Afterwards the tensors of all types are there, [k, width] with one width, and all numbers are within limits.
    """
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        raise BundleError(f"file: {path.name} has no {METADATA_KEY!r} metadata. It is not a bundle of this extension.")
    metadata = parsed_metadata(path, text)
    version, kind, types = (metadata.get(name) for name in ("format_version", "kind", "types"))
    if version != FORMAT_VERSION:
        raise BundleError(
            f"file: {path.name} has the format version {str(version)[:40]}, this version reads {FORMAT_VERSION}. "
            "Update, or use another copy."
        )
    if kind not in KINDS:
        raise BundleError(f"file: {path.name} is of kind {str(kind)[:40]!r}, known are {', '.join(KINDS)}. Update.")
    if not isinstance(types, list) or not types or not all(isinstance(key, str) for key in types):
        raise BundleError(f"file: the metadata of {path.name} list no types. Use another copy.")
    width = whole_number(path, "width", metadata.get("width"), 1, MOST_VALUES)
    for key in types:
        shape = header.shapes.get(f"{kind}/{key}")
        if shape is None:
            raise BundleError(
                f"file: {path.name} lacks the tensor '{kind}/{key}'. It is incomplete; use another copy."
            )
        if len(shape) != 2 or not 1 <= shape[0] <= MOST_VALUES or shape[1] != width:
            raise BundleError(f"file: '{kind}/{key}' in {path.name} has the shape {shape}, not [k, {width}].")
    settings = metadata.get("settings") or {}
    if not isinstance(settings, dict):
        raise BundleError(f"file: the settings in {path.name} are no mapping. Use another copy.")
    whole_number(path, "resolution", settings.get("resolution") or 0, 0, LARGEST_RESOLUTION)
    return metadata


def load_bundle(path: Path, between: Between = lambda: None) -> AnomalyBundle:
    """Read a bundle. Raises BundleError that names the file and what is missing, wrong, or not finite in it.

    between: called now and then; may raise to interrupt the reading.
    """
    path = Path(path)
    header = read_header(path)
    metadata = read_metadata(path, header)
    kind = metadata["kind"]
    encoder = _described_encoder(path, metadata, header) if kind == "anomaly" else None
    stored = read_safetensors(path, between)
    check_finite(path, stored)
    tokens = {key: stored[f"{kind}/{key}"].float() for key in metadata["types"]}
    if encoder is None:
        return AnomalyBundle(kind, tokens, None, metadata)
    weights = {name.removeprefix(_SPATIAL): value for name, value in stored.items() if name.startswith(_SPATIAL)}
    if isinstance(encoder, SpatialEncoder):
        encoder.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
        return AnomalyBundle(kind, tokens, encoder.eval().requires_grad_(False), metadata)
    try:
        return AnomalyBundle(kind, tokens, AuthorsEncoder.from_state(weights, encoder), metadata)
    except (BundleError, InputError) as error:
        raise BundleError(f"file: {path.name}: {error}") from error


def _described_encoder(path: Path, metadata: Mapping[str, Any], header: Header) -> SpatialEncoder | str:
    """The spatial encoder that a file describes, without memory for its weights, whose shapes are those in the file.

    Of an encoder in the authors' layout only its normalisation: that layout is read from the shapes themselves.
    """
    described = metadata.get("encoder")
    if not isinstance(described, dict):
        raise BundleError(f"file: {path.name} does not describe its spatial encoder. Use another copy.")
    variant = described.get("variant")
    if variant == AUTHORS_VARIANT:
        return str(described.get("normalisation", RUNNING_STATISTICS))
    count = whole_number(path, "tokens of the encoder", described.get("tokens"), 0, MOST_VALUES)
    found = {name: shape for name, shape in header.shapes.items() if name.startswith(_SPATIAL)}
    heads = {name.split(".")[1] for name in found if name.startswith(f"{_SPATIAL}heads.")}
    if len(heads) != count:  # before anything of that size is built
        raise BundleError(f"file: {path.name} says {count} tokens of the encoder and holds {len(heads)}.")
    try:
        with torch.device("meta"):
            encoder = build_spatial_encoder(str(variant), count, int(metadata["width"]))
    except InputError as error:
        raise BundleError(f"file: {path.name}: {error}") from error
    check_shapes(path, found, {_SPATIAL + name: shape for name, shape in shapes_of(encoder.state_dict()).items()})
    return encoder


def anomaly_tokens(bundle: AnomalyBundle, key: str, masks: Tensor) -> Tensor:
    """The tokens e = [e_a (k), e_s (n)] of one type for each mask: [B, 1, H, W] to [B, k + n, width].

    Each row of the result depends on its own mask only, but for an imported encoder with batch statistics. What they
    are depends on the bundle's token route. Raises BundleError for an unknown type or a bundle without a spatial
    encoder, InputError for an empty or grey mask and for one of a size that an imported encoder does not take.
    """
    rows = bundle.type_tokens(key)
    check_mask(masks)
    encoder = bundle.spatial_encoder
    if encoder is None:
        raise BundleError("bundle: it has no spatial encoder. Use an anomaly bundle.")
    device = next(encoder.parameters()).device
    with torch.no_grad():
        # One mask at a time: batched kernels may round differently with other batch mates.
        parts = masks.split(len(masks) if encoder.looks_at_batch else 1)
        spatial = torch.cat([encoder(part.to(device, torch.float32)) for part in parts])
    rows = rows.to(spatial)
    return torch.cat([rows.expand(len(masks), -1, -1), spatial], dim=1)


def anomaly_context(bundle: AnomalyBundle, key: str, masks: Tensor) -> Tensor:
    """The conditioning e of one type for each mask, as ``anomaly_tokens``, of a bundle whose tokens are the context.

    Raises BundleError for a bundle of another kind or token route.
    """
    bundle.require("anomaly")
    return anomaly_tokens(bundle, key, masks)
