"""Where things are computed, and how much memory is free there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .errors import InputError


def compute_device(name: str = "") -> torch.device:
    """The device of this name; "" takes a GPU where there is one. Raises InputError for an unusable device."""
    if not name:
        backends = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return torch.device(next((kind for kind, there in backends.items() if there), "cpu"))
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"device: '{name}' cannot be used ({reason}). Give cpu, or leave it out.") from error
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, or in main memory."""
    import psutil

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def size_text(size: float) -> str:
    """``850 MB``, ``3.2 GB``; never less than ``1 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def check_images_fit(name: str, count: int, size: Sequence[int], planes: int, available: int | None = None) -> None:
    """Raise InputError, beginning with ``name``, when so many images of ``size`` (height, width) do not fit.

    planes: float32 values that are held for each pixel, all copies together. available: bytes, those of main memory
    by default.
    """
    needed = count * size[0] * size[1] * planes * 4
    free = free_memory(torch.device("cpu")) if available is None else available
    if needed > free:
        raise InputError(
            f"{name}: {count} images of {size[1]}x{size[0]} px need about {size_text(needed)} of memory, "
            f"{size_text(free)} are free. Lower their number or their size."
        )
