"""Measured results of many runs beside the published numbers, in the layout of the paper's Tables 1 to 12."""

from __future__ import annotations

from .build import MeasuredTable, build_table, build_tables, measured_part
from .files import table_image, table_images, write_tables
from .records import FILE_NAME, REAL_AND_GENERATED, ResultRecord, find_records, read_records, write_records
from .text import to_csv, to_latex, to_markdown

__all__ = [
    "FILE_NAME",
    "REAL_AND_GENERATED",
    "MeasuredTable",
    "ResultRecord",
    "build_table",
    "build_tables",
    "find_records",
    "measured_part",
    "read_records",
    "table_image",
    "table_images",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_records",
    "write_tables",
]
