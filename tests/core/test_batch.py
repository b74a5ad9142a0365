"""Batches of prompts: which there are, who does them, what is not done twice. Servers here only count and answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.server import batch as batch_module
from anomalydiffusion_core.server.batch import Batch, Job, jobs_of
from anomalydiffusion_core.server.client import RunResult, WorkflowError
from anomalydiffusion_core.server.process import HostError
from anomalydiffusion_core.synthetic.fewshot import render_fewshot_set

WORKFLOW: dict[str, dict[str, Any]] = {
    "1": {"class_type": "AnomalyDiffusionLoadDataset", "inputs": {"folder": "", "category": "", "defects": ""}},
    "2": {"class_type": "AnomalyDiffusionPickNormals", "inputs": {"dataset": ["1", 0], "count": 4, "seed": 7}},
    "3": {"class_type": "AnomalyDiffusionTrainAnomalyEmbedding", "inputs": {"dataset": ["1", 0], "seed": 1}},
    "4": {"class_type": "AnomalyDiffusionBlendedAARKSampler", "inputs": {"image": ["2", 0], "seed": 20}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch") / "data"
    render_fewshot_set(folder, size=128, train_pairs=2, test_pairs=1, normals=2, test_normals=1)
    return folder


def test_one_prompt_for_each_type_and_block_of_seeds(data: Path) -> None:
    jobs = jobs_of(WORKFLOW, data, "type", 10, 4)
    assert [job.name for job in jobs] == [
        f"leather_{kind}_{first:05d}" for kind in ("scratch", "stain") for first in (0, 4, 8)
    ]
    last = jobs[-1].workflow
    assert (last["1"]["inputs"]["category"], last["1"]["inputs"]["defects"]) == ("leather", "stain")
    assert last["2"]["inputs"] == {"dataset": ["1", 0], "count": 2, "seed": 15}, "10 samples are 4, 4 and 2"
    assert last["4"]["inputs"]["seed"] == 28
    assert last["3"]["inputs"]["seed"] == 1, "what is learned is learned once"
    assert WORKFLOW["2"]["inputs"]["seed"] == 7
    assert [job.name for job in jobs_of(WORKFLOW, data, "category", 4, 4)] == ["leather_00000"]
    assert len({job.key for job in jobs}) == 6


@pytest.mark.parametrize(
    ("changes", "name"), [({"for_each": "day"}, "for-each"), ({"count": 0}, "count"), ({"block": 0}, "count")]
)
def test_wrong_requests_are_named(data: Path, changes: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: "):
        jobs_of(WORKFLOW, data, **{"for_each": "type", "count": 4, "block": 4, **changes})
    with pytest.raises(InputError, match="^data: .*no categories"):
        jobs_of(WORKFLOW, data / "leather", "type", 4, 4)


class Queue:
    """A server whose /queue says that ``length`` prompts of others are there; None for one that is away."""

    def __init__(self, length: int) -> None:
        self.length = length

        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps({"queue_running": [], "queue_pending": [0] * outer.length}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def leave(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def servers() -> Iterator[list[Queue]]:
    made = [Queue(0), Queue(3)]
    yield made
    for one in made:
        one.leave()


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the client: ``done`` is called with (server, job's workflow) in place of a run."""
    calls: dict[str, Any] = {"log": [], "done": lambda server, workflow: None}

    def queue_workflow(address: Any, workflow: Any, on_progress: Any, check: Any) -> RunResult:
        calls["log"].append((str(address), workflow["name"]["inputs"]["job"]))
        time.sleep(0.02)
        calls["done"](str(address), workflow["name"]["inputs"]["job"])
        return RunResult("id", {}, 0.1)

    monkeypatch.setattr(batch_module, "queue_workflow", queue_workflow)
    return calls


def jobs(count: int) -> list[Job]:
    return [Job(f"job{n:02d}", {"name": {"class_type": "Name", "inputs": {"job": n}}}) for n in range(count)]


def folders(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_all_are_done_once_and_not_again(servers: list[Queue], queued: dict[str, Any], tmp_path: Path) -> None:
    addresses = [one.address for one in servers]
    report = Batch(jobs(12), addresses, tmp_path / "out").run()
    assert sorted(report.done) == folders(tmp_path / "out") == [job.name for job in jobs(12)]
    assert sorted(number for _, number in queued["log"]) == list(range(12))
    assert {server for server, _ in queued["log"]} == set(addresses)
    assert queued["log"][0][0] == addresses[0], "the shortest queue comes first"
    again = Batch(jobs(13), addresses, tmp_path / "out").run()
    assert (again.done, len(again.before)) == (["job12"], 12)
    assert len(queued["log"]) == 13
    other = [Job("job03", {"name": {"class_type": "Name", "inputs": {"job": 99}}})]
    with pytest.raises(InputError, match="^out: .*job03.*another workflow"):
        Batch(other, addresses, tmp_path / "out")


def test_a_server_that_goes_away_loses_no_job(servers: list[Queue], queued: dict[str, Any], tmp_path: Path) -> None:
    lost = servers[1].address

    def done(server: str, number: int) -> None:
        if server == lost:
            servers[1].leave()
            raise HostError("went away")

    queued["done"] = done
    report = Batch(jobs(12), [one.address for one in servers], tmp_path / "out").run()
    assert sorted(report.done) == [job.name for job in jobs(12)] and not report.failed
    assert sum(server == lost for server, _ in queued["log"]) == 1
    assert len(queued["log"]) == 13, "only the one that was lost is run again"
    servers.pop()


def test_failures_are_listed_and_the_rest_goes_on(
    servers: list[Queue], queued: dict[str, Any], tmp_path: Path
) -> None:
    def done(server: str, number: int) -> None:
        if number == 2:
            raise WorkflowError("8", "Sampler", "mask: is empty")

    queued["done"] = done
    report = Batch(jobs(4), [servers[0].address], tmp_path / "out").run()
    assert sorted(report.done) == ["job00", "job01", "job03"]
    assert "failed: job02, node 8 (Sampler): mask: is empty" in report.text()
    queued["done"] = lambda server, number: None
    assert Batch(jobs(4), [servers[0].address], tmp_path / "out").run().done == ["job02"]


def test_without_any_server_what_is_left_is_named(queued: dict[str, Any], tmp_path: Path) -> None:
    gone = Queue(0)
    gone.leave()
    report = Batch(jobs(2), [gone.address], tmp_path / "out", give_up=0.2).run()
    assert report.left == ["job00", "job01"] and queued["log"] == []


def test_leaving_takes_the_own_prompts_back(servers: list[Queue], queued: dict[str, Any], tmp_path: Path) -> None:
    checks: list[Callable[[], None]] = []
    batch = Batch(jobs(1), [servers[0].address], tmp_path / "out")
    checks.append(batch._check)
    checks[0]()
    batch.stop.set()
    with pytest.raises(KeyboardInterrupt):
        checks[0]()
