"""The adapter to ComfyUI, seventh part: files in the host's own model folders, which its own nodes load."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..anomalydiffusion_core.bundles.bundle import write_new
from ..anomalydiffusion_core.errors import InputError
from .host import contained, numbered

EMBEDDINGS = "embeddings"
LORAS = "loras"


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
