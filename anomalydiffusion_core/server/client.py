"""Queue a workflow in API format on a running ComfyUI server, follow it, and fetch what it made."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import websocket

from ..errors import PROJECT, AnomalyDiffusionError
from ..files import replacing
from .address import ServerAddress, certificates, server_address
from .process import HostError
from .workflow import check_workflow

logger = logging.getLogger(__name__)

# Seconds without a message after which the server is asked whether the prompt is still there.
QUIET = 15.0
# Shortest time in seconds between two of these questions; seconds that a prompt which is taken back has to be gone;
# looks at the queue, a tenth of a second apart, that must not show it before it counts as gone.
PAUSE, REMOVAL, ABSENT = 1.0, 20.0, 10
# Reconnections of the websocket before the server counts as lost.
PATIENCE = 20
# Seconds after its end within which a prompt must be in the server's history.
HISTORY_DELAY = 60.0

Workflow = Mapping[str, Mapping[str, Any]]


class WorkflowError(AnomalyDiffusionError):
    """A node refused or failed. `node_id`, `node_class`, `message` say which and why, `details` is its traceback."""

    def __init__(self, node_id: str, node_class: str, message: str, details: str = "") -> None:
        place = f"node {node_id} ({node_class}): " if node_id else ""
        super().__init__(place + message)
        self.node_id = node_id
        self.node_class = node_class
        self.message = message
        self.details = details


class WorkflowInterruptedError(AnomalyDiffusionError):
    """Somebody stopped the prompt on the server."""


@dataclass(frozen=True)
class Progress:
    """One step of a running workflow: `value` of `maximum` in the node; `done` of `total` nodes are finished.

    `maximum` is 0 while a node has not said how far it is; `ended` marks the last step of a node.
    """

    node_id: str
    title: str
    value: float
    maximum: float
    done: int
    total: int
    ended: bool = False


OnProgress = Callable[[Progress], None]


@dataclass
class RunResult:
    """What a finished prompt left: `outputs` maps a node id to the lists it showed (images, text, ...)."""

    prompt_id: str
    outputs: dict[str, dict[str, list[Any]]]
    seconds: float
    cached: tuple[str, ...] = field(default=())


def node_title(workflow: Workflow, node_id: str) -> str:
    """The title a node has in the workflow, else its class, else its id."""
    node = workflow.get(node_id, {})
    return str(node.get("_meta", {}).get("title") or node.get("class_type") or node_id)


def queue_workflow(
    address: str | ServerAddress,
    workflow: Workflow,
    on_progress: OnProgress | None = None,
    check_alive: Callable[[], None] | None = None,
    timeout: float | None = None,
) -> RunResult:
    """Queue `workflow` on the server at `address`, see `server_address`, and return once it is finished.

    A workflow of which the server refuses any part is not run at all.

    `on_progress` is called from this thread when a node starts, advances and ends. `check_alive` may raise when the
    server's process is known to be gone. When this function is left by an exception (Ctrl-C, an error raised in
    `on_progress`, `timeout` seconds passed), the prompt is interrupted on the server.

    Raises:
        InputError: it is no workflow in API format.
        WorkflowError: the server refused the workflow or a part of it, or a node failed.
        WorkflowInterruptedError: the prompt was stopped from elsewhere, or taken out of the queue.
        HostError: no server there, or it went away.
        TimeoutError: `timeout` is over.
    """
    check_workflow(workflow)
    follower = _Follower(server_address(address), workflow, on_progress, check_alive, timeout)
    with follower.address.session() as http:
        return follower.run(http)


class _Follower:
    """One prompt from queueing to its end."""

    def __init__(
        self,
        address: ServerAddress,
        workflow: Workflow,
        on_progress: OnProgress | None,
        check_alive: Callable[[], None] | None,
        timeout: float | None,
    ) -> None:
        self.address = address
        self.workflow = workflow
        self.on_progress = on_progress
        self.check_alive = check_alive
        self.client = uuid.uuid4().hex
        # Chosen here, so that a prompt can be taken back also when its answer was never read.
        self.prompt_id = str(uuid.uuid4())
        self.current = ""
        self.begun: list[str] = []
        self.cached: list[str] = []
        self.started = self.asked = time.monotonic()
        self.changed = False
        self.deadline = None if timeout is None else self.started + timeout

    def run(self, http: requests.Session) -> RunResult:
        socket = self._connect()
        try:
            try:
                self._post(http)
                self._follow(http, socket)
            except (WorkflowError, WorkflowInterruptedError):
                raise
            except BaseException:
                self._take_back(http)
                raise
        finally:
            socket.close()
        return RunResult(self.prompt_id, self._outputs(http), time.monotonic() - self.started, tuple(self.cached))

    def _connect(self) -> websocket.WebSocket:
        try:
            return websocket.create_connection(
                self.address.socket_url(self.client),
                timeout=QUIET,
                header=self.address.headers,
                sslopt={"ca_certs": certificates()} if certificates() else None,
                http_no_proxy=["*"],
            )
        except (OSError, ValueError, websocket.WebSocketException) as error:
            if self.check_alive is not None:
                self.check_alive()
            raise HostError(f"no ComfyUI server answers at {self.address} ({_without_url(error)})") from error

    def _post(self, http: requests.Session) -> None:
        body: Any = {"prompt": self.workflow, "client_id": self.client, "prompt_id": self.prompt_id}
        try:
            answer = http.post(self.address.url("/prompt"), json=body, timeout=120)
        except requests.RequestException as error:
            raise HostError(
                f"the ComfyUI server at {self.address} does not take a workflow ({_without_url(error)})"
            ) from error
        if not answer.ok:
            raise _refusal(answer)
        try:
            queued = answer.json()
            self.prompt_id = str(queued["prompt_id"])  # older servers choose it themselves
        except (ValueError, TypeError, KeyError) as error:
            raise HostError(f"{self.address} does not answer like a ComfyUI server ({answer.text[:200]!r})") from error
        if queued.get("node_errors"):
            # The server has queued what is left of the workflow, whose results would look like all of it.
            self._take_back(http)
            raise _refusal(answer)

    def _follow(self, http: requests.Session, socket: websocket.WebSocket) -> None:
        failures = 0
        while True:
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise TimeoutError(f"the workflow did not finish in time; it was at {self._where()}")
            try:
                message = socket.recv()
                failures = 0
            except websocket.WebSocketTimeoutException:
                if self._ended(http):
                    return
                continue
            except (OSError, websocket.WebSocketException) as error:
                if self.check_alive is not None:
                    self.check_alive()
                failures += 1
                if failures > PATIENCE:
                    raise HostError(f"the ComfyUI server at {self.address} went away at {self._where()}") from error
                time.sleep(0.5)
                if self._ended(http):
                    return
                self._reconnect(socket)
                continue
            # Binary messages are preview images.
            told = json.loads(message) if isinstance(message, str) and message else {}
            if self._handle(told):
                return
            # The queue may have changed by taking this prompt out of it, of which no message of its own tells.
            self.changed = self.changed or told.get("type") == "status"
            since = time.monotonic() - self.asked
            if (since > QUIET or (self.changed and since > PAUSE)) and not self.current:
                self._check_there(http)

    def _reconnect(self, socket: websocket.WebSocket) -> None:
        try:
            socket.connect(
                self.address.socket_url(self.client), timeout=QUIET, header=self.address.headers, http_no_proxy=["*"]
            )
        except (OSError, websocket.WebSocketException):
            logger.debug("the server at %s does not answer yet", self.address)

    def _ended(self, http: requests.Session) -> bool:
        """Whether the history says that the prompt is over; raises what a message would have raised.

        A prompt that is neither in the history nor in the queue will never end: that is said, and not waited for.
        """
        entry = self._check_there(http)
        for name, data in entry.get("status", {}).get("messages", []):
            if self._handle({"type": name, "data": data}):
                return True
        return bool(entry.get("status", {}).get("completed"))

    def _check_there(self, http: requests.Session) -> dict[str, Any]:
        """The prompt in the history, empty before its end. Raises WorkflowInterruptedError when it is nowhere."""
        self.asked, self.changed = time.monotonic(), False
        if self.check_alive is not None:
            self.check_alive()
        # The queue is asked first: between the two questions a prompt may end, but never come back.
        queued = self._is_queued(http)
        entry = self._entry(http)
        if not entry and not queued:
            raise WorkflowInterruptedError(
                f"the workflow is neither in the queue nor in the history of the server at {self.address}: it was "
                f"removed there, or the server was restarted, at {self._where()}. Queue it again."
            )
        return entry

    def _is_queued(self, http: requests.Session) -> bool:
        """Whether the prompt runs or waits on the server."""
        found = self._get(http, "/queue")
        entries = [*found.get("queue_running", []), *found.get("queue_pending", [])]
        return any(self._is_own(entry) for entry in entries)

    def _is_own(self, entry: Sequence[Any]) -> bool:
        more = entry[3] if len(entry) > 3 and isinstance(entry[3], Mapping) else {}
        if more.get("client_id") == self.client:
            self.prompt_id = str(entry[1])
            return True
        return bool(entry[1] == self.prompt_id)

    def _outputs(self, http: requests.Session) -> dict[str, Any]:
        # The server says that it is done a moment before it writes the history.
        last_try = time.monotonic() + HISTORY_DELAY
        while "outputs" not in (entry := self._entry(http)):
            if time.monotonic() > last_try:
                raise HostError(f"the ComfyUI server at {self.address} finished, but has no history of the workflow")
            time.sleep(0.05)
        return dict(entry["outputs"])

    def _entry(self, http: requests.Session) -> dict[str, Any]:
        return dict(self._get(http, f"/history/{self.prompt_id}").get(self.prompt_id, {}))

    def _get(self, http: requests.Session, path: str) -> dict[str, Any]:
        try:
            answer = http.get(self.address.url(path), timeout=60)
            answer.raise_for_status()
            return dict(answer.json())
        except (requests.RequestException, ValueError, TypeError) as error:
            if self.check_alive is not None:
                self.check_alive()
            raise HostError(f"the ComfyUI server at {self.address} went away at {self._where()}") from error

    def _handle(self, message: dict[str, Any]) -> bool:
        """Take in one message of the server; True when the prompt has ended well."""
        kind, data = message.get("type"), message.get("data") or {}
        if data.get("prompt_id") != self.prompt_id:
            return False
        if kind == "execution_success":
            self._end_of_node()
            return True
        if kind == "execution_error":
            raise WorkflowError(
                str(data.get("node_id", "")),
                str(data.get("node_type", "")),
                _failure(str(data.get("exception_type", "error")), str(data.get("exception_message", ""))),
                "".join(data.get("traceback") or []),
            )
        if kind == "execution_interrupted":
            raise WorkflowInterruptedError(f"the workflow was stopped at {self._where()}")
        if kind == "execution_cached":
            self.cached = [str(node) for node in data.get("nodes", [])]
        elif kind == "executing" and data.get("node") is not None:
            self._begin(str(data["node"]))
        elif kind == "progress" and data.get("node") is not None:
            self._begin(str(data["node"]))
            self._tell(float(data["value"]), float(data["max"]))
        return False

    def _begin(self, node: str) -> None:
        if node == self.current:
            return
        self._end_of_node()
        self.current = node
        if node not in self.begun:
            self.begun.append(node)
        self._tell(0.0, 0.0)

    def _end_of_node(self) -> None:
        if self.current:
            self._tell(1.0, 1.0, ended=True)
            self.current = ""

    def _tell(self, value: float, maximum: float, ended: bool = False) -> None:
        if self.on_progress is None:
            return
        done = len(self.cached) + len(self.begun) - (0 if ended else 1)
        title = node_title(self.workflow, self.current)
        self.on_progress(Progress(self.current, title, value, maximum, done, len(self.workflow), ended))

    def _where(self) -> str:
        return f"node {self.current} ({node_title(self.workflow, self.current)})" if self.current else "its start"

    def _take_back(self, http: requests.Session) -> None:
        """Take the prompt out of the queue, or stop it when it runs; a server that is gone needs neither."""
        # The request that queued it may be on its way, and a prompt that has just begun forgets an interrupt.
        absent = 0
        last_try = time.monotonic() + REMOVAL
        try:
            while absent < ABSENT and time.monotonic() < last_try:
                absent = 0 if self._is_queued(http) else absent + 1
                if not absent:
                    http.post(self.address.url("/queue"), json={"delete": [self.prompt_id]}, timeout=10)
                    http.post(self.address.url("/interrupt"), json={"prompt_id": self.prompt_id}, timeout=10)
                time.sleep(0.1)
        except (requests.RequestException, AnomalyDiffusionError) as error:
            logger.debug("the prompt could not be taken back: %s", error)


def _failure(kind: str, message: str) -> str:
    """What a node said; errors of this project, which name what is wrong, without the name of their class."""
    text = message.strip()
    return text if kind.startswith(f"{PROJECT}.") and text else f"{kind.rpartition('.')[2]}: {text}"


def _without_url(error: Exception) -> str:
    """A reason without the address, in which there may be a token."""
    reason = getattr(error, "reason", None) or error
    return type(reason).__name__ if "token" in str(reason) or "://" in str(reason) else str(reason)


def _refusal(answer: requests.Response) -> WorkflowError:
    """The error that a server's answer to an invalid workflow stands for."""
    try:
        body = answer.json()
    except requests.JSONDecodeError:
        return WorkflowError("", "", f"the server answered {answer.status_code}: {answer.text[:500]}")
    error = body.get("error") or {}
    known = isinstance(error, dict) and error
    summary = error.get("message", "") if known else str(error or "the server refuses a part of the workflow")
    for node_id, found in (body.get("node_errors") or {}).items():
        reasons = [f"{e.get('message', '')}: {e.get('details', '')}".strip(": ") for e in found.get("errors", [])]
        return WorkflowError(str(node_id), str(found.get("class_type", "")), f"{summary}: {'; '.join(reasons)}")
    details = error.get("details", "") if isinstance(error, dict) else ""
    return WorkflowError("", "", f"{summary} {details}".strip())


def download(address: str | ServerAddress, item: Mapping[str, str], folder: Path) -> Path:
    """Save one file that a node showed ({"filename", "subfolder", "type"}) into `folder` under its own name."""
    server = server_address(address)
    name = Path(item["filename"]).name
    query = {"filename": item["filename"], "subfolder": item.get("subfolder", ""), "type": item.get("type", "output")}
    try:
        with server.session() as http:
            answer = http.get(server.url("/view"), params=query, timeout=300)
    except requests.RequestException as error:
        raise HostError(f"the ComfyUI server at {server} went away ({_without_url(error)})") from error
    if not answer.ok:
        raise HostError(f"the server at {server} does not give {name} ({answer.status_code})")
    with replacing(folder / name) as partial:
        partial.write_bytes(answer.content)
    return folder / name
