"""ComfyUI and this extension inside the running process, without a server: for tests and benchmarks.

The extension is loaded as ComfyUI loads custom nodes, a package of its own; its folders lie below a base that the
caller gives, so nothing of an installed ComfyUI is read or written.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from anomalydiffusion_core.server.process import find_host

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "anomalydiffusion_extension"


def load_extension(base: Path) -> ModuleType:
    """Import ComfyUI (on the CPU) with the folders models, output, input and temp below `base`, then the extension.

    Returns the extension's package; `importlib.import_module` finds its parts under `PACKAGE`.
    """
    comfyui = str(find_host(ROOT).comfyui)
    sys.path.append(comfyui)
    arguments: Any = importlib.import_module("comfy.cli_args").args
    arguments.cpu = arguments.use_pytorch_cross_attention = True  # as server/process.py starts it
    folder_paths: Any = importlib.import_module("folder_paths")
    for name in ("models", "output", "input", "temp"):
        (base / name).mkdir(exist_ok=True)
    folder_paths.models_dir = str(base / "models")
    folder_paths.set_output_directory(str(base / "output"))
    folder_paths.set_input_directory(str(base / "input"))
    folder_paths.set_temp_directory(str(base / "temp"))
    spec = importlib.util.spec_from_file_location(
        PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    importlib.import_module(f"{PACKAGE}.nodes.host.folders").register_model_folders()
    # What is imported by now stays importable; nobody else must find ComfyUI's own `nodes`.
    sys.path.remove(comfyui)
    return package


def stock_nodes() -> Callable[..., Any]:
    """Call ComfyUI's own nodes by class name: `run("VAEEncode", vae, image)`. Needs `load_extension` first.

    Their module leaves no trace: its name is that of a folder here.
    """
    before = list(sys.path)
    sys.path.append(str(find_host(ROOT).comfyui))
    try:
        classes = dict(importlib.import_module("nodes").NODE_CLASS_MAPPINGS)
    finally:
        sys.path[:] = before
        sys.modules.pop("nodes", None)

    def run(name: str, /, *arguments: Any, **values: Any) -> Any:
        node = classes[name]
        with torch.inference_mode():
            return getattr(node(), node.FUNCTION)(*arguments, **values)

    return run


def slim_diffusion(run: Callable[..., Any], name: str = "slim.safetensors") -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a slim Stable Diffusion 1.5 of random weights, through the stock Load Checkpoint."""
    import random_checkpoint

    folder_paths: Any = importlib.import_module("folder_paths")
    folder = Path(folder_paths.models_dir) / "checkpoints"
    random_checkpoint.write_slim(folder / name)
    folder_paths.folder_names_and_paths["checkpoints"] = ([str(folder)], {".safetensors"})
    model, clip, vae = run("CheckpointLoaderSimple", name)
    return model, clip, vae
