"""Procedural industrial surfaces with defects and exact masks: training data of the demo prior, and demo data sets."""

from __future__ import annotations

from .captions import Caption, caption_ids, vocabulary
from .fewshot import render_fewshot_set
from .noise import NoiseBank
from .scene import HELD_OUT_COMBINATIONS, Scene, render_scene, sample_caption

__all__ = [
    "HELD_OUT_COMBINATIONS",
    "Caption",
    "NoiseBank",
    "Scene",
    "caption_ids",
    "render_fewshot_set",
    "render_scene",
    "sample_caption",
    "vocabulary",
]
