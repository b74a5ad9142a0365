"""Results Table: what many runs measured, beside the paper's numbers."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from comfy_api.latest import io

from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.evaluation.published import NUMBERS
from ..anomalydiffusion_core.evaluation.tables import (
    FILE_NAME,
    MeasuredTable,
    build_tables,
    find_records,
    table_picture,
    to_markdown,
)
from ..anomalydiffusion_core.evaluation.tables.files import write_tables
from .host import folders, tensors
from .sockets import CATEGORY, shown


class ResultsTable(io.ComfyNode):
    """The paper's Tables 1 to 12 with measured numbers in them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionResultsTable",
            display_name="Results Table",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Gathers the results that evaluation nodes left in the output folder and sets them beside the numbers "
                "of the paper's Tables 1 to 12. A cell that nothing was measured for says so."
            ),
            inputs=[
                io.String.Input(
                    "results",
                    default="anomalydiffusion",
                    tooltip=(
                        "Folders with results.json anywhere below, one a line: absolute, or relative to ComfyUI's "
                        "output folder. Connect an evaluation folder to wait for it."
                    ),
                    multiline=True,
                ),
                io.String.Input(
                    "tables",
                    default="2, 3, 10, 11",
                    tooltip="Numbers of the tables, separated by commas. Empty makes all twelve.",
                ),
                io.String.Input(
                    "folder",
                    default="anomalydiffusion/tables",
                    tooltip="Name of the folder inside ComfyUI's output folder; a number is added.",
                ),
                io.Boolean.Input(
                    "only_measured",
                    default=False,
                    optional=True,
                    tooltip="Show only the rows that something was measured for, with a line for each method.",
                ),
            ],
            outputs=[
                io.String.Output("table", display_name="tables", tooltip="All tables as Markdown, with their notes."),
                io.Image.Output(
                    "pictures", display_name="pictures", tooltip="One picture for each table, on one size of canvas."
                ),
                io.String.Output(
                    "tables_folder",
                    display_name="tables folder",
                    tooltip="The folder with Markdown, CSV, LaTeX and pictures.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, results: str | None = None, **_: object) -> str:
        # A connected input is not known yet, and an error belongs into execute, where the user sees it.
        try:
            files = [path for place in _places(results or "") for path in sorted(place.rglob(FILE_NAME))]
        except InputError:
            return ""
        return repr([(path.as_posix(), path.stat().st_mtime_ns) for path in files])

    @classmethod
    def execute(cls, results: str, tables: str, folder: str, only_measured: bool = False) -> io.NodeOutput:
        numbers = _numbers(tables)
        records = find_records(_places(results))
        built = build_tables(records, numbers, only_measured)
        with folders.new_output_folder(folder) as (draft, final):
            write_tables(draft, built)
        text, where = to_markdown(built), folders.relative_to_output(final)
        images = [folders.output_image(path) for path in sorted(final.glob("table_*.png"))]
        report = f"{len(records)} results in {len(built)} tables\n\n{text}"
        return io.NodeOutput(
            text,
            tensors.to_host_images(_one_size(built)),
            final.as_posix(),
            ui={**shown(report, tables_folder=[where]), "images": images},
        )


def _places(results: str) -> list[Path]:
    lines = [line for line in results.splitlines() if line.strip()] or [""]
    return [folders.readable_folder(line, "results", folders.output_root()) for line in lines]


def _numbers(text: str) -> list[int]:
    parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
    if not all(part.isdecimal() and int(part) in NUMBERS for part in parts):
        raise InputError(f"tables: '{text}' is no list of table numbers. Give some of 1 to {NUMBERS[-1]}, like 2, 10.")
    return list(dict.fromkeys(map(int, parts)))


def _one_size(tables: list[MeasuredTable]) -> torch.Tensor:
    """All pictures [N,3,H,W], white to the right and below."""
    pictures = [table_picture(table) for table in tables]
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    canvas = torch.ones(len(pictures), 3, height, width)
    for number, picture in enumerate(pictures):
        canvas[number, :, : picture.shape[1], : picture.shape[2]] = picture
    return canvas
