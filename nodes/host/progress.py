"""ComfyUI's progress bar, previews and interrupt, and the device it computes on."""

from __future__ import annotations

import sys
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

PREVIEW_SIDE = 1024
"""Longest side in pixels of a preview on a node."""
LARGEST_SEED = 2**63 - 1
"""Leaves room for seed + i."""


class Progress:
    """ComfyUI's progress bar of the running node; every step also looks whether the user interrupted."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._bar = comfy.utils.ProgressBar(total)

    def step(self, amount: int = 1, preview: Any = None) -> None:
        """One or more steps on. ``preview``: a image [3, H, W], or ("JPEG", PIL image, size) as ComfyUI makes it."""
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
        """Show a line of text on the node, in the page that queued it and in no other."""
        running = sys.modules.get("server")
        server = getattr(getattr(running, "PromptServer", None), "instance", None)
        context = get_executing_context()
        # Sent to nobody in particular, it would reach every page, whatever node of that number stands there.
        if server is not None and context is not None and server.client_id:
            server.send_progress_text(text, context.node_id, server.client_id)


def interrupted() -> None:
    """Raise what ends a node when the user interrupted."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def _to_pil(image: Tensor) -> Any:
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())


def compute_device() -> torch.device:
    """Where ComfyUI computes."""
    return torch.device(comfy.model_management.get_torch_device())
