"""Bundles from files of either kind, and bundles and their tokens saved once, however often a node runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..files import content_key, file_digest
from ..restricted_pickle import Between
from ..store import Store, save_numbered
from .authors_encoder import RUNNING_STATISTICS, AuthorsEncoder
from .authors_files import import_authors_files
from .bundle import AnomalyBundle, load_bundle
from .conditioning import chosen_type
from .merging import merge_bundles
from .textual_inversion import prompt_name, textual_inversion_file

AS_STORED = "as stored"
"""Normalisation of an imported spatial encoder: the one in a bundle, running statistics for the authors' files."""
AUTHORS_EXTENSION = ".pt"


def open_bundle(
    path: Path, embeddings: Path, normalisation: str, save_as: str, store: Store, between: Between = lambda: None
) -> tuple[AnomalyBundle, str]:
    """A bundle, or the authors' ``spatial_encoder.pt`` with their ``embeddings``, and what to call it in a report.

    normalisation: of an encoder of the authors, AS_STORED or one of NORMALISATIONS. save_as: name of the bundle that
    the authors' files are saved to, "" for none. between: may raise to interrupt the
    reading. Raises InputError for a choice that does not fit the file, and
    BundleError for a damaged one.
    """
    if path.suffix == AUTHORS_EXTENSION:
        chosen = RUNNING_STATISTICS if normalisation == AS_STORED else normalisation
        return _imported(path, embeddings, chosen, save_as, store, between)
    if save_as:
        raise InputError(f"save_as: {path.name} is a bundle already. Leave it empty.")
    bundle = load_bundle(path, between)
    if normalisation != AS_STORED:
        if not isinstance(bundle.spatial_encoder, AuthorsEncoder):
            kind = "no" if bundle.spatial_encoder is None else f"a '{bundle.spatial_encoder.variant}'"
            raise InputError(
                f"normalisation: '{normalisation}' is for encoders in the authors' layout, the bundle has {kind} "
                f"spatial encoder. Choose '{AS_STORED}'."
            )
        bundle.spatial_encoder.normalise_by(normalisation)
    return bundle, path.name


def _imported(
    encoder: Path, embeddings: Path, normalisation: str, save_as: str, store: Store, between: Between
) -> tuple[AnomalyBundle, str]:
    name = f"{encoder.name}, {embeddings.name}"
    if not save_as:
        return import_authors_files(encoder, embeddings, normalisation, between), name
    store.new_path(save_as)  # a bad name fails before anything is read
    key = content_key("imported", file_digest(encoder), file_digest(embeddings), normalisation)
    found = store.find(key)
    if found is not None:
        return load_bundle(found, between), f"{name}, saved before as {found.name}"
    bundle = import_authors_files(encoder, embeddings, normalisation, between)
    return bundle, f"{name}, {_save(bundle, save_as, key, store)}"


def merge(
    bundles: dict[str, AnomalyBundle], spatial_encoder_of: str, save_as: str, store: Store
) -> tuple[AnomalyBundle, str]:
    """``merge_bundles``, saved once under the name ``save_as`` unless that is "", and a report."""
    merged = merge_bundles(bundles, spatial_encoder_of)
    counts = " and ".join(str(len(bundle.types)) for bundle in bundles.values())
    report = f"{counts} types merged: {', '.join(merged.types)}"
    if save_as:
        key = hashlib.sha256(merged.to_bytes()).hexdigest()[:24]
        found = store.find(key)
        report += f"; saved before as {found.name}" if found else f"; {_save(merged, save_as, key, store)}"
    return merged, report


def _save(bundle: AnomalyBundle, name: str, key: str, store: Store) -> str:
    bundle.metadata["content_key"] = key
    return f"saved as {save_numbered(store, name, bundle.to_bytes()).name}"


def save_textual_inversions(
    bundle: AnomalyBundle, name: str, defect_type: str, store: Store
) -> tuple[dict[str, Path], dict[str, str]]:
    """Textual-inversion files of one type, or of all for "", by type, and the text that stands for each in a prompt.

    A file that holds the same tokens already is used. Raises InputError for a bad name, BundleError for tokens that
    no prompt can use.
    """
    keys: Sequence[str] = [chosen_type(bundle, defect_type)] if defect_type.strip() else bundle.types
    contents = {key: textual_inversion_file(bundle, key) for key in keys}
    store.new_path(name)  # refuses a name that leads out of the folder, before it is made usable in a prompt
    files = {}
    for key, content in contents.items():
        files[key] = _save_once(store, prompt_name(f"{name.strip()}_{key.replace('/', '_')}"), content)
    return files, {key: f"embedding:{path.stem}" for key, path in files.items()}


def _save_once(store: Store, name: str, content: bytes) -> Path:
    target = store.new_path(name)
    stem = target.stem.rpartition("_")[0]
    for path in sorted(target.parent.glob(f"*{target.suffix}")):
        before, _, number = path.stem.rpartition("_")
        if before == stem and number.isdecimal() and path.stat().st_size == len(content):
            if path.read_bytes() == content:
                return path
    return save_numbered(store, name, content)
