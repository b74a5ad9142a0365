"""Many prompts on several ComfyUI servers: one for each defect type or category and block of seeds, each done once."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from ..data.mvtec import load_dataset
from ..data.pairing import list_folders
from ..data.splits import SplitSettings
from ..errors import DatasetError, InputError
from ..files import content_key, new_folder, write_json
from .address import ServerAddress, server_address
from .client import Progress, WorkflowError, WorkflowInterruptedError, queue_workflow
from .process import HostError
from .results import fetch_results, summary
from .runs import finish
from .workflow import EVALUATION_NODE, MASK_SAMPLER, MASK_TRAINING, NORMALS, TRAINING, Workflow, with_dataset

CATEGORY, TYPE = "category", "type"
JOB_FILE = "job.json"
COUNTED = (MASK_SAMPLER, NORMALS, "AnomalyDiffusionVaryRealMasks", "AnomalyDiffusionProceduralMasks")
"""Nodes whose count is the number of samples of a prompt."""
UNSEEDED = (
    TRAINING,
    MASK_TRAINING,
    EVALUATION_NODE,
    "AnomalyDiffusionAdaptToNormals",
    "AnomalyDiffusionEvaluateClassification",
    "AnomalyDiffusionEvaluateGeneration",
)
"""Nodes whose seed stays the same in all blocks: what is learned and measured once."""
AWAY_SECONDS, GIVE_UP_SECONDS = 5.0, 300.0
"""Between two looks at a server that went away, and until none of them being there ends the work."""


@dataclass(frozen=True)
class Job:
    """One prompt: its name (also of its folder), and the workflow to queue."""

    name: str
    workflow: Workflow

    @property
    def key(self) -> str:
        """The same for the same work."""
        return content_key("batch", self.workflow)


@dataclass(frozen=True)
class Failure:
    """A job that a node ended: its name, the node as `id (class)`, and the message."""

    job: str
    node: str
    message: str


@dataclass
class BatchReport:
    """What became of the jobs: names of those done now and before, failures, and those that no server was left for."""

    done: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def text(self) -> str:
        """A line for each number that is not zero, and one for each failure."""
        lines = [f"{len(self.done)} done"]
        if self.before:
            lines.append(f"{len(self.before)} were done before")
        lines += [f"failed: {failure.job}, {failure.node}: {failure.message}" for failure in self.failed]
        if self.left:
            lines.append(f"not run, no server was left: {', '.join(self.left)}. Run the same command again.")
        return "\n".join(lines)


@dataclass
class BatchState:
    """What a display needs: jobs in all and ended, and for each busy server its job and how far it is (0 to 1)."""

    total: int
    ended: int = 0
    running: dict[str, tuple[str, float]] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)

    @property
    def share(self) -> float:
        """Jobs ended, with parts of those that run."""
        return self.ended + sum(part for _, part in self.running.values())


def jobs_of(
    workflow: Workflow,
    data: Path,
    for_each: str,
    count: int,
    block: int,
    categories: Sequence[str] = (),
    splitting: Mapping[str, Any] | None = None,
) -> list[Job]:
    """The prompts of a workflow: for each category or defect type, ``count`` samples in blocks of at most ``block``.

    Seeds move on by the samples made before, so that no two blocks are alike. Raises InputError for another
    ``for_each``, a folder without categories, and a workflow without the nodes that say how many samples there are.
    """
    if for_each not in (CATEGORY, TYPE):
        raise InputError(f"for-each: unknown value '{for_each}'. Choose one of: {CATEGORY}, {TYPE}.")
    if count < 1 or block < 1:
        raise InputError(f"count: {count} in blocks of {block}. Give numbers of at least 1.")
    if not any(node["class_type"] in COUNTED for node in workflow.values()):
        raise InputError(f"workflow: has no node with a count of samples ({', '.join(COUNTED)}). Use another one.")
    jobs = []
    for category in categories or _categories(data):
        values = {"folder": data.absolute().as_posix(), "category": category, **(splitting or {})}
        kinds = [""]
        if for_each == TYPE:
            dataset = load_dataset(data, category, SplitSettings(**(splitting or {})))
            kinds = [kind.defect for kind in dataset.types]
        for kind in kinds:
            own = with_dataset(workflow, {**values, "defects": kind} if kind else values)
            for first in range(0, count, block):
                name = "_".join(part for part in (category, kind, f"{first:05d}") if part)
                jobs.append(Job(name, _block(own, first, min(block, count - first))))
    return jobs


def _categories(data: Path) -> list[str]:
    names = [folder.name for folder in list_folders(data) if (folder / "train").is_dir()] if data.is_dir() else []
    if not names:
        raise InputError(f"data: {data} holds no categories. Give a folder of folders with train/good and test.")
    return names


def _block(workflow: Workflow, first: int, size: int) -> Workflow:
    changed = copy.deepcopy(workflow)
    for node in changed.values():
        inputs = node["inputs"]
        if node["class_type"] in COUNTED and not isinstance(inputs.get("count"), list):
            inputs["count"] = size
        for name in ("seed", "noise_seed"):
            if node["class_type"] not in UNSEEDED and isinstance(inputs.get(name), int):
                inputs[name] += first
    return changed


class Batch:
    """Jobs, the servers they are spread over, and the folder with one folder of results for each."""

    def __init__(
        self,
        jobs: Sequence[Job],
        addresses: Sequence[str | ServerAddress],
        out: Path,
        tell: Callable[[BatchState], None] = lambda state: None,
        give_up: float = GIVE_UP_SECONDS,
    ) -> None:
        self.servers = {str(one): one for one in map(server_address, addresses)}
        if not self.servers:
            raise InputError("address: none is given. Name at least one server.")
        self.out, self.tell, self.give_up = out, tell, give_up
        self.report = BatchReport()
        self.waiting = deque(self._unfinished(jobs))
        self.state = BatchState(len(jobs), len(self.report.before))
        self.looked: dict[str, float] = {}
        self.stop = threading.Event()

    def run(self) -> BatchReport:
        """Do all jobs that are not done yet. When it is left by an exception, its own prompts are taken back."""
        running: dict[Future[None], tuple[str, Job]] = {}
        last_alive = time.monotonic()
        with ThreadPoolExecutor(len(self.servers)) as pool:
            try:
                while self.waiting or running:
                    for server in self._idle(server for server, _ in running.values()):
                        if self.waiting:
                            job = self.waiting.popleft()
                            running[pool.submit(self._do, job, server)] = (server, job)
                    if running:
                        last_alive = time.monotonic()
                    elif time.monotonic() - last_alive > self.give_up:
                        self.report.left = [job.name for job in self.waiting]
                        break
                    ended = wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done
                    if not running:
                        time.sleep(0.5)
                    for future in ended:
                        self._end(future, *running.pop(future))
                    self.tell(self.state)
            finally:
                self.stop.set()
        return self.report

    def _unfinished(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Jobs without a folder of results; a folder of another workflow is an error, before anything runs."""
        for job in jobs:
            record = self.out / job.name / JOB_FILE
            if not record.is_file():
                yield job
            elif json.loads(record.read_text("utf-8")).get("key") == job.key:
                self.report.before.append(job.name)
            else:
                raise InputError(f"out: {record.parent} holds results of another workflow. Give another folder.")

    def _idle(self, busy: Iterator[str]) -> list[str]:
        """Servers that can take a job, the one with the shortest queue first. Those away are asked now and then."""
        taken = set(busy)
        lengths: dict[str, int] = {}
        for name, address in self.servers.items():
            if name in taken:
                continue
            if name in self.state.away and time.monotonic() - self.looked.get(name, 0.0) < AWAY_SECONDS:
                continue
            self.looked[name] = time.monotonic()
            length = queue_length(address)
            if length is None:
                self.state.away.add(name)
            else:
                self.state.away.discard(name)
                lengths[name] = length
        return sorted(lengths, key=lambda name: lengths[name])

    def _do(self, job: Job, server: str) -> None:
        address, started = self.servers[server], time.monotonic()

        def on_progress(step: Progress) -> None:
            self._check()
            part = step.value / step.maximum if step.maximum else 0.0
            self.state.running[server] = (job.name, min((step.done + part) / max(step.total, 1), 1.0))

        self.state.running[server] = (job.name, 0.0)
        done = queue_workflow(address, job.workflow, on_progress, self._check)
        with new_folder(self.out / job.name) as draft:
            results = fetch_results(address, done, draft)
            finish(draft, summary(results, time.monotonic() - started, None))
            write_json(draft / JOB_FILE, {"key": job.key, "server": server, "workflow": job.workflow})

    def _check(self) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt

    def _end(self, future: Future[None], server: str, job: Job) -> None:
        self.state.running.pop(server, None)
        try:
            future.result()
        except (HostError, requests.RequestException):
            # Nothing of it was kept here: it is done again, by whoever is there.
            self.state.away.add(server)
            self.looked[server] = time.monotonic()
            self.waiting.appendleft(job)
            return
        except WorkflowError as error:
            place = f"node {error.node_id} ({error.node_class})" if error.node_id else "the workflow"
            self.report.failed.append(Failure(job.name, place, error.message.strip()))
        except (WorkflowInterruptedError, DatasetError) as error:
            self.report.failed.append(Failure(job.name, "the prompt", str(error)))
        else:
            self.report.done.append(job.name)
        self.state.ended += 1


def queue_length(address: ServerAddress) -> int | None:
    """Prompts that run or wait on a server, of anybody; None when it does not answer."""
    try:
        with address.session() as http:
            found = http.get(address.url("/queue"), timeout=10)
            found.raise_for_status()
            return sum(len(found.json()[name]) for name in ("queue_running", "queue_pending"))
    except (requests.RequestException, KeyError, ValueError):
        return None
