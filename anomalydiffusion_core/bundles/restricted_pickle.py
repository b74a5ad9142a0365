"""Files of ``torch.save`` read without running anything in them: tensors, plain containers, and inert stand-ins.

The reading is torch's own with ``weights_only``, which refuses every name that is not on its list. The classes of
modules that files of the authors hold are added to that list, but as the stand-in ``StoredModule``: it keeps what was
stored and has no code. Files in the format before torch 1.6 cannot hold modules for that reader; for them there is an
unpickler here, with a list that is shorter still.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import BundleError

_LAYERS = {
    "torch.nn.modules.activation": ("LeakyReLU", "PReLU"),
    "torch.nn.modules.batchnorm": ("BatchNorm2d",),
    "torch.nn.modules.container": ("ModuleList", "ParameterDict", "Sequential"),
    "torch.nn.modules.conv": ("Conv2d",),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.pooling": ("MaxPool2d",),
}
# The spatial encoder's package in the authors' code, and in the code that they took it from.
_PACKAGES = ("ldm.models.psp_encoder", "ldm.modules.psp_encoder", "models")
_AUTHORS = {
    "encoders.psp_encoders": ("GradualStyleBlock", "GradualStyleEncoder"),
    "encoders.helpers": ("bottleneck_IR",),
    "stylegan2.model": ("EqualLinear",),
}
MODULE_CLASSES = tuple(
    [f"{module}.{name}" for module, names in _LAYERS.items() for name in names]
    + [f"{package}.{part}.{name}" for package in _PACKAGES for part, names in _AUTHORS.items() for name in names]
)
"""Full names of the classes that are read as ``StoredModule``. Everything else that is no tensor is refused."""


class StoredModule:
    """What a file holds of a torch module; its attributes are those that were stored."""


def read_restricted(path: Path) -> Any:
    """The object in a file of ``torch.save``, on the CPU, module classes as ``StoredModule``.

    Raises BundleError that names the first thing that is not allowed; nothing of the file has been run then.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"file: {path} does not exist. Check the name and the folder.")
    try:
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except BundleError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is not None:
            raise _refused(path, found[1]) from None
        raise BundleError(
            f"file: {path.name} holds more than weights ({_last_line(error)}). Use another copy."
        ) from None
    except Exception as error:  # a damaged file makes the readers raise almost anything
        raise BundleError(f"file: {path.name} cannot be read ({_last_line(error)}). Use another copy.") from error


def _refused(path: Path, name: str) -> BundleError:
    return BundleError(
        f"file: {path.name} asks for '{name}', which is not among the names that are allowed in a file of weights. It "
        "was not run. Use a copy from a source that you trust."
    )


def _last_line(error: Exception) -> str:
    """What went wrong, without the advice that torch puts around it."""
    lines = [line for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
    return lines[-1].strip() if lines else type(error).__name__


def _read_zip(path: Path) -> Any:
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        raise BundleError(
            f"file: {path.name} cannot be read safely with torch {torch.__version__}, 2.6 or newer is required. "
            "Update torch, or use a safetensors file."
        )
    stand_ins: list[Any] = [(StoredModule, name) for name in MODULE_CLASSES]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


# The format before torch 1.6: five pickles one after the other, then the numbers of each storage.


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_COUNT = struct.Struct("<q")
_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
}


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as stream:
        reader = _LegacyReader(stream, path)
        head = [reader.load() for _ in range(3)]
        if head[:2] != [_MAGIC, _PROTOCOL] or not head[2].get("little_endian"):
            raise BundleError(f"file: {path.name} is no file of torch.save that is known here. Use another copy.")
        content = reader.load()
        for key in reader.load():
            reader.fill(key)
        return content


class _LegacyReader:
    """Reads pickles that may name what is in ``_allowed`` and nothing else."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._storages: dict[str, Tensor] = {}
        self._bytes_left = path.stat().st_size
        # Made for this file alone, so that a file can change nothing for the next one.
        stand_in = type("StoredModule", (StoredModule,), {})
        self._allowed: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "builtins.set": set,
            "__builtin__.set": set,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            **_STORAGES,
            **dict.fromkeys(MODULE_CLASSES, stand_in),
        }

    def load(self) -> Any:
        """The next pickle of the file."""
        outer = self

        class Restricted(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                full = f"{module}.{name}"
                if full not in outer._allowed:
                    raise _refused(outer._path, full)
                return outer._allowed[full]

            def persistent_load(self, identity: Any) -> Any:
                return outer._persistent(*identity)

        return Restricted(self._stream).load()

    def fill(self, key: str) -> None:
        """Read the numbers of a storage, which come after all pickles."""
        storage = self._storages[key]
        head, content = self._stream.read(_COUNT.size), bytearray(self._stream.read(storage.nbytes))
        if len(head) < _COUNT.size or len(content) < storage.nbytes:
            raise BundleError(f"file: {self._path.name} ends too early. It is incomplete; use another copy.")
        (count,) = _COUNT.unpack(head)
        if count != storage.numel():
            raise BundleError(f"file: {self._path.name} contradicts itself about its sizes. Use another copy.")
        if count:
            storage.copy_(torch.frombuffer(content, dtype=storage.dtype))

    def _persistent(self, kind: str, *values: Any) -> Any:
        if kind == "module":
            return values[0]  # the class, which is a stand-in; its source text, which may follow, is left alone
        dtype, key, _, count, view = values
        if key not in self._storages:
            self._bytes_left -= count * dtype.itemsize
            if self._bytes_left < 0:
                raise BundleError(f"file: {self._path.name} is shorter than it says. Use another copy.")
            self._storages[key] = torch.empty(count, dtype=dtype)
        storage = self._storages[key]
        return storage if view is None else storage[view[1] : view[1] + view[2]]

    def _tensor(self, storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        return storage.as_strided(tuple(size), tuple(stride), storage.storage_offset() + offset)

    def _parameter(self, data: Tensor, *_: Any) -> Tensor:
        return data


def tensors_in(value: Any) -> dict[str, Tensor]:
    """Tensors by dotted name in a state dict or in a ``StoredModule`` with all its parts; other entries are left out.

    A dictionary of parameters gives its own keys, whichever version of torch wrote it.
    """
    if isinstance(value, Mapping):
        return {str(name): part.detach() for name, part in value.items() if isinstance(part, Tensor)}
    return dict(_module_tensors(value, "", []))


def _module_tensors(value: Any, prefix: str, above: list[int]) -> Iterator[tuple[str, Tensor]]:
    stored: Mapping[str, Any] = vars(value) if hasattr(value, "__dict__") else {}
    if id(value) in above:
        raise BundleError(f"file: its part '{prefix.rstrip('.')}' holds itself. It is damaged; use another copy.")
    for store in ("_parameters", "_buffers"):
        for name, part in dict(stored.get(store) or {}).items():
            if isinstance(part, Tensor):
                yield f"{prefix}{name}", part.detach()
    for name, part in dict(stored.get("_modules") or {}).items():
        yield from _module_tensors(part, f"{prefix}{name}.", [*above, id(value)])
