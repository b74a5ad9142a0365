"""Run a workflow from the command line: on a server of our own or a given one, into a folder of results."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.images import write_image
from ..data.pairs import load_exported
from ..data.sheets import pairs_sheet
from ..files import new_folder, write_json
from ..synthetic.fewshot import render_fewshot_set
from .address import ServerAddress, server_address
from .client import OnProgress, queue_workflow
from .process import REPOSITORY, LocalServer, find_host
from .results import ALL_PAIRS, EVALUATION, PAIRS, SHEET, Results, fetch_results, summary
from .workflow import Workflow

QUICKSTART = REPOSITORY / "workflows" / "api" / "quickstart.json"
DEMO_PRIOR = REPOSITORY / "models" / "demo_prior.safetensors"
DEMO_OUTPUT = REPOSITORY / "output" / "demo"
HEADLESS_OUTPUT = DEMO_OUTPUT.with_name("demo_headless")
DEMO_FOLDER = "anomalydiffusion_demo"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Finished:
    """A finished run: its results and its figures, both also in the folder."""

    results: Results
    figures: dict[str, Any]


@contextmanager
def server_at(
    address: str | ServerAddress | None, log_path: Path
) -> Iterator[tuple[ServerAddress, LocalServer | None]]:
    """The server at `address`, or one of our own that lives as long as the block."""
    if address:
        yield server_address(address), None
        return
    with LocalServer(find_host(), log_path=log_path) as server:
        yield server_address(server.address), server


def run_workflow(
    workflow: Workflow,
    out: Path,
    address: str | ServerAddress | None = None,
    replace: bool = False,
    on_progress: OnProgress | None = None,
) -> Finished:
    """Queue a workflow and collect its results in `out`: pairs, evaluation, contact sheet and summary.

    `out` only comes to be when the run has succeeded; `replace` allows that it exists already.

    Raises:
        InputError: `out` holds files and `replace` is off.
        client.WorkflowError, HostError: see `client.queue_workflow`.
    """
    started = time.monotonic()
    with new_folder(out, replace) as draft:
        with server_at(address, out.with_name(f"{out.name}.log")) as (where, server):
            done = queue_workflow(where, workflow, on_progress, server.check_alive if server else None)
            peak = server.peak_memory_gb() if server else None
            results = fetch_results(where, done, draft)
        figures = summary(results, time.monotonic() - started, peak)
        finish(draft, figures)
    results.folder = out
    results.pairs = load_exported(out / PAIRS) if results.pairs else []
    return Finished(results, figures)


def finish(folder: Path, figures: Mapping[str, Any]) -> None:
    """Put what is looked at first beside the results: the contact sheet of the evaluation, all pairs, the summary."""
    sheet = folder / EVALUATION / SHEET
    if sheet.is_file():
        shutil.copyfile(sheet, folder / SHEET)
    if (folder / PAIRS).is_dir():
        write_image(folder / ALL_PAIRS, pairs_sheet(load_exported(folder / PAIRS)))
    write_json(folder / SUMMARY, dict(figures))


def demo_data(root: Path, seed: int = 0) -> str:
    """Render the few-shot set into a folder below ``root``, such as a server's input folder; returns its name."""
    name = f"{DEMO_FOLDER}_{seed}" if seed else DEMO_FOLDER
    render_fewshot_set(root / name, seed)
    return name
