"""Commands that run ComfyUI: the demo, a workflow on data of your own, the ablations, and the graph editor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.splits import SplitSettings
from .errors import plain_errors
from .options import with_settings

if TYPE_CHECKING:
    from ..server.repetitions import RunOne
    from ..server.runs import Finished
    from ..server.workflow import Workflow

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NODE.INPUT=VALUE", help="Change an input of the node with this id or title."),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT or URL (https, a path, ?token=) of a running ComfyUI with this extension; by default one is "
        "started. ANOMALYDIFFUSION_TOKEN in the environment is sent as a bearer token."
    ),
]


Headless = Annotated[bool, typer.Option("--headless", help="Without ComfyUI, which then need not be set up.")]


@contextmanager
def runner(headless: bool, root: Path, out: Path, address: str | None = None) -> Iterator[RunOne]:
    """What runs one workflow into a new folder, with a bar: on one server for all, or without ComfyUI.

    root: what the folder of the data set is relative to without ComfyUI.
    """
    from ..server.headless import run_headless
    from ..server.runs import run_workflow, server_at
    from .bars import ProgressBars, TaskBars

    if headless:
        with TaskBars() as tasks:
            yield lambda workflow, folder: run_headless(workflow, root, folder, tasks.of)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProgressBars() as bars, server_at(address, out.with_name(f"{out.name}.log")) as (where, _):
        yield lambda workflow, folder: run_workflow(workflow, folder, where, on_progress=bars)


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; by default output/demo, or output/demo_headless.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rendered images.")] = 0,
    set_: Set = None,
    headless: Headless = False,
    repetitions: Annotated[
        int,
        typer.Option(
            min=1,
            help="Run it so often with other seeds of training, masks, generation and detectors, on the same images, "
            "and compare the rows repetition by repetition. Give the same folder again to resume.",
        ),
    ] = 1,
) -> None:
    """Run the whole job on images rendered on the spot: learn two defects, make pairs, train and test a detector.

    The default folder is replaced; a folder that is given must be new. With --headless a stopped run is resumed. With
    --repetitions the differences between the rows have a confidence interval.
    """
    with plain_errors(FileExistsError):
        from ..files import check_new
        from ..server.headless import run_headless
        from ..server.process import find_host
        from ..server.repetitions import repeat
        from ..server.runs import DEMO_OUTPUT, HEADLESS_OUTPUT, QUICKSTART, demo_data, run_workflow
        from ..server.workflow import load_workflow, parse_assignment, with_dataset, with_inputs
        from ..synthetic.fewshot import CATEGORY
        from .bars import ProgressBars, TaskBars

        workflow = with_inputs(load_workflow(QUICKSTART), [parse_assignment(text) for text in set_ or ()])
        if repetitions > 1:
            where = (out or DEMO_OUTPUT.with_name("demo_repetitions")).absolute()
            images = where.parent if headless else find_host().input
            workflow = with_dataset(workflow, {"folder": demo_data(images, seed), "category": CATEGORY})
            with runner(headless, images, where) as run_one:
                table = repeat(where, workflow, repetitions, run_one, lambda text: typer.echo(text, err=True))
            typer.echo(f"{table}\n\nresults are in {where}")
            return
        if out is not None:
            check_new(out)
        target = (out or (HEADLESS_OUTPUT if headless else DEMO_OUTPUT)).absolute()
        root = target.parent if headless else find_host().input
        typer.echo("rendering the images", err=True)
        workflow = with_dataset(workflow, {"folder": demo_data(root, seed), "category": CATEGORY})
        if headless:
            with TaskBars() as tasks:
                done = run_headless(workflow, root, target, tasks.of, out is None)
        else:
            with ProgressBars() as bars:
                done = run_workflow(workflow, target, replace=out is None, on_progress=bars)
        show(done, workflow)


@with_settings(splitting=SplitSettings)
def run(
    workflow: Annotated[Path, typer.Argument(help="Workflow in API format, like workflows/api/quickstart.json.")],
    out: Annotated[Path, typer.Option(help="New folder for the results.")],
    splitting: SplitSettings,
    data: Annotated[
        Path | None, typer.Option(help="Folder that holds the category's folder; without it the workflow's own.")
    ] = None,
    category: Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")] = "",
    set_: Set = None,
    address: Address = None,
) -> None:
    """Run a workflow, on images of your own or on those that it names itself.

    The category's folder holds train/good, test/DEFECT and ground_truth/DEFECT. With --address the folder must be
    readable at the same place for that server.
    """
    with plain_errors():
        from ..errors import InputError
        from ..files import check_new
        from ..server.runs import run_workflow
        from ..server.workflow import load_workflow, parse_assignment, with_dataset, with_inputs
        from .bars import ProgressBars

        if data is None and category:
            raise InputError(f"data: is not given, but the category {category!r} is. Give both or neither.")
        if data is not None and not data.is_dir():
            raise InputError(f"data: {data} is not a folder. Give the folder that holds {category!r}.")
        if data is not None and not (data / category).is_dir():
            there = ", ".join(sorted(path.name for path in data.iterdir() if path.is_dir())) or "no folders"
            raise InputError(f"category: {data} has no folder {category!r}. It has {there}.")
        check_new(out)
        loaded = with_inputs(load_workflow(workflow), [parse_assignment(text) for text in set_ or ()])
        if data is not None:
            values = {"folder": data.absolute().as_posix(), "category": category, "split": splitting.split}
            loaded = with_dataset(loaded, {**values, **_unusual(splitting)})
        with ProgressBars() as bars:
            done = run_workflow(loaded, out.absolute(), address, on_progress=bars)
        show(done, loaded)


@with_settings(splitting=SplitSettings)
def queue(
    workflow: Annotated[Path, typer.Argument(help="Workflow in API format, like workflows/api/sd15_generate.json.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the categories' folders.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; give the same one again to resume.")],
    address: Annotated[list[str], typer.Option(help="HOST:PORT or URL of a running ComfyUI; several share the work.")],
    splitting: SplitSettings,
    for_each: Annotated[str, typer.Option(help="One prompt for each category, or for each defect type.")] = "type",
    count: Annotated[int, typer.Option(min=1, help="Samples of each category's types, or of each type.")] = 8,
    block: Annotated[int, typer.Option(min=1, help="Samples of one prompt; each has seeds of its own.")] = 8,
    category: Annotated[
        list[str] | None, typer.Option(help="Only this category; several times for several. By default all.")
    ] = None,
    set_: Set = None,
) -> None:
    """Queue a workflow for every defect type and block of seeds, on one or several servers.

    What is finished is not run again. A server that goes away is asked again later, and its work is done by the
    others. Ctrl-C takes back the prompts of this command and no others. The token of a server is read from the
    environment variable ANOMALYDIFFUSION_TOKEN, or from the address.
    """
    with plain_errors():
        from ..server.batch import Batch, jobs_of
        from ..server.workflow import load_workflow, parse_assignment, with_inputs
        from .bars import BatchBar

        loaded = with_inputs(load_workflow(workflow), [parse_assignment(text) for text in set_ or ()])
        values = {"split": splitting.split, **_unusual(splitting)}
        jobs = jobs_of(loaded, data, for_each, count, block, category or (), values)
        with BatchBar() as bar:
            report = Batch(jobs, address, out.absolute(), bar).run()
        typer.echo(f"{report.text()}\nresults are in {out}")
        if report.failed or report.left:
            raise typer.Exit(1)


def _unusual(splitting: SplitSettings) -> dict[str, object]:
    """The options of a split that are not left at their defaults: a workflow of before may lack the others."""
    usual = asdict(SplitSettings())
    return {key: value for key, value in asdict(splitting).items() if value != usual[key]}


def ablate(
    out: Annotated[Path, typer.Option(help="Folder of the results; give the same one again to resume.")],
    number: Annotated[
        list[int] | None, typer.Option("--table", help="Table 6, 7, 8 or 9; by default all four.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="reduced: CPU, demo prior, rendered images; full: GPU.")] = "reduced",
    workflow: Annotated[
        Path | None, typer.Option(help="Workflow in API format; by default the quickstart, which has the demo prior.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the category; for the full protocol.")] = None,
    category: Annotated[str, typer.Option(help="Name of the category's folder; for the full protocol.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant, with other seeds.")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NODE.INPUT=VALUE", help="Change an input in every variant.")
    ] = None,
    address: Address = None,
) -> None:
    """Run the paper's ablations: each row of Tables 6 to 9 as one run of the workflow with other inputs.

    The reduced protocol finishes on a CPU and is called reduced in every table. A run that is finished is not run
    again.
    """
    with plain_errors(FileExistsError):
        from ..server.ablations import AblationRuns
        from .bars import ProgressBars

        runs = AblationRuns(out.absolute(), protocol, number or (), workflow, data, category, seeds, set_ or ())
        with ProgressBars() as bars:
            built = runs.run(address, lambda text: typer.echo(text, err=True), bars)
        typer.echo(f"{built}\nresults are in {out}")


def enough(
    out: Annotated[Path, typer.Option(help="Folder of the results; give the same one again to resume.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder that holds the category; by default the demo's rendered images.")
    ] = None,
    category: Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")] = "",
    real: Annotated[
        str, typer.Option(help="Numbers of real defects of each type to learn from; 0 is the lowest third.")
    ] = "1,2,3,5,0",
    generated: Annotated[
        str, typer.Option(help="Numbers of generated pairs of each type; 0 is measured anyway.")
    ] = "0,10,30,100,300",
    repetitions: Annotated[
        int, typer.Option(min=1, help="Independent repetitions of training, generation and detectors.")
    ] = 3,
    test_rate: Annotated[
        int, typer.Option(min=1, max=66, help="Percent of each type, the last by name, that test, in every run.")
    ] = 66,
    workflow: Annotated[
        Path | None, typer.Option(help="Workflow in API format; by default the quickstart, which has the demo prior.")
    ] = None,
    set_: Set = None,
    headless: Headless = False,
    address: Address = None,
) -> None:
    """Measure how many are enough: AP over the number of real defects and of generated pairs, as table and plot.

    Every number of real defects is a run of the workflow that learns from these alone; the test set is the same. What
    is finished is not run again. Writes enough.md, enough.csv, enough.json and amounts.png to the folder curve.
    """
    with plain_errors(FileExistsError):
        from ..errors import InputError
        from ..evaluation.localization.amounts import listed_counts
        from ..server.amounts import AmountRuns
        from ..server.process import find_host
        from ..server.runs import QUICKSTART, demo_data
        from ..server.workflow import load_workflow, parse_assignment, with_dataset, with_inputs
        from ..synthetic.fewshot import CATEGORY

        if (data is None) != (not category):
            raise InputError("data, category: only one of them is given. Give both, or neither for the demo's images.")
        loaded = with_inputs(load_workflow(workflow or QUICKSTART), [parse_assignment(text) for text in set_ or ()])
        where = out.absolute()
        root = where.parent if headless else find_host().input
        place = demo_data(root) if data is None else data.absolute().as_posix()
        loaded = with_dataset(loaded, {"folder": place, "category": category or CATEGORY})
        numbers = listed_counts(real)
        runs = AmountRuns(where, loaded, numbers, listed_counts(generated), repetitions, test_rate)
        with runner(headless, root, where, address) as run_one:
            table = runs.run(run_one, lambda text: typer.echo(text, err=True))
        typer.echo(f"{table}\n\nresults are in {where}")


def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8188) -> None:
    """Serve ComfyUI's graph editor with this extension on 127.0.0.1 until Ctrl-C."""
    with plain_errors(FileExistsError):
        from ..server.process import LocalServer, find_host
        from ..server.runs import demo_data

        host = find_host()
        typer.echo("rendering the images of the quickstart", err=True)
        demo_data(host.input)
        with LocalServer(host, port=port) as server:
            typer.echo(f"open http://{server.address} in a browser; Ctrl-C ends it", err=True)
            with suppress(KeyboardInterrupt):
                server.wait()


def show(done: Finished, workflow: Workflow) -> None:
    """Print what the nodes reported, the figures and the table of a run."""
    from ..server.client import node_title

    for node, reports in done.results.reports.items():
        for report in reports:
            typer.echo(f"{node_title(workflow, node)}: {report}")
    typer.echo(json.dumps(done.figures, indent=2))
    typer.echo(f"\nresults are in {done.results.folder}\n\n{done.results.table}")
