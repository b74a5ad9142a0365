"""The nodes, one family a file."""

from __future__ import annotations

from .checkpoint import EncodeLDMCaption, LoadLDMCheckpoint
from .dataset import LoadAnomalyDataset, PickNormals
from .embedding import LoadSpatialEncoder, SpatialAnomalyEmbedding
from .evaluation import EvaluateLocalization
from .export import ExportPairs
from .mask_placement import EstimateForeground, PlaceMasks
from .mask_report import MaskDiversityReport
from .mask_sources import ProceduralMasks, VaryRealMasks
from .masks import MaskEmbeddingSampler
from .sampling import BlendedAARKSampler
from .training import TrainAnomalyEmbedding, TrainMaskEmbedding

NODES = [
    LoadLDMCheckpoint,
    EncodeLDMCaption,
    LoadAnomalyDataset,
    PickNormals,
    TrainAnomalyEmbedding,
    TrainMaskEmbedding,
    LoadSpatialEncoder,
    SpatialAnomalyEmbedding,
    MaskEmbeddingSampler,
    VaryRealMasks,
    ProceduralMasks,
    EstimateForeground,
    PlaceMasks,
    MaskDiversityReport,
    BlendedAARKSampler,
    ExportPairs,
    EvaluateLocalization,
]

__all__ = ["NODES"]
