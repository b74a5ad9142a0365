"""The files of the authors' code as a bundle: ``spatial_encoder.pt`` and ``embeddings.pt``.

The first is a state dict (in old files the pickled module), the second a dictionary of which ``string_to_param`` holds
the embeddings [k, width] by "object+defect". k, n, the width and the names are what the files say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..conditioning.template import DEFAULT_PLACEHOLDER, DEFAULT_TEMPLATE
from ..errors import BundleError
from ..restricted_pickle import Between, read_restricted, tensors_in
from .authors_encoder import RUNNING_STATISTICS, AuthorsEncoder
from .bundle import CLIP_ROUTE, AnomalyBundle

EMBEDDINGS_KEY = "string_to_param"
EMBEDDINGS_NAME = "embeddings.pt"
_MASK_KEY = "*"


def import_authors_files(
    encoder_path: Path,
    embeddings_path: Path,
    normalisation: str = RUNNING_STATISTICS,
    between: Between = lambda: None,
) -> AnomalyBundle:
    """Both files as an anomaly bundle of the token route ``clip``: the tokens belong into "a photo of a *".

    The base model of the authors is the text-to-image model of CompVis, whose text encoder has the width 1280. Its
    fingerprint is not in the files. ``between``: called now and then; may raise to interrupt the reading. Raises
    BundleError that names the file and what is missing or wrong in it.
    """
    encoder = read_spatial_encoder(encoder_path, normalisation, between)
    tokens = read_embeddings(embeddings_path, between)
    metadata = {
        "token_route": CLIP_ROUTE,
        "template": DEFAULT_TEMPLATE,
        "placeholder": DEFAULT_PLACEHOLDER,
        "anomaly_tokens": max(len(rows) for rows in tokens.values()),
        "spatial_tokens": encoder.tokens,
        "settings": {"resolution": encoder.resolution},
        "imported_from": [Path(encoder_path).name, Path(embeddings_path).name],
    }
    return AnomalyBundle("anomaly", tokens, encoder, metadata)


def read_spatial_encoder(
    path: Path, normalisation: str = RUNNING_STATISTICS, between: Between = lambda: None
) -> AuthorsEncoder:
    """The spatial encoder in a file. Raises BundleError for a file that holds something else."""
    path = Path(path)
    stored = read_restricted(path, between)
    if _embeddings_of(stored) is not None:
        raise BundleError(
            f"file: {path.name} holds embeddings ('{EMBEDDINGS_KEY}'), not a spatial encoder. Choose it as the "
            "embeddings, and the file spatial_encoder.pt here."
        )
    try:
        return AuthorsEncoder.from_state(tensors_in(stored), normalisation)
    except BundleError as error:
        raise BundleError(f"file: {path.name}: {error}") from error


def read_embeddings(path: Path, between: Between = lambda: None) -> dict[str, Tensor]:
    """Anomaly embeddings float32 [k, width] by "object/defect".

    Raises BundleError for a file without them, for a mask embedding, and for a name that is not "object+defect".
    """
    path = Path(path)
    stored = _embeddings_of(read_restricted(path, between))
    if stored is None:
        raise BundleError(f"file: {path.name} lacks the key '{EMBEDDINGS_KEY}'. Choose the file embeddings.pt.")
    found = tensors_in(stored)
    if list(found) == [_MASK_KEY]:
        raise BundleError(
            f"file: {path.name} holds a mask embedding (its one name is '{_MASK_KEY}'); anomaly "
            "embeddings named object+defect are required. Choose the embeddings.pt of the anomaly checkpoints."
        )
    if not found:
        raise BundleError(f"file: {path.name} holds no embedding in '{EMBEDDINGS_KEY}'. Use another copy.")
    return {_type_of(name, path): _checked(rows, name, path) for name, rows in found.items()}


def _embeddings_of(stored: Any) -> Any:
    return stored.get(EMBEDDINGS_KEY) if isinstance(stored, Mapping) else None


def _type_of(name: str, path: Path) -> str:
    parts = name.strip().split("+")
    if len(parts) != 2 or not all(parts) or "/" in name:
        raise BundleError(f"file: {path.name} names an embedding '{name}', expected is object+defect. Rename it.")
    return "/".join(parts)


def _checked(rows: Tensor, name: str, path: Path) -> Tensor:
    if rows.ndim != 2 or not rows.is_floating_point() or not bool(rows.isfinite().all()):
        raise BundleError(
            f"file: the embedding '{name}' in {path.name} has the shape {tuple(rows.shape)} and the type "
            f"{rows.dtype}; expected are finite rows [k, width]. Use another copy."
        )
    return rows.float().contiguous()
