"""The adapter to ComfyUI, first part: its tensors, folders, progress and interrupt.

Models are in ``host_models.py``, sampling is in ``host_sampling.py``. No other module of the extension imports comfy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..anomalydiffusion_core.blending import check_mask
from ..anomalydiffusion_core.data.pictures import resize_mask
from ..anomalydiffusion_core.errors import InputError

BUNDLES = "anomalydiffusion"
"""Model folder of trained bundles."""
CHECKPOINTS = "anomalydiffusion_checkpoints"
"""Model folder of checkpoints that the stock loader does not know; holds the demo prior shipped with the extension."""
BACKBONES = "anomalydiffusion_backbones"
"""Model folder of ImageNet weights that a spatial encoder can start from."""
EXTENSIONS = {".safetensors"}
BACKBONE_EXTENSIONS = {".pth", ".pt", ".safetensors"}
SHIPPED_MODELS = Path(__file__).resolve().parent.parent / "models"
PREVIEW_SIDE = 1024
"""Longest side in pixels of a preview on a node."""
LARGEST_SEED = 2**63 - 1
"""Leaves room for seed + i."""
AUTHORS_EXTENSION = ".pt"
"""Beside bundles the folder may hold files of the authors' code."""


# Tensors


def to_core_images(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE [B, H, W, C] to float32 [B, 3, H, W] in [0, 1], a copy on the CPU; alpha is dropped, grey is tripled."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or not len(image):
        raise InputError(f"{name}: has the shape {tuple(image.shape)}. Connect pictures [B, height, width, 3].")
    pixels = image[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1)
    # Cloned outside inference mode: tensors made inside it cannot be trained on.
    with torch.inference_mode(False):
        return pixels.detach().clone().to("cpu", torch.float32).clamp(0, 1)


def to_host_images(images: Tensor) -> Tensor:
    """[B, 3, H, W] or [3, H, W] to IMAGE [B, H, W, 3]."""
    images = images[None] if images.ndim == 3 else images
    return images.detach().movedim(1, -1).contiguous().to("cpu", torch.float32)


def to_core_masks(mask: Tensor, name: str = "mask") -> Tensor:
    """MASK [B, H, W] or [H, W] to float32 [B, 1, H, W] of exactly {0, 1}, thresholded at one half.

    Raises InputError for an empty entry: it says whether the threshold made it empty.
    """
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or not len(mask):
        raise InputError(f"{name}: has the shape {tuple(mask.shape)}. Connect masks [B, height, width].")
    binary = (mask.detach() > 0.5).to("cpu", torch.float32)[:, None]
    empty = (binary.flatten(1).amax(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        largest = float(mask[empty[0]].max())
        hint = f"its largest value is {largest:.2f}, a region counts above 0.5" if largest > 0 else "nothing is marked"
        raise InputError(f"{name}: entry {empty[0]} of {len(mask)} is empty ({hint}). Connect a mask with a region.")
    return binary


def to_host_masks(masks: Tensor) -> Tensor:
    """[B, 1, H, W] to MASK [B, H, W]."""
    return masks.detach()[:, 0].contiguous().to("cpu", torch.float32)


def fit_masks(
    masks: Tensor, size: Sequence[int], notices: list[str], name: str = "mask", fitted_to: str = "image"
) -> Tensor:
    """Masks [B, 1, H, W] at the pictures' size (height, width); the same aspect is resized with a notice.

    name, fitted_to: what the masks and what has the size, for the messages. Raises InputError with both sizes for
    another aspect.
    """
    height, width = masks.shape[-2:]
    if (height, width) == tuple(size):
        return masks
    sizes = f"{width}x{height} px, the {fitted_to} {size[1]}x{size[0]} px"
    # One pixel of rounding on the shorter side is no other aspect.
    if abs(width * size[0] - height * size[1]) > max(*size, height, width):
        raise InputError(f"{name}: is {sizes}. Give a mask of the {fitted_to}'s size, or at least of its aspect.")
    notices.append(f"the {name} is {sizes}: it was resized")
    resized = resize_mask(masks, (int(size[0]), int(size[1])))
    check_mask(resized)
    return resized


def tensor_digest(*values: Tensor | None) -> str:
    """A hash of tensors' numbers, for content keys."""
    digest = hashlib.sha256()
    for value in values:
        if value is None:
            digest.update(b"none")
        else:
            digest.update(f"{tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """A hash of a file's bytes, for content keys. Raises InputError when it is not there."""
    if not path.is_file():
        raise InputError(f"file: {path} does not exist. Check the name and the folder.")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# Folders


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


# Progress


class Progress:
    """ComfyUI's progress bar of the running node; every step also looks whether the user interrupted."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._bar = comfy.utils.ProgressBar(total)

    def step(self, amount: int = 1, preview: Any = None) -> None:
        """One or more steps on. ``preview``: a picture [3, H, W], or ("JPEG", PIL image, size) as ComfyUI makes it."""
        self.at(self.done + amount, preview)

    def expect(self, amount: int) -> None:
        """So many steps come on top of what was known at the start."""
        self.total += amount

    def at(self, done: int, preview: Any = None) -> None:
        """Set the number of finished steps."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.done = min(done, self.total)
        if isinstance(preview, Tensor):
            preview = ("JPEG", _to_pil(preview), PREVIEW_SIDE)
        self._bar.update_absolute(self.done, self.total, preview)

    def text(self, text: str) -> None:
        """Show a line of text on the node, where a page is connected."""
        running = sys.modules.get("server")
        server = getattr(getattr(running, "PromptServer", None), "instance", None)
        context = get_executing_context()
        if server is not None and context is not None:
            server.send_progress_text(text, context.node_id)


def _to_pil(image: Tensor) -> Any:
    from PIL import Image

    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())


def compute_device() -> torch.device:
    """Where ComfyUI computes."""
    return torch.device(comfy.model_management.get_torch_device())
