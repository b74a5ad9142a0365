"""AnomalyDiffusion for ComfyUI: few-shot anomaly generation as nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI when it loads the extension. Not at import: tools may import this file without ComfyUI."""
    from comfy_api.latest import ComfyExtension

    from .nodes import NODES
    from .nodes.host.edge import guard_prompts
    from .nodes.host.folders import register_model_folders

    register_model_folders()
    guard_prompts(NODES)

    class AnomalyDiffusionExtension(ComfyExtension):
        async def get_node_list(self) -> list:
            return list(NODES)

    return AnomalyDiffusionExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
