"""The files of the authors' code as bundles: ``spatial_encoder.pt``, ``embeddings.pt``, and mask embeddings.

The first is a state dict (in old files the pickled module), the second a dictionary of which ``string_to_param`` holds
the embeddings [k, width] by "object+defect". k, n, the width and the names are what the files say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


def import_authors_masks(
    folder: Path, objects: Collection[str] = (), between: Between = lambda: None
) -> AnomalyBundle:
    """The authors' folder of mask checkpoints as a mask bundle of the token route ``clip``.

    Each type is ``<object>-<defect>/checkpoints/embeddings.pt`` with the single name "*"; the file alone does not say
    where the object's name ends. objects: names that hold a "-", such as metal-nut; elsewhere the first "-" divides.
    Raises BundleError for a folder without such files and for a file of another kind.
    """
    folder = Path(folder)
    tokens = {}
    for path in sorted(folder.glob(f"*/checkpoints/{EMBEDDINGS_NAME}")):
        name = path.parent.parent.name
        known = max((one for one in objects if name.startswith(f"{one}-")), key=len, default=name.split("-")[0])
        defect = name[len(known) + 1 :]
        if not known or not defect:
            raise BundleError(f"file: the folder {name} is not named object-defect. Rename it.")
        tokens[f"{known}/{defect}"] = read_mask_embedding(path, between)
    if not tokens:
        raise BundleError(
            f"file: {folder} holds no <object>-<defect>/checkpoints/{EMBEDDINGS_NAME}. Give the folder "
            "mask-checkpoints."
        )
    widths = sorted({rows.shape[1] for rows in tokens.values()})
    if len(widths) > 1:
        raise BundleError(f"file: the mask embeddings in {folder} have the widths {widths}. Use files of one model.")
    metadata = {
        "token_route": CLIP_ROUTE,
        "template": DEFAULT_TEMPLATE,
        "placeholder": DEFAULT_PLACEHOLDER,
        "anomaly_tokens": max(len(rows) for rows in tokens.values()),
        "imported_from": [folder.name],
    }
    return AnomalyBundle("mask", tokens, None, metadata)


def read_mask_embedding(path: Path, between: Between = lambda: None) -> Tensor:
    """The one mask embedding float32 [k', width] of a file. Raises BundleError for a file of another kind."""
    path = Path(path)
    stored = _embeddings_of(read_restricted(path, between))
    found = {} if stored is None else tensors_in(stored)
    if list(found) != [_MASK_KEY]:
        names = ", ".join(list(found)[:3]) or "none"
        raise BundleError(
            f"file: {path.name} holds embeddings named {names}; a mask embedding has the one name '{_MASK_KEY}'. "
            "Choose the embeddings.pt of a mask checkpoint."
        )
    return _checked(found[_MASK_KEY], _MASK_KEY, path)


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
