"""ComfyUI's model, input and output folders: what lies there, and where new files go."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import folder_paths

from ...anomalydiffusion_core.backends.text2img import CHECKPOINT_EXTENSION
from ...anomalydiffusion_core.bundles.saving import AUTHORS_EXTENSION
from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.files import (
    NumberedDraft,
    contained,
    find_keyed_folder,
    new_numbered_folder,
    numbered,
)
from ...anomalydiffusion_core.identity import Identity, find_lora
from ...anomalydiffusion_core.reading import confined, file_stamp, is_folder
from ...anomalydiffusion_core.store import find_by_key

logger = logging.getLogger(__name__)
BUNDLES = "anomalydiffusion"
"""Model folder of trained bundles."""
CHECKPOINTS = "anomalydiffusion_checkpoints"
"""Model folder of checkpoints that the stock loader does not know; holds the demo prior shipped with the extension."""
BACKBONES = "anomalydiffusion_backbones"
"""Model folder of ImageNet weights that a spatial encoder can start from."""
EXTENSIONS = {".safetensors"}
BACKBONE_EXTENSIONS = {".pth", ".pt", ".safetensors"}
SHIPPED_MODELS = Path(__file__).resolve().parents[2] / "models"
EMBEDDINGS = "embeddings"
READ_ROOTS_VARIABLE = "ANOMALYDIFFUSION_READ_ROOTS"
"""Environment variable that confines all reading to input, output, our model folders, and the folders listed in it."""
LORAS = "loras"


def register_model_folders() -> None:
    """Tell ComfyUI our model folders, beside whatever extra_model_paths.yaml says about them."""
    models = Path(folder_paths.models_dir)
    _register(BUNDLES, [models / BUNDLES], EXTENSIONS | {AUTHORS_EXTENSION})
    _register(CHECKPOINTS, [models / CHECKPOINTS, SHIPPED_MODELS], EXTENSIONS | {CHECKPOINT_EXTENSION})
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
        raise InputError(f"file: unknown file '{name}'. Choose one of: {there}; files belong in {where}.")
    return Path(found)


def applied_lora(wanted: Identity) -> Path | None:
    """The file in ComfyUI's folder of LoRAs that an identity means, None where none there is the same."""
    return find_lora([model_file(LORAS, name) for name in model_files(LORAS)], wanted)


class ModelStore:
    """The core's Store in one of ComfyUI's model folders; states of trainings lie hidden beside the bundles."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def new_path(self, name: str) -> Path:
        """A numbered file that does not exist yet. Raises InputError for a name that leads out of the folder."""
        paths = folder_paths.get_folder_paths(self.folder)
        if not paths:
            raise InputError(f"name: ComfyUI has no folder for {self.folder}. Look at its extra_model_paths.yaml.")
        path = contained(Path(paths[0]), name, "name")
        return numbered(path.parent, path.name, ".safetensors")

    def find(self, content_key: str) -> Path | None:
        """A file that was written for the same content."""
        names = [name for name in model_files(self.folder) if not name.endswith(AUTHORS_EXTENSION)]
        paths = {name: folder_paths.get_full_path(self.folder, name) for name in names}
        for name in (name for name, path in paths.items() if path is None):
            logger.warning("passed over: %s in models/%s is a link to nothing", name, self.folder)
        return find_by_key([Path(path) for path in paths.values() if path is not None], content_key)

    def state_path(self, identity: str) -> Path:
        """Where a training of this identity keeps its state; no list of files shows it."""
        return Path(folder_paths.get_folder_paths(BUNDLES)[0]) / ".training" / f"{identity}.pt"

    def written(self, path: Path) -> None:
        """ComfyUI looks at the times of folders, which on some file systems are coarse."""
        folder_paths.filename_list_cache.pop(self.folder, None)


def file_fingerprint(folder: str, name: str | None) -> str:
    """Changes with a file of a model folder. Empty for a connected name, which is not known yet, and for no file.

    The error about a missing file belongs into execute, where the user sees it.
    """
    if not name or name.replace("\\", "/") not in model_files(folder):
        return ""
    return repr(file_stamp(model_file(folder, name)))


def output_root() -> Path:
    """ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory()).absolute()


def output_path(prefix: str) -> Path:
    """A path in the output folder. Raises InputError for one that leads out of it."""
    return contained(output_root(), prefix, "folder")


@contextmanager
def new_output_folder(prefix: str, content_key: str = "") -> Iterator[NumberedDraft]:
    """A new numbered folder in the output folder, as the core's ``new_numbered_folder``; errors as output_path."""
    path = output_path(prefix)
    with new_numbered_folder(path.parent, path.name, content_key) as made:
        yield made


def found_output_folder(prefix: str, content_key: str) -> Path | None:
    """A folder that an earlier run of the same content wrote. InputError as output_path."""
    path = output_path(prefix)
    return find_keyed_folder(path.parent, path.name, content_key)


def relative_to_output(path: Path) -> str:
    """Path of something in the output folder, relative to it and with "/"; the path itself when it lies elsewhere."""
    root = output_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def output_image(path: Path) -> dict[str, str]:
    """How ComfyUI's page and history name an image in the output folder."""
    return {"filename": path.name, "subfolder": relative_to_output(path.parent), "type": "output"}


def readable_folder(text: str, name: str, root: Path) -> Path:
    """An existing folder to read from: absolute, or relative to ``root``. Raises InputError that names both."""
    cleaned = text.strip().strip("\"'")
    if not cleaned:
        raise InputError(f"{name}: is empty. Give a folder, absolute or relative to {root}.")
    candidates = candidates_of(cleaned, name, root)
    for candidate in candidates:
        if is_folder(candidate):
            return candidate
    full = str(candidates[-1])
    shown = full if len(full) <= 400 else f"{full[:400]}..."
    raise InputError(f"{name}: {shown} does not exist. Give a folder, absolute or relative to {root}.")


def candidates_of(text: str, name: str, root: Path) -> list[Path]:
    """What a typed path may mean: absolute, or relative to ``root``.

    Raises InputError for a path that the owner of this server does not let anybody read, whether or not it exists.
    """
    try:
        given = Path(text).expanduser()
    except RuntimeError as error:  # the home of nobody
        raise InputError(f"{name}: {text[:200]!r} cannot be read ({error}). Give another path.") from error
    candidates = [given] if given.is_absolute() else [root / given, root / text.replace("\\", "/")]
    return [confined(candidate, read_roots(), name) for candidate in candidates]


def read_roots() -> list[Path] | None:
    """The folders that paths in workflows may lie in, None for any.

    Whoever owns a server that others use sets READ_ROOTS_VARIABLE, to further folders or to nothing.
    """
    listed = os.environ.get(READ_ROOTS_VARIABLE)
    if listed is None:
        return None
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory()]
    models = [path for name in (BUNDLES, BACKBONES) for path in folder_paths.get_folder_paths(name)]
    return [Path(path) for path in (*own, *models, *listed.split(os.pathsep)) if path]


def data_folder(text: str, category: str = "") -> Path:
    """Folder of a data set: absolute, or relative to ComfyUI's input folder.

    Raises InputError when there is none, and for a category in it that the owner of this server lets nobody read.
    """
    folder = readable_folder(text, "folder", Path(folder_paths.get_input_directory()).absolute())
    confined(folder / category.strip(), read_roots(), "category")
    return folder
