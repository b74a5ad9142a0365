"""Detectors of anomalib, trained on normal images in an environment that may be another than this one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...files import file_digest, write_json
from ...weights import read_state
from ..settings import DetectorSettings
from .anomalib_worker import BACKBONE_FILE
from .detectors import DetectorJob
from .rows import Row

WORKER = Path(__file__).with_name("anomalib_worker.py")
FILES = {"wide_resnet50_2": "wide_resnet50_2-95faca4d.pth", "resnet18": "resnet18-f37072fd.pth"}
"""The file of torchvision for each backbone of the publications, under the name of its own cache."""
INSTALL = (
    "Install it into an environment of its own: python -m venv detectors, then detectors/bin/pip install anomalib, "
    "and give --environment detectors"
)
ERROR_LINES = 3
CHECK_SECONDS = 0.5


@dataclass(frozen=True)
class Known:
    """A detector of anomalib: its class, how tables call it, the backbone of its publication and whether it has steps.

    textures: whether it pastes textures of a folder into the normal images, as DRAEM does. layers: whether those of
    the backbone can be chosen.
    """

    model: str
    name: str
    backbone: str = ""
    trained: bool = True
    textures: bool = False
    layers: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


WIDE = "wide_resnet50_2"
MODELS = {
    "patchcore": Known("Patchcore", "PatchCore", WIDE, trained=False, layers=True),
    "padim": Known("Padim", "PaDiM", "resnet18", trained=False, layers=True),
    "cfa": Known("Cfa", "CFA", WIDE),
    "cflow": Known("Cflow", "CFLOW", WIDE, layers=True),
    "fastflow": Known("Fastflow", "FastFlow", "resnet18"),
    "reverse_distillation": Known("ReverseDistillation", "RD4AD", WIDE, layers=True),
    "stfpm": Known("Stfpm", "STFPM", "resnet18", layers=True),
    "draem": Known("Draem", "DRAEM", textures=True),
    "sspcab": Known("Draem", "SSPCAB", textures=True, options={"enable_sspcab": True}),
}
"""By the names of anomalib; SSPCAB is its DRAEM with that block."""


@dataclass(frozen=True)
class AnomalibDetector:
    """One detector with its settings, see `detectors.py:Detector`.

    python: the interpreter of the environment. weights: file of the backbone, None where there is no backbone.
    """

    kind: str
    settings: DetectorSettings
    python: Path
    weights: Path | None = None
    textures: Path | None = None

    @property
    def known(self) -> Known:
        """What is known of its kind."""
        return MODELS[self.kind]

    @property
    def backbone(self) -> str:
        """Name of its pretrained network in timm; empty without one."""
        return (self.settings.backbone or self.known.backbone) if self.known.backbone else ""

    @property
    def budget(self) -> Mapping[str, Any]:
        """What a reader of its figures must know."""
        found: dict[str, Any] = {"detector": f"anomalib {self.known.model}"}
        if self.backbone:
            found["backbone"] = self.backbone + ("" if self.settings.pretrained else " (random weights)")
        if self.layers:
            found["layers"] = " ".join(self.layers)
        return {**found, "steps": self.settings.detector_steps} if self.known.trained else found

    @property
    def layers(self) -> list[str]:
        """Those of the backbone that were chosen; empty for the detector's own."""
        return self.settings.layers.replace(",", " ").split() if self.known.layers else []

    @property
    def reduced(self) -> bool:
        """Whether the backbone is a stand-in, or the steps fewer than publications take (tens of epochs)."""
        other = self.backbone != self.known.backbone or not self.settings.pretrained
        return other or (self.known.trained and self.settings.detector_steps < DetectorSettings().detector_steps)

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that its maps depend on."""
        weights = file_digest(self.weights) if self.weights and self.backbone else ""
        textures = self.textures.as_posix() if self.textures else ""
        batch = self.settings.detector_batch
        return {**self.budget, "kind": self.kind, "weights": weights, "textures": textures, "batch": batch}

    def detect(self, job: DetectorJob, on_wait: Callable[[], None]) -> None:
        """Train and test in the environment. Raises InputError with the last lines of what failed there."""
        if self.backbone and self.weights is not None and self.settings.pretrained:
            from safetensors.torch import save_file

            save_file(_contiguous(read_state(self.weights)), job.folder / BACKBONE_FILE)
        write_json(job.folder / "job.json", self._job(job))
        log = job.folder / "log.txt"
        command = [str(self.python), str(WORKER), str(job.folder)]
        with log.open("wb") as stream:
            running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
            try:
                while running.poll() is None:
                    on_wait()
                    time.sleep(CHECK_SECONDS)
            finally:
                if running.poll() is None:
                    running.kill()
                    running.wait()
        if running.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise InputError(f"models: {self.kind} failed in {self.python}: {' / '.join(lines[-ERROR_LINES:])}.")

    def _job(self, job: DetectorJob) -> dict[str, Any]:
        options = dict(self.known.options)
        if self.backbone:
            options["backbone"] = self.backbone
            if self.kind not in ("cfa", "stfpm"):  # these two always start from a pretrained network
                options["pre_trained"] = self.settings.pretrained
        if self.layers:
            options["layers"] = self.layers
        if self.known.textures:
            options["dtd_dir"] = str(self.textures)
        return {
            "class": self.known.model,
            "options": options,
            "backbone": self.backbone if self.settings.pretrained else "",
            "size": job.size,
            "seed": job.seed,
            "device": job.device,
            "steps": self.settings.detector_steps if self.known.trained else 0,
            "batch_size": self.settings.detector_batch,
        }


def detector_rows(names: Sequence[str], settings: DetectorSettings) -> list[Row]:
    """A row for each detector. All that can be missing is found here, before anything is trained.

    Raises InputError for an unknown or repeated name, no environment with anomalib, and absent weights or textures.
    """
    unknown = [name for name in names if name not in MODELS]
    if unknown or len(set(names)) < len(names):
        given = f"unknown model '{unknown[0]}'" if unknown else f"'{', '.join(names)}' repeats one"
        raise InputError(f"models: {given}. Choose from: {', '.join(MODELS)}.")
    found = []
    python = environment_python(settings.environment) if names else Path(sys.executable)
    for name in names:
        known = MODELS[name]
        weights = _weights(name, settings) if known.backbone and settings.pretrained else None
        if not settings.pretrained and name in ("cfa", "stfpm"):
            raise InputError(f"pretrained: {name} needs a pretrained backbone. Leave it on, or leave {name} out.")
        textures = _textures(name, settings) if known.textures else None
        detector = AnomalibDetector(name, settings, python, weights, textures)
        found.append(Row(name, f"{known.name} (normal images)", known.name, detector=detector))
    return found


def environment_python(given: str) -> Path:
    """The interpreter of an environment's folder, or the one given, or ours where anomalib is installed.

    Raises InputError where there is none.
    """
    if not given.strip():
        if find_spec("anomalib") is None:
            raise InputError(f"environment: anomalib is not installed here. {INSTALL}.")
        return Path(sys.executable)
    path = Path(given.strip()).expanduser()
    tried = [path] if path.is_file() else [path / "bin" / "python", path / "Scripts" / "python.exe"]
    python = next((one for one in tried if one.is_file()), None)
    if python is None:
        raise InputError(f"environment: {path} holds no Python. {INSTALL}.")
    return python.absolute()


def _weights(name: str, settings: DetectorSettings) -> Path:
    backbone = settings.backbone or MODELS[name].backbone
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    file_name = FILES.get(backbone, f"{backbone}.pth")
    path = Path(settings.backbone_weights.strip()).expanduser() if settings.backbone_weights.strip() else cache
    found = path / file_name if path.is_dir() or path == cache else path
    if not found.is_file():
        raise InputError(
            f"backbone_weights: {found} does not exist, which {name} needs. Put {file_name} (ImageNet weights of "
            f"{backbone}) there, or give its path. Nothing is downloaded."
        )
    return found


def _textures(name: str, settings: DetectorSettings) -> Path:
    path = Path(settings.textures.strip()).expanduser()
    if not settings.textures.strip() or not path.is_dir():
        raise InputError(
            f"textures: '{settings.textures}' is no folder, which {name} needs. Give a folder of texture images such "
            "as that of the Describable Textures Dataset (dtd). Nothing is downloaded."
        )
    return path.absolute()


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
