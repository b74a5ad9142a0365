"""ComfyUI's model, input and output folders: what lies there, and where new files go."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import folder_paths

from ...anomalydiffusion_core.bundles.bundle import write_new
from ...anomalydiffusion_core.errors import InputError

BUNDLES = "anomalydiffusion"
"""Model folder of trained bundles."""
CHECKPOINTS = "anomalydiffusion_checkpoints"
"""Model folder of checkpoints that the stock loader does not know; holds the demo prior shipped with the extension."""
BACKBONES = "anomalydiffusion_backbones"
"""Model folder of ImageNet weights that a spatial encoder can start from."""
EXTENSIONS = {".safetensors"}
BACKBONE_EXTENSIONS = {".pth", ".pt", ".safetensors"}
SHIPPED_MODELS = Path(__file__).resolve().parents[2] / "models"
AUTHORS_EXTENSION = ".pt"
"""Beside bundles the folder may hold files of the authors' code."""
EMBEDDINGS = "embeddings"
LORAS = "loras"


def register_model_folders() -> None:
    """Tell ComfyUI our model folders, beside whatever extra_model_paths.yaml says about them."""
    models = Path(folder_paths.models_dir)
    _register(BUNDLES, [models / BUNDLES], EXTENSIONS | {AUTHORS_EXTENSION})
    _register(CHECKPOINTS, [models / CHECKPOINTS, SHIPPED_MODELS])
    _register(BACKBONES, [models / BACKBONES], BACKBONE_EXTENSIONS)


def _register(name: str, paths: Sequence[Path], files: set[str] = EXTENSIONS) -> None:
    # add_model_folder_path would leave a new name with an empty set of extensions, which lists every file.
    known, extensions = folder_paths.folder_names_and_paths.get(name, ([], set()))
    merged = [*known, *(str(path) for path in paths if str(path) not in known)]
    folder_paths.folder_names_and_paths[name] = (merged, set(extensions) | files)


def model_files(folder: str) -> list[str]:
    """Names of the files in a model folder, with "/", but for hidden ones; none before the folders are registered."""
    if folder not in folder_paths.folder_names_and_paths:
        return []
    names = [name.replace("\\", "/") for name in folder_paths.get_filename_list(folder)]
    return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]


def model_file(folder: str, name: str) -> Path:
    """Full path of a file chosen by name. Raises InputError that lists the files there are."""
    names = model_files(folder)
    wanted = name.replace("\\", "/")
    found = folder_paths.get_full_path(folder, wanted) if wanted in names else None
    if found is None:
        there = ", ".join(names) or "none"
        where = " or ".join(folder_paths.get_folder_paths(folder))
        raise InputError(f"file: there is no '{name}'. Choose one of: {there}; files belong in {where}.")
    return Path(found)


def contained(root: Path, relative: str, name: str) -> Path:
    """``root / relative`` where that really lies inside ``root``, links followed.

    Raises InputError for an empty or absolute path and for one that leads out.
    """
    text = relative.strip().replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    inside = bool(parts) and not text.startswith("/") and ":" not in parts[0] and ".." not in parts
    path = root.joinpath(*parts) if inside else root
    if not inside or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{name}: '{relative}' does not lie inside {root}. Give a name like 'anomalydiffusion/run'.")
    return path


def numbered(parent: Path, stem: str, suffix: str = "") -> Path:
    """The first free ``<stem>_00001<suffix>``, counted on from the highest number there is."""
    highest = 0
    for path in parent.iterdir() if parent.is_dir() else ():
        digits = path.name.removeprefix(f"{stem}_").removesuffix(suffix)
        highest = max(highest, int(digits) if digits.isdecimal() else 0)
    return parent / f"{stem}_{highest + 1:05d}{suffix}"


def new_bundle_path(prefix: str) -> Path:
    """A numbered file in ComfyUI's models/anomalydiffusion that is not there yet. Raises InputError as contained."""
    path = contained(Path(folder_paths.get_folder_paths(BUNDLES)[0]), prefix, "name")
    return numbered(path.parent, path.name, ".safetensors")


def training_state_path(identity: str) -> Path:
    """Where a training of this identity keeps its state; the folder is hidden and its files are listed nowhere."""
    return Path(folder_paths.get_folder_paths(BUNDLES)[0]) / ".training" / f"{identity}.pt"


def find_bundle(content_key: str) -> Path | None:
    """A stored bundle that a training of the same content wrote, None when there is none."""
    from safetensors import SafetensorError, safe_open

    for name in model_files(BUNDLES):
        if name.endswith(AUTHORS_EXTENSION):
            continue
        path = model_file(BUNDLES, name)
        try:
            with safe_open(str(path), framework="pt") as stored:
                metadata = json.loads((stored.metadata() or {}).get("anomalydiffusion", "{}"))
        except (SafetensorError, OSError, ValueError):
            continue  # somebody else's damaged file is no reason to fail here
        if metadata.get("content_key") == content_key:
            return path
    return None


def output_root() -> Path:
    """ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory()).absolute()


@contextmanager
def new_output_folder(prefix: str) -> Iterator[tuple[Path, Path]]:
    """A new numbered folder in the output folder, as (draft to write into, final path).

    The draft becomes the final folder at the end; after an exception nothing is left. Raises InputError as contained.
    """
    path = contained(output_root(), prefix, "folder")
    final = numbered(path.parent, path.name)
    draft = final.with_name(f".{final.name}.{os.getpid()}.partial")
    draft.mkdir(parents=True)
    try:
        yield draft, final
        draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def relative_to_output(path: Path) -> str:
    """Path of something in the output folder, relative to it and with "/"; the path itself when it lies elsewhere."""
    root = output_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def output_picture(path: Path) -> dict[str, str]:
    """How ComfyUI's page and history name a picture in the output folder."""
    return {"filename": path.name, "subfolder": relative_to_output(path.parent), "type": "output"}


def readable_folder(text: str, name: str, root: Path) -> Path:
    """An existing folder to read from: absolute, or relative to ``root``. Raises InputError that names both."""
    cleaned = text.strip().strip("\"'")
    if not cleaned:
        raise InputError(f"{name}: is empty. Give a folder, absolute or relative to {root}.")
    given = Path(cleaned).expanduser()
    candidates = [given] if given.is_absolute() else [root / given, root / cleaned.replace("\\", "/")]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise InputError(f"{name}: {candidates[-1]} does not exist. Give a folder, absolute or relative to {root}.")


def data_folder(text: str) -> Path:
    """Folder of a data set: absolute, or relative to ComfyUI's input folder."""
    return readable_folder(text, "folder", Path(folder_paths.get_input_directory()).absolute())


def folder_fingerprint(folder: Path) -> str:
    """Changes when a file below ``folder`` is added, removed or rewritten; reads no file."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(folder).as_posix()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def new_model_path(folder: str, prefix: str) -> Path:
    """A numbered safetensors file in a model folder that is not there yet. Raises InputError as contained."""
    paths = folder_paths.get_folder_paths(folder)
    if not paths:
        raise InputError(f"name: ComfyUI has no folder for {folder}. Look at its extra_model_paths.yaml.")
    path = contained(Path(paths[0]), prefix, "name")
    return numbered(path.parent, path.name, ".safetensors")


def save_once(target: Path, content: bytes, folder: str) -> Path:
    """Write ``content`` to the new file ``target``, unless a file of the same numbered name holds it already.

    Returns where it is. ComfyUI's lists of the folder show it at once.
    """
    stem = target.stem.rpartition("_")[0]
    for path in sorted(target.parent.glob("*.safetensors")):
        same_name = path.stem.rpartition("_")[0] == stem and path.stem.rpartition("_")[2].isdecimal()
        if same_name and path.stat().st_size == len(content) and path.read_bytes() == content:
            return path
    write_new(target, content)
    # The host looks at the times of folders, which on some file systems are coarse.
    folder_paths.filename_list_cache.pop(folder, None)
    return target


def file_digest(path: Path) -> str:
    """A hash of a file's bytes, for content keys. Raises InputError when it is not there."""
    if not path.is_file():
        raise InputError(f"file: {path} does not exist. Check the name and the folder.")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
