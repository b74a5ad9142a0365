"""Files of ``torch.save`` read without running anything in them: tensors, plain containers, and inert stand-ins.

A pickle is a program for a small machine. This one knows the instructions that weights need and no other, calls
nothing but the functions below, and counts what it does: it can neither run code of a file nor be kept busy by it.
Both formats of ``torch.save`` are read, the zip file since torch 1.6 and the one before.
"""

from __future__ import annotations

import io
import pickletools
import struct
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import BundleError
from .reading import is_file

Between = Callable[[], None]
"""Called now and then while a file is read; may raise to interrupt it."""

MOST_STEPS = 2_000_000
"""Instructions of one file. A thousand weights take some 30,000."""
MOST_SECONDS = 60.0
"""Time for the instructions of one file; reading numbers does not count."""
MOST_DEPTH = 100
"""Modules inside one another."""
LARGEST_PROGRAM = 64_000_000
"""Bytes of the instructions of a zip file."""
_BLOCK = 1 << 24

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
# What Lightning leaves beside the weights in a checkpoint, such as those of latent diffusion.
_TRAINER = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
MODULE_CLASSES = tuple(
    list(_TRAINER)
    + [f"{module}.{name}" for module, names in _LAYERS.items() for name in names]
    + [f"{package}.{part}.{name}" for package in _PACKAGES for part, names in _AUTHORS.items() for name in names]
)
"""Full names of the classes that are read as ``StoredModule``. Everything else that is no tensor is refused."""

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "storage.UntypedStorage": torch.uint8,
}
_DTYPES = {f"torch.{str(dtype).removeprefix('torch.')}": dtype for dtype in _STORAGES.values()}


class StoredModule:
    """What a file holds of a torch module; its attributes are those that were stored."""


class _Name:
    """A name that a file asks for, where it is allowed."""

    def __init__(self, full: str) -> None:
        self.full = full


class _Mark:
    """Where the values of a container begin."""


def read_restricted(path: Path, between: Between = lambda: None) -> Any:
    """The object in a file of ``torch.save``, on the CPU, module classes as ``StoredModule``.

    Tensors can be trained on also when this is called in inference mode. Raises BundleError that names the first thing
    that is not allowed, contradicts the size of the file, or goes beyond the limits above; nothing of the file has
    been run then.
    """
    path = Path(path)
    if not is_file(path):
        raise BundleError(f"file: {path} does not exist. Check the name and the folder.")
    try:
        with torch.inference_mode(False):
            return _read_zip(path, between) if zipfile.is_zipfile(path) else _read_legacy(path, between)
    except BundleError:
        raise
    except (
        *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RecursionError, RuntimeError, struct.error),
        *(TypeError, ValueError, zipfile.BadZipFile, NotImplementedError, MemoryError),
    ) as error:  # a damaged file makes the readers raise almost anything, but what `between` raises goes through
        raise BundleError(f"file: {path.name} cannot be read ({_last_line(error)}). Use another copy.") from error


def _refused(path: Path, name: str) -> BundleError:
    return BundleError(
        f"file: {path.name} asks for '{name[:200]}', which is not among the names that are allowed in a file of "
        "weights. It was not run. Use a copy from a source that you trust."
    )


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__


def _read_zip(path: Path, between: Between) -> Any:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next(iter(entries), "").split("/")[0]
        program = entries.get(f"{root}/data.pkl")
        if program is None:
            raise BundleError(f"file: {path.name} is no file of torch.save. Use another copy.")
        total = sum(entry.file_size for entry in entries.values())
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values())
        if packed or total > size or program.file_size > LARGEST_PROGRAM:
            raise BundleError(f"file: {path.name} contradicts itself about its sizes. Use another copy.")
        order = entries.get(f"{root}/byteorder")
        if order is not None and archive.read(order)[:10] != b"little":
            raise BundleError(f"file: {path.name} has an order of bytes that is not read here. Use another copy.")

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            entry = entries.get(f"{root}/data/{key}")
            if entry is None or count < 0 or entry.file_size != count * dtype.itemsize:
                raise BundleError(f"file: {path.name} is shorter than it says. Use another copy.")
            with archive.open(entry) as stream:
                return _numbers(stream, dtype, count, path, between)

        return _Machine(path, storage, between).run(io.BytesIO(archive.read(program)))


def _numbers(stream: Any, dtype: torch.dtype, count: int, path: Path, between: Between) -> Tensor:
    """The next numbers of a file, whose size was found to hold so many."""
    made = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    data: Any = made.numpy()
    room, done = memoryview(data), 0
    while done < len(room):
        between()
        read = stream.readinto(room[done : done + _BLOCK])
        if not read:
            raise BundleError(f"file: {path.name} ends too early. It is incomplete; use another copy.")
        done += read
    return made.view(dtype)


# The format before torch 1.6: five pickles one after the other, then the numbers of each storage.

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_COUNT = struct.Struct("<q")


class _Bounded:
    """A file for ``pickletools``: reading more than there is fails before memory is taken for it."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size
        self.tell = stream.tell

    def read(self, count: int) -> bytes:
        return self._stream.read(min(count, self._size))

    def readline(self) -> bytes:
        return self._stream.readline(1 << 20)


def _read_legacy(path: Path, between: Between) -> Any:
    left = size = path.stat().st_size
    promised: dict[str, tuple[Tensor, int]] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        # Numbers come after all pickles: the tensors that are made now share the memory that is filled then.
        nonlocal left
        left -= count * dtype.itemsize
        if count < 0 or left < 0:
            raise BundleError(f"file: {path.name} is shorter than it says. Use another copy.")
        made = torch.empty(count, dtype=dtype)
        promised[key] = (made, count)
        return made

    with path.open("rb") as stream:
        bounded = _Bounded(stream, size)
        machine = _Machine(path, storage, between)
        magic, protocol, system = (machine.run(bounded) for _ in range(3))
        known = isinstance(system, dict) and system.get("little_endian") is True
        if not (magic == _MAGIC and protocol == _PROTOCOL and known):
            raise BundleError(f"file: {path.name} is no file of torch.save that is known here. Use another copy.")
        content = machine.run(bounded)
        keys = machine.run(bounded)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(promised):
            raise BundleError(f"file: {path.name} contradicts itself about its numbers. Use another copy.")
        for key in keys:
            made, count = promised[key]
            head = stream.read(_COUNT.size)
            if len(head) < _COUNT.size:
                raise BundleError(f"file: {path.name} ends too early. It is incomplete; use another copy.")
            if _COUNT.unpack(head)[0] != count:
                raise BundleError(f"file: {path.name} contradicts itself about its sizes. Use another copy.")
            made.copy_(_numbers(stream, made.dtype, count, path, between))
        return content


class _Machine:
    """Runs the instructions of pickles. storage: gives the numbers of a key, of a type, so many."""

    def __init__(self, path: Path, storage: Callable[[str, torch.dtype, int], Tensor], between: Between) -> None:
        self._path, self._storage, self._between = path, storage, between
        self._storages: dict[str, Tensor] = {}
        self._steps, self._until = 0, time.monotonic() + MOST_SECONDS
        # Made for this file alone, so that a file can change nothing for the next one.
        self._module = type("StoredModule", (StoredModule,), {})

    def run(self, stream: Any) -> Any:
        """The object of the next pickle."""
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        for code, argument, _ in pickletools.genops(stream):
            self._count()
            if code.name == "STOP":
                return self._stack.pop()
            if code.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[code.name])
            elif code.name in _LITERALS:
                self._stack.append(argument)
            else:
                act = getattr(self, f"_{code.name.lower()}", None)
                if act is None or code.name not in _ACTIONS:
                    raise BundleError(
                        f"file: {self._path.name} holds more than weights ({code.name.lower()}). Use another copy."
                    )
                act(argument)
        raise BundleError(f"file: {self._path.name} ends too early. It is incomplete; use another copy.")

    def _count(self) -> None:
        self._steps += 1
        if self._steps % 1024 == 0:
            self._between()
            if self._steps > MOST_STEPS or time.monotonic() > self._until:
                raise BundleError(f"file: {self._path.name} holds more than weights do. Use another copy.")

    def _to_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while not isinstance(self._stack[place], _Mark):
            place -= 1
            if place < 0:
                raise ValueError("a container without a beginning")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _proto(self, _: Any) -> None:
        """Which instructions follow: they are told by their names."""

    _frame = _proto

    def _mark(self, _: Any) -> None:
        self._stack.append(_Mark())

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    _binput = _long_binput = _put

    def _get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    _binget = _long_binget = _get

    def _empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _empty_set(self, _: Any) -> None:
        self._stack.append(set())

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def _tuple1(self, _: Any) -> None:
        self._stack[-1:] = [tuple(self._stack[-1:])]

    def _tuple2(self, _: Any) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _list(self, _: Any) -> None:
        self._stack.append(self._to_mark())

    def _dict(self, _: Any) -> None:
        values = self._to_mark()
        self._stack.append(_pairs(zip(values[::2], values[1::2], strict=True)))

    def _append(self, _: Any) -> None:
        value = self._stack.pop()
        _of(list, self._stack[-1]).append(value)

    def _appends(self, _: Any) -> None:
        values = self._to_mark()
        _of(list, self._stack[-1]).extend(values)

    def _setitem(self, _: Any) -> None:
        key, value = self._stack[-2:]
        del self._stack[-2:]
        _of(dict, self._stack[-1])[_key(key)] = value

    def _setitems(self, _: Any) -> None:
        values = self._to_mark()
        target = _of(dict, self._stack[-1])
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    def _additems(self, _: Any) -> None:
        values = self._to_mark()
        _of(set, self._stack[-1]).update(map(_key, values))

    def _global(self, argument: str) -> None:
        self._stack.append(self._named(".".join(argument.split(" ", 1))))

    def _stack_global(self, _: Any) -> None:
        module, name = self._stack[-2:]
        del self._stack[-2:]
        self._stack.append(self._named(f"{_of(str, module)}.{_of(str, name)}"))

    def _named(self, full: str) -> Any:
        if full in _DTYPES:
            return _DTYPES[full]
        if full in _CALLS or full in MODULE_CLASSES or full.removeprefix("torch.") in _STORAGES:
            return _Name(full)
        raise _refused(self._path, full)

    def _reduce(self, _: Any) -> None:
        name, values = self._stack[-2:]
        del self._stack[-2:]
        self._stack.append(self._call(name, _of(tuple, values)))

    def _call(self, name: Any, values: tuple[Any, ...]) -> Any:
        full = _of(_Name, name).full
        if full in MODULE_CLASSES:
            return self._module()
        if full not in _CALLS:
            raise _refused(self._path, full)
        if full == "torch._tensor._rebuild_from_type_v2":
            return self._call(values[0], _of(tuple, values[2]))
        return _CALLS[full](*values)

    def _newobj(self, _: Any) -> None:
        name, _values = self._stack[-2:]
        del self._stack[-2:]
        full = _of(_Name, name).full
        if full not in MODULE_CLASSES and full != "collections.OrderedDict":
            raise _refused(self._path, full)
        self._stack.append(self._module() if full in MODULE_CLASSES else OrderedDict())

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, StoredModule) and isinstance(state, tuple):
            return  # of a number of NumPy, which nothing reads
        if not isinstance(target, (StoredModule, OrderedDict)):
            raise ValueError(f"a state for a {type(target).__name__}")
        target.__dict__.update({_of(str, name): value for name, value in _of(dict, state).items()})

    def _binpersid(self, _: Any) -> None:
        kind, *values = _of(tuple, self._stack.pop())
        if kind == "module":  # the class, which is a stand-in; its source text, which may follow, is left alone
            self._stack.append(values[0])
            return
        if kind != "storage":
            raise ValueError("a reference to something other than numbers")
        name, key, _place, count, *view = values
        dtype = _STORAGES.get(_of(_Name, name).full.removeprefix("torch."))
        if dtype is None:
            raise _refused(self._path, name.full)
        key = str(_key(key))
        if key not in self._storages:
            self._storages[key] = self._storage(key, dtype, _of(int, count))
        found = self._storages[key]
        if found.dtype != dtype:
            raise ValueError("numbers of two types at one place")
        if view and view[0] is not None:
            _, offset, length = view[0]
            if not 0 <= _of(int, offset) <= offset + _of(int, length) <= found.numel():
                raise ValueError("a part that lies outside of its numbers")
            found = found[offset : offset + length]
        self._stack.append(found)


def _of(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"a {type(value).__name__} in the place of a {getattr(kind, '__name__', kind)}")
    return value


def _key(value: Any) -> Any:
    """What may be a key: nothing that takes time to hash. A class, as Lightning has it, is one by its name."""
    if isinstance(value, _Name):
        return value.full
    if type(value) not in (str, int, float, bool, bytes, type(None)):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value


def _pairs(pairs: Any) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _ordered(values: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((_key(key), value) for key, value in (values.items() if isinstance(values, dict) else values))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:
    """A view of numbers that lies inside of them and is not larger than they are."""
    numbers, shape, steps = _of(Tensor, storage), tuple(size), tuple(stride)
    dtype = next((value for value in more[2:] if isinstance(value, torch.dtype)), None)
    numbers = numbers if dtype is None else numbers.view(dtype)
    if len(shape) != len(steps) or len(shape) > 8 or any(_of(int, v) < 0 for v in (*shape, *steps, offset)):
        raise ValueError(f"a tensor of shape {shape[:9]}")
    count = 1
    for side in shape:
        count *= side
    last = offset + sum((side - 1) * step for side, step in zip(shape, steps, strict=True))
    if count and (count > numbers.numel() or last >= numbers.numel()):
        raise ValueError(f"a tensor of shape {shape} on {numbers.numel()} numbers")
    start = numbers.storage_offset() + offset
    return numbers.as_strided(shape, steps, start) if count else numbers.new_zeros(shape)


def _parameter(data: Any, *_: Any) -> Tensor:
    return _of(Tensor, data)  # type: ignore[no-any-return]


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    return str(_of(str, text)).encode("latin1")


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": lambda values=(): Counter(dict(_ordered(values))),
    "builtins.set": lambda values=(): set(map(_key, values)),
    "__builtin__.set": lambda values=(): set(map(_key, values)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _parameter,
    "torch.Tensor": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": lambda values=(): tuple(_of(int, value) for value in values),
    "torch.device": lambda *values: ":".join(str(_key(value)) for value in values),
    "_codecs.encode": _encoded,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_ACTIONS = set(
    "PROTO FRAME MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET EMPTY_LIST EMPTY_DICT "
    "EMPTY_SET TUPLE TUPLE1 TUPLE2 TUPLE3 LIST DICT APPEND APPENDS SETITEM SETITEMS ADDITEMS GLOBAL STACK_GLOBAL "
    "REDUCE NEWOBJ BUILD BINPERSID".split()
)


def tensors_in(value: Any) -> dict[str, Tensor]:
    """Tensors by dotted name in a state dict or in a ``StoredModule`` with all its parts; other entries are left out.

    A dictionary of parameters gives its own keys, whichever version of torch wrote it. A part that is held twice is
    read once. Raises BundleError for parts inside one another without end.
    """
    if isinstance(value, Mapping):
        return {str(name): part.detach() for name, part in value.items() if isinstance(part, Tensor)}
    return dict(_module_tensors(value, "", set(), 0))


def _module_tensors(value: Any, prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    stored: Mapping[str, Any] = vars(value) if isinstance(value, StoredModule) else {}
    if depth > MOST_DEPTH:
        raise BundleError(f"file: its part '{prefix[:60]}' lies {depth} deep. It is damaged; use another copy.")
    if id(value) in seen:
        return
    seen.add(id(value))
    for store in ("_parameters", "_buffers"):
        for name, part in _entries(stored.get(store)):
            if isinstance(part, Tensor):
                yield f"{prefix}{name}", part.detach()
    for name, part in _entries(stored.get("_modules")):
        yield from _module_tensors(part, f"{prefix}{name}.", seen, depth + 1)


def _entries(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []
