"""The command `anomalydiffusion`. Heavy imports happen inside the commands, so that --help is quick."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .evaluation import register
from .train import train

if TYPE_CHECKING:
    from ..server.runs import Finished
    from ..server.workflow import Workflow

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Few-shot anomaly generation: a few defect pictures in, image and mask pairs and a measured detector out.",
)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NODE.INPUT=VALUE", help="Change an input of the node with this id or title."),
]
Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of a running ComfyUI with this extension; by default one is started.")
]


def fail(message: str) -> NoReturn:
    """End the command with a message for the user."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


@contextmanager
def plain_errors(*more: type[Exception]) -> Iterator[None]:
    """Show errors that are meant for the user, and `more`, as one message; leave on Ctrl-C and SIGTERM cleanly."""
    from ..errors import AnomalyDiffusionError
    from ..server.client import WorkflowError, WorkflowInterruptedError
    from ..server.process import HostError

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    plain = (AnomalyDiffusionError, HostError, WorkflowError, WorkflowInterruptedError)
    expected: tuple[type[Exception], ...] = (*plain, *more)
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except expected as error:
        fail(str(error))
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None


def show(done: Finished, workflow: Workflow) -> None:
    """Print what the nodes reported, the figures and the table of a run."""
    from ..server.client import node_title

    for node, reports in done.results.reports.items():
        for report in reports:
            typer.echo(f"{node_title(workflow, node)}: {report}")
    typer.echo(json.dumps(done.figures, indent=2))
    typer.echo(f"\nresults are in {done.results.folder}\n\n{done.results.table}")


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder of the results; by default output/demo.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rendered pictures.")] = 0,
    set_: Set = None,
) -> None:
    """Run the whole job on pictures rendered on the spot: learn two defects, make pairs, train and test a detector.

    The folder is replaced when it is output/demo, and must be new when another one is given.
    """
    with plain_errors(FileExistsError):
        from ..server.process import find_host
        from ..server.runs import DEMO_OUTPUT, QUICKSTART, check_new, demo_data, run_workflow
        from ..server.workflow import load_workflow, parse_assignment, with_dataset, with_inputs
        from ..synthetic.fewshot import CATEGORY

        workflow = with_inputs(load_workflow(QUICKSTART), [parse_assignment(text) for text in set_ or ()])
        if out is not None:
            check_new(out)
        typer.echo("rendering the pictures", err=True)
        folder = demo_data(find_host(), seed)
        workflow = with_dataset(workflow, {"folder": folder, "category": CATEGORY})
        target = (out or DEMO_OUTPUT).absolute()
        show(run_workflow(workflow, target, replace=out is None), workflow)


@app.command()
def run(
    workflow: Annotated[Path, typer.Argument(help="Workflow in API format, like workflows/api/quickstart.json.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the category, in the MVTec layout.")],
    category: Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")],
    out: Annotated[Path, typer.Option(help="New folder for the results.")],
    split: Annotated[
        str, typer.Option(help="Which defect pictures train: lowest third, first n, random.")
    ] = "lowest third",
    set_: Set = None,
    address: Address = None,
) -> None:
    """Run a workflow on pictures of your own.

    The category's folder holds train/good, test/DEFECT and ground_truth/DEFECT. With --address the folder must be
    readable at the same place for that server.
    """
    with plain_errors():
        from ..errors import InputError
        from ..server.runs import check_new, run_workflow
        from ..server.workflow import load_workflow, parse_assignment, with_dataset, with_inputs

        if not data.is_dir():
            raise InputError(f"data: {data} is not a folder. Give the folder that holds {category!r}.")
        if not (data / category).is_dir():
            there = ", ".join(sorted(path.name for path in data.iterdir() if path.is_dir())) or "no folders"
            raise InputError(f"category: {data} has no folder {category!r}. It has {there}.")
        check_new(out)
        loaded = with_inputs(load_workflow(workflow), [parse_assignment(text) for text in set_ or ()])
        values = {"folder": data.absolute().as_posix(), "category": category, "split": split}
        loaded = with_dataset(loaded, values)
        show(run_workflow(loaded, out.absolute(), address), loaded)


app.command()(train)


@app.command()
def bundles(
    folder: Annotated[Path, typer.Argument(help="Folder of bundles, for example ComfyUI's models/anomalydiffusion.")],
) -> None:
    """List the bundles below a folder: kind, types, base model, tokens of a type (k) and of a mask (n), route."""
    with plain_errors():
        from ..bundles.listing import bundle_table, list_bundles

        found, left_out = list_bundles(folder)
        for problem in left_out:
            typer.echo(problem, err=True)
        typer.echo(bundle_table(found, folder) if found else f"no bundle in {folder}")


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8188) -> None:
    """Serve ComfyUI's graph editor with this extension on 127.0.0.1 until Ctrl-C."""
    with plain_errors(FileExistsError):
        from ..server.process import LocalServer, find_host
        from ..server.runs import demo_data

        host = find_host()
        typer.echo("rendering the pictures of the quickstart", err=True)
        demo_data(host)
        with LocalServer(host, port=port) as server:
            typer.echo(f"open http://{server.address} in a browser; Ctrl-C ends it", err=True)
            with suppress(KeyboardInterrupt):
                server.wait()


@app.command("pretrain-demo-prior")
def pretrain_demo_prior(
    minutes: Annotated[float, typer.Option(help="Training time, counted over all calls with this folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoints and of demo_prior.safetensors.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the pictures and the weights.")] = 0,
    start: Annotated[
        Path | None, typer.Option(help="A finished prior to go on from; its autoencoder stays as it is.")
    ] = None,
) -> None:
    """Train the small demo model on rendered surfaces, by default from nothing. Called again, it goes on."""
    with plain_errors(ValueError, FileNotFoundError):
        from ..demo_prior import pretrain
        from .bars import StageBars

        with StageBars() as bars:
            path = pretrain.run(out, minutes, seed, bars, start)
        typer.echo(f"written: {path}")


@app.command("check-demo-prior")
def check_demo_prior(
    path: Annotated[
        Path | None, typer.Argument(help="Stored prior; by default the one that is shipped with this extension.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for contact sheets.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the fresh pictures.")] = 0,
) -> None:
    """Measure the demo model on fresh pictures: autoencoder, control, and inversion of defects it has not seen."""
    with plain_errors(ValueError, FileNotFoundError):
        from ..demo_prior import check
        from ..server.runs import DEMO_PRIOR

        figures = check.run(path or DEMO_PRIOR, out, seed, lambda text: typer.echo(text, err=True))
        typer.echo(json.dumps(figures, indent=2))


@app.command("demo-data")
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Folder to render into.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the pictures.")] = 0,
) -> None:
    """Render the pictures of the demo in the MVTec layout, for use in a ComfyUI of your own."""
    with plain_errors(FileExistsError):
        from ..synthetic import render_fewshot_set

        typer.echo(f"written: {render_fewshot_set(folder, seed)}")


register(app)

if __name__ == "__main__":
    app()
