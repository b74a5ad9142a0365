"""The nodes, one family a file."""

from __future__ import annotations

from .checkpoint import EncodeLDMCaption, LoadLDMCheckpoint
from .dataset import LoadAnomalyDataset, PickNormals
from .embedding import LoadSpatialEncoder, SpatialAnomalyEmbedding
from .evaluation import EvaluateLocalization
from .export import ExportPairs
from .masks import MaskEmbeddingSampler
from .sampling import BlendedAARKSampler
from .training import TrainAnomalyEmbedding, TrainMaskEmbedding
from .training_options import TrainingOptionsNode

NODES = [
    LoadLDMCheckpoint,
    EncodeLDMCaption,
    LoadAnomalyDataset,
    PickNormals,
    TrainAnomalyEmbedding,
    TrainMaskEmbedding,
    TrainingOptionsNode,
    LoadSpatialEncoder,
    SpatialAnomalyEmbedding,
    MaskEmbeddingSampler,
    BlendedAARKSampler,
    ExportPairs,
    EvaluateLocalization,
]

__all__ = ["NODES"]
