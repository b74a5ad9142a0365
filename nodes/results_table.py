"""Results Table: what many runs measured, beside the paper's numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.lazy_imports import later
from ..anomalydiffusion_core.reading import files_below
from .host import evaluation as host
from .host import folders, tensors
from .host.versions import schema
from .inputs import folder_input
from .sockets import CATEGORY, shown

if TYPE_CHECKING:
    from ..anomalydiffusion_core.evaluation import published
    from ..anomalydiffusion_core.evaluation.tables import build as building
    from ..anomalydiffusion_core.evaluation.tables import files as table_files
    from ..anomalydiffusion_core.evaluation.tables import records as found
    from ..anomalydiffusion_core.evaluation.tables import text as table_text
else:
    published = later("..anomalydiffusion_core.evaluation.published", __package__)
    building = later("..anomalydiffusion_core.evaluation.tables.build", __package__)
    table_files = later("..anomalydiffusion_core.evaluation.tables.files", __package__)
    found = later("..anomalydiffusion_core.evaluation.tables.records", __package__)
    table_text = later("..anomalydiffusion_core.evaluation.tables.text", __package__)


class ResultsTable(io.ComfyNode):
    """The paper's Tables 1 to 12 with measured numbers in them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionResultsTable",
            search_aliases="benchmark, paper tables, compare, MVTec".split(", "),
            display_name="Results Table",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Collects the results that evaluation nodes wrote to the output folder and shows them beside the "
                "numbers of the paper's Tables 1 to 12. A cell that nothing was measured for says so."
            ),
            inputs=[
                io.String.Input(
                    "results",
                    default="anomalydiffusion",
                    tooltip=(
                        "Folders with results.json anywhere below, one per line: absolute, or relative to ComfyUI's "
                        "output folder. Connect an evaluation folder to wait for it."
                    ),
                    multiline=True,
                ),
                io.String.Input(
                    "tables",
                    default="2, 3, 10, 11",
                    tooltip="Numbers of the tables, separated by commas. Empty shows all twelve.",
                ),
                folder_input("tables"),
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
                    "pictures", display_name="images", tooltip="One image for each table, padded to one size."
                ),
                io.String.Output(
                    "tables_folder",
                    display_name="tables folder",
                    tooltip="The folder with Markdown, CSV, LaTeX and images.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, results: str | None = None, **_: object) -> str:
        # A connected input is not known yet, and an error belongs into execute, where the user sees it.
        try:
            files = [
                path
                for place in host.readable_folders(results or "", "results")
                for path in files_below(place, "results", found.FILE_NAME)
            ]
        except InputError:
            return ""
        return repr([(path.as_posix(), path.stat().st_mtime_ns) for path in files])

    @classmethod
    def execute(cls, results: str, tables: str, folder: str, only_measured: bool = False) -> io.NodeOutput:
        numbers = _numbers(tables)
        records = found.find_records(host.readable_folders(results, "results"))
        built = building.build_tables(records, numbers, only_measured)
        with host.result_place(folder).new() as made:
            table_files.write_tables(made.path, built)
        final = made.final
        text, where = table_text.to_markdown(built), folders.relative_to_output(final)
        images = [folders.output_image(path) for path in sorted(final.glob("table_*.png"))]
        report = f"{len(records)} results in {len(built)} tables\n\n{text}"
        return io.NodeOutput(
            text,
            tensors.to_host_images(table_files.table_images(built)),
            final.as_posix(),
            ui={**shown(report, tables_folder=[where]), "images": images},
        )


def _numbers(text: str) -> list[int]:
    parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
    if not all(part.isdecimal() and int(part) in published.NUMBERS for part in parts):
        raise InputError(
            f"tables: '{text}' is not a list of table numbers. Give some of 1 to {published.NUMBERS[-1]}, like 2, 10."
        )
    return list(dict.fromkeys(map(int, parts)))
