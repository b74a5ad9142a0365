"""Where things are computed, and how much memory is free there."""

from __future__ import annotations

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
