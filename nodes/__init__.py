"""The nodes, one family a file."""

from __future__ import annotations

from .adaptation import AdaptToNormals
from .baselines import CropAndPaste, CutPasteAnomalies, DraemAnomalies, PoissonBlend, PrnAnomalies
from .bundles import MergeBundles, SaveTextualInversion
from .checkpoint import EncodeLDMCaption, LoadLDMCheckpoint
from .dataset import DatasetFromImages, LoadAnomalyDataset, MergeDatasets, PickNormals
from .embedding import LoadSpatialEncoder, SpatialAnomalyEmbedding
from .evaluation import EvaluateClassification, EvaluateGeneration, EvaluateLocalization
from .export import ExportPairs
from .mask_placement import EstimateForeground, PlaceMasks
from .mask_report import MaskDiversityReport
from .mask_sources import ProceduralMasks, VaryRealMasks
from .masks import MaskEmbeddingSampler
from .pairs import RefineMasks, ReviewPairs, ScorePairs
from .results_table import ResultsTable
from .sampling import BlendedAARKSampler
from .training import TrainAnomalyEmbedding, TrainingOptionsNode, TrainMaskEmbedding

NODES = [
    LoadLDMCheckpoint,
    EncodeLDMCaption,
    LoadAnomalyDataset,
    DatasetFromImages,
    MergeDatasets,
    PickNormals,
    TrainAnomalyEmbedding,
    TrainMaskEmbedding,
    TrainingOptionsNode,
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
    ResultsTable,
    MergeBundles,
    SaveTextualInversion,
    AdaptToNormals,
    EvaluateClassification,
    EvaluateGeneration,
    CropAndPaste,
    CutPasteAnomalies,
    DraemAnomalies,
    PrnAnomalies,
    PoissonBlend,
    RefineMasks,
    ScorePairs,
    ReviewPairs,
]

__all__ = ["NODES"]
