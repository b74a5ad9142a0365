"""The nodes, one family a file."""

from __future__ import annotations

from .baselines import CropAndPaste, CutPasteAnomalies, DraemAnomalies, PoissonBlend, PrnAnomalies
from .checkpoint import EncodeLDMCaption, LoadLDMCheckpoint
from .classification import EvaluateClassification
from .dataset import LoadAnomalyDataset, PickNormals
from .embedding import LoadSpatialEncoder, SpatialAnomalyEmbedding
from .evaluation import EvaluateLocalization
from .export import ExportPairs
from .generation import EvaluateGeneration
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
    BlendedAARKSampler,
    ExportPairs,
    EvaluateLocalization,
    EvaluateClassification,
    EvaluateGeneration,
    CropAndPaste,
    CutPasteAnomalies,
    DraemAnomalies,
    PrnAnomalies,
    PoissonBlend,
]

__all__ = ["NODES"]
