"""Training and testing a defect detector: does it find real defects better with the generated pairs?"""

from __future__ import annotations

from .comparison import ComparisonStep, compare_rows
from .network import DiscriminativeSubNetwork, build_network, load_network
from .rows import OURS, Row, methods_of, named_values, rows_of
from .runs import RunStore, SharedData
from .sources import PairSource, pair_batches, pair_tensors, pairs_folder
from .summary import Comparison, RowResult
from .table import LocalizationTable, Report
from .testing import LocalizationResult
from .training import LocalizerTraining

__all__ = [
    "OURS",
    "Comparison",
    "ComparisonStep",
    "DiscriminativeSubNetwork",
    "LocalizationResult",
    "LocalizationTable",
    "LocalizerTraining",
    "PairSource",
    "Report",
    "Row",
    "RowResult",
    "RunStore",
    "SharedData",
    "build_network",
    "compare_rows",
    "load_network",
    "methods_of",
    "named_values",
    "pair_batches",
    "pair_tensors",
    "pairs_folder",
    "rows_of",
]
