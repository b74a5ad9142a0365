"""Pictures, masks and data sets on disk."""

from __future__ import annotations

from .images import read_image, read_mask, resize_image, resize_mask, write_image, write_mask
from .mvtec import AnomalyDataset, DefectPair, DefectType, load_dataset, load_images, load_pairs
from .splits import SPLIT_RULES, split_names

__all__ = [
    "SPLIT_RULES",
    "AnomalyDataset",
    "DefectPair",
    "DefectType",
    "load_dataset",
    "load_images",
    "load_pairs",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_mask",
    "split_names",
    "write_image",
    "write_mask",
]
