"""Two servers on one output and one models folder, a server that keeps nothing, mutated workflows on a real one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attacks import Campaign, changed, drafts_in, files_of
from tiny_quickstart import QUICKSTART, TINY

from anomalydiffusion_core.errors import AnomalyDiffusionError
from anomalydiffusion_core.server.client import RunResult, queue_workflow
from anomalydiffusion_core.server.process import Host, LocalServer, find_host
from anomalydiffusion_core.server.workflow import load_workflow, parse_assignment, with_inputs
from anomalydiffusion_core.synthetic import render_fewshot_set

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with a small data set and the extension."""
    made = tmp_path_factory.mktemp("servers")
    for name in ("custom_nodes", "input", "output", "models", "user", "temp"):
        (made / name).mkdir()
    (made / "custom_nodes" / "AnomalyDiffusion").symlink_to(ROOT, target_is_directory=True)
    render_fewshot_set(made / "input" / "few", size=128, train_pairs=6, test_pairs=2, normals=6, test_normals=2)
    return made


def server(base: Path, log: Path, *arguments: str) -> LocalServer:
    host = Host(find_host(ROOT).comfyui, base, sys.executable)
    return LocalServer(host, log_path=log, arguments=arguments, cpu=True, timeout=600)


def pasted(seed: int, folder: str = "two/pairs") -> dict[str, dict[str, Any]]:
    """A workflow without a model: real defects pasted on normal images, and exported."""
    data = {"folder": "few", "category": "leather", "split": "first n", "train_count": 3, "split_seed": 0}
    normals = {"dataset": ["1", 0], "count": 4, "seed": seed, "size": 64, "defect_type": "leather/stain"}
    paste = {"image": ["2", 0], "dataset": ["1", 0], "defect_type": "leather/stain", "seed": seed}
    paste |= {"flips": True, "max_degrees": 10.0, "min_scale": 0.8, "max_scale": 1.2, "foreground_overlap": 0.01}
    pairs = {"images": ["3", 0], "masks": ["3", 1], "normals": ["2", 0], "defect_type": ["3", 3], "folder": folder}
    return {
        "1": {"class_type": "AnomalyDiffusionLoadDataset", "inputs": data},
        "2": {"class_type": "AnomalyDiffusionPickNormals", "inputs": normals},
        "3": {"class_type": "AnomalyDiffusionCropAndPaste", "inputs": paste},
        "4": {"class_type": "AnomalyDiffusionExportPairs", "inputs": {**pairs, "min_effect": 0.0}},
    }


def exported(result: RunResult) -> str:
    return str(result.outputs["4"]["pairs_folder"][0])


def test_a_second_server_exports_beside_the_first(host: Any, tmp_path: Path) -> None:
    """A sample of the next test: the server of all tests, and another one on its folders."""
    render_fewshot_set(host.input / "two", size=128, train_pairs=3, test_pairs=1, normals=2, test_normals=1)
    with server(host.base, tmp_path / "log") as other, ThreadPoolExecutor(2) as pool:
        jobs = []
        for place, address in enumerate((host.address, other.address)):
            workflow = with_inputs(pasted(place), [("1", "folder", "two")])
            jobs.append(pool.submit(queue_workflow, address, workflow, timeout=TIMEOUT))
        folders = {exported(job.result()) for job in jobs}
    assert len(folders) == 2
    assert all(len(list((host.output / folder).rglob("*_mask.png"))) == 4 for folder in folders)
    assert not drafts_in(host.output)


@pytest.mark.slow
def test_two_servers_on_one_output_and_one_models_folder(base: Path, tmp_path: Path) -> None:
    campaign = Campaign("two servers")
    tiny = with_inputs(load_workflow(QUICKSTART), [parse_assignment(text) for text in TINY])
    tiny = with_inputs(tiny, [("2", "folder", "few")])
    servers = [server(base, tmp_path / f"{name}.log") for name in "ab"]
    with servers[0], servers[1], ThreadPoolExecutor(2) as pool:

        def on_both(workflows: list[dict[str, dict[str, Any]]]) -> list[Any]:
            return [
                pool.submit(queue_workflow, one.address, workflow, timeout=TIMEOUT)
                for one, workflow in zip(servers, workflows, strict=True)
            ]

        for turn in range(6):
            jobs = on_both([pasted(10 * turn), pasted(10 * turn + 1)])
            results = [campaign.require(f"export {turn}", job.result) for job in jobs]
            folders = [exported(result) for result in results if result is not None]
            if len(set(folders)) != 2 or not all((base / "output" / f / "manifest.jsonl").is_file() for f in folders):
                campaign.fell_short(f"export {turn}", f"wrote {folders}")
        for turn in range(2):
            seeds = [(("3", "seed", 10 * turn + place), ("8", "seed", 10 * turn)) for place in range(2)]
            for job in on_both([with_inputs(tiny, changes) for changes in seeds]):
                campaign.require(f"quickstart {turn}", job.result)
    output = base / "output" / "anomalydiffusion"
    expected = (("pairs", output, 4), ("evaluation", output, 4), ("quickstart_anomaly", base / "models", 4))
    for what, folder, count in expected:
        found = [path for path in folder.rglob(f"{what}_0*") if path.suffix in ("", ".safetensors")]
        if len(found) != count:
            campaign.fell_short(what, f"{len(found)} of {count}: {[path.name for path in found]}")
    for left in drafts_in(base / "output", base / "models"):
        campaign.fell_short("left", left)
    campaign.end()


@pytest.mark.slow
def test_a_server_that_keeps_nothing_writes_nothing_twice(base: Path, tmp_path: Path) -> None:
    campaign = Campaign("--cache-none twice")
    tiny = with_inputs(load_workflow(QUICKSTART), [parse_assignment(text) for text in TINY])
    names = [("2", "folder", "few"), ("9", "folder", "none/pairs"), ("3", "name", "none"), ("4", "name", "masks")]
    tiny = with_inputs(tiny, names)
    with server(base, tmp_path / "log", "--cache-none") as running:
        first = campaign.require("first", lambda: queue_workflow(running.address, tiny, timeout=TIMEOUT))
        before = files_of(base / "output") | files_of(base / "models")
        again = campaign.require("again", lambda: queue_workflow(running.address, tiny, timeout=TIMEOUT))
        after = files_of(base / "output") | files_of(base / "models")
    if first is not None and again is not None:
        wrote = [str(result.outputs["9"]["pairs_folder"][0]) for result in (first, again)]
        if wrote[0] != wrote[1]:
            campaign.fell_short("again", f"exported to {wrote}")
    for name, content in before.items():
        if after.get(name) != content:
            campaign.fell_short("again", f"{name} changed")
    new = [name for name in after if name not in before and "/evaluation" not in name]
    for name in new:
        campaign.fell_short("again", f"{name} was written once more")
    campaign.end()


@pytest.fixture(scope="module")
def running(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with server(base, tmp_path_factory.mktemp("log") / "log") as one:
        yield one


@pytest.mark.slow
def test_a_workflow_succeeds_as_a_whole_or_says_why_not(base: Path, running: LocalServer) -> None:
    campaign = Campaign("60 mutated workflows on a server")
    outputs = {"1", "4"}
    for number in range(60):
        whole = pasted(1000 + number, "mutated/pairs")
        made = changed(whole, campaign.random)
        if not isinstance(made, dict):
            continue
        before = set(files_of(base / "output"))
        campaign.tried += 1
        try:
            json.dumps(made)
            result = queue_workflow(running.address, made, timeout=60)
        except AnomalyDiffusionError as error:
            campaign.refused += 1
            new = set(files_of(base / "output")) - before
            if new:
                campaign.fell_short(str(number), f"{error} but wrote {sorted(new)[0]}")
        except Exception as error:
            campaign.fell_short(str(number), f"{type(error).__name__}: {str(error)[:300]}")
        else:
            campaign.done += 1
            there = {key for key in outputs if key in made}
            if not there <= set(result.outputs):
                campaign.fell_short(str(number), f"succeeded without {there - set(result.outputs)}")
    after = campaign.require("after all", lambda: queue_workflow(running.address, pasted(1), timeout=TIMEOUT))
    if after is None:
        campaign.fell_short("after all", "the server does not work any more")
    campaign.end()
