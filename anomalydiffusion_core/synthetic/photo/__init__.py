"""Photographs of industrial surfaces and parts with defects and exact masks, rendered from nothing."""

from __future__ import annotations

from .bank import TextureBank
from .scene import render_photo, sample_caption

__all__ = ["TextureBank", "render_photo", "sample_caption"]
