"""Files of weights that lie about themselves: refused by name, at once, and without memory for what they claim."""

from __future__ import annotations

import io
import json
import math
import pickle
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import authors_layout
import pytest
import torch
import torchvision.models  # noqa: F401 - which one of the readers would import while its time is taken
from safetensors.torch import save_file

from anomalydiffusion_core.backends.ldm_files import read_prior
from anomalydiffusion_core.bundles.authors_files import read_embeddings, read_spatial_encoder
from anomalydiffusion_core.bundles.bundle import AnomalyBundle, load_bundle
from anomalydiffusion_core.bundles.listing import list_bundles
from anomalydiffusion_core.conditioning.spatial_encoder import build_spatial_encoder, load_backbone
from anomalydiffusion_core.errors import AnomalyDiffusionError, BundleError
from anomalydiffusion_core.evaluation.localization.network import load_network
from anomalydiffusion_core.restricted_pickle import read_restricted
from anomalydiffusion_core.store import FolderStore, stored_metadata
from anomalydiffusion_core.training.lora import load_lora
from anomalydiffusion_core.training.state import read_state

DEMO_PRIOR = Path(__file__).resolve().parents[2] / "models" / "demo_prior.safetensors"
READERS: list[Callable[[Path], Any]] = [
    read_restricted, read_spatial_encoder, read_embeddings, load_backbone, load_network, read_state,
]  # fmt: skip


def zip_of(program: bytes, **numbers: bytes) -> bytes:
    """A file of torch.save with these instructions."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        for key, content in numbers.items():
            archive.writestr(f"archive/data/{key.removeprefix('n')}", content)
    return buffer.getvalue()


def refused(path: Path, content: bytes, readers: list[Callable[[Path], Any]] = READERS) -> list[str]:
    """What each reader says of a file; fails when one takes longer than a second or much memory."""
    path.write_bytes(content)
    before, said = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for read in readers:
        started = time.process_time()
        with pytest.raises(AnomalyDiffusionError) as caught:
            read(path)
        assert time.process_time() - started < 2
        assert path.name in str(caught.value) and "weights_only" not in str(caught.value)
        said.append(str(caught.value))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    return said


def shared_tuples(depth: int) -> bytes:
    """A dictionary keyed by tuples that hold one another twice: to hash it takes 2 ** depth steps."""
    return b"\x80\x02}" + b"K\x01" + b"".join(b"2\x86" for _ in range(depth)) + b"K\x00s."


def test_a_key_that_takes_for_ever_to_hash(tmp_path: Path) -> None:
    refused(tmp_path / "a.pt", zip_of(shared_tuples(60)))


def test_values_that_hold_one_another_twice_are_not_followed(tmp_path: Path) -> None:
    """60 lists inside one another, each twice: all parts together are 2 ** 60."""
    program = b"\x80\x02}X\x01\x00\x00\x00a" + b"K\x01" + b"2\x86" * 60 + b"s."
    refused(tmp_path / "a.pt", zip_of(program), READERS[1:5])


def test_memory_that_is_only_promised(tmp_path: Path) -> None:
    bytearray_of = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (20 * 10**9).to_bytes(5, "little") + b"\x85R."
    assert "bytearray" in refused(tmp_path / "a.pt", zip_of(bytearray_of))[0]
    refused(tmp_path / "b.pt", zip_of(b"\x80\x05\x96" + struct.pack("<Q", 20 * 10**9) + b"."))
    refused(tmp_path / "c.pt", zip_of(b"\x80\x04\x8e" + struct.pack("<Q", 20 * 10**9) + b"."))
    refused(tmp_path / "d.pt", zip_of(b"\x80\x02K\x01r" + struct.pack("<I", 4 * 10**9) + b"."), READERS[1:])


def legacy(*values: Any) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}]
    return b"".join(value if isinstance(value, bytes) else pickle.dumps(value, 2) for value in [*head, *values])


def storage(key: str, count: int, kind: bytes = b"FloatStorage") -> bytes:
    """The instructions that refer to numbers."""
    number = b"\x8a\x08" + struct.pack("<q", count)
    return (
        b"(X\x07\x00\x00\x00storagectorch\n"
        + kind
        + b"\nX\x01\x00\x00\x00"
        + key.encode()
        + b"X\x03\x00\x00\x00cpu"
        + number
        + b"tQ"
    )


def tensor_program(count: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", v) for v in values) + b"t"

    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage("0", count)
    made += (
        b"\x8a\x08"
        + struct.pack("<q", offset)
        + numbers(size)
        + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    return b"\x80\x02}X\x01\x00\x00\x00a" + made + b"s."


def test_an_old_file_with_fewer_numbers_than_it_says(tmp_path: Path) -> None:
    content = legacy(tensor_program(10**9, (10**9,), (1,)), ["0"])
    assert len(content) < 500
    refused(tmp_path / "a.pt", content)
    negative = legacy(b"\x80\x02" + storage("0", -(10**9)) + storage("1", 10**9) + b"\x86.", ["0", "1"])
    refused(tmp_path / "b.pt", negative)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((10**9,), (0,), 0), ((5,), (1,), 0), ((4,), (1,), 1), ((2, 2), (1, 3), 0), ((4,), (-1,), 3), ((-1,), (1,), 0)],
)
def test_tensors_beyond_their_numbers(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    program = tensor_program(4, size, stride, offset)
    refused(tmp_path / "a.pt", zip_of(program, n0=bytes(16)))
    (tmp_path / "a.pt").write_bytes(zip_of(tensor_program(4, (2, 2), (1, 2)), n0=struct.pack("<4f", 0, 1, 2, 3)))
    assert read_restricted(tmp_path / "a.pt")["a"].tolist() == [[0, 2], [1, 3]]


def test_numbers_that_the_archive_lacks_or_packs(tmp_path: Path) -> None:
    refused(tmp_path / "a.pt", zip_of(tensor_program(4, (4,), (1,))))
    refused(tmp_path / "b.pt", zip_of(tensor_program(10**9, (4,), (1,)), n0=bytes(16)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:  # 100 MB in 100 kB
        archive.writestr("archive/data.pkl", tensor_program(25 * 10**6, (25 * 10**6,), (1,)))
        archive.writestr("archive/data/0", bytes(100 * 10**6))
    refused(tmp_path / "c.pt", buffer.getvalue())


def test_a_module_that_holds_its_child_twice_is_read_once(tmp_path: Path) -> None:
    """60 modules inside one another, each holding the next one under two names."""
    part: Any = torch.nn.Sequential()
    for _ in range(60):
        outer = torch.nn.Sequential()
        outer._modules = OrderedDict(a=part, b=part)
        part = outer
    buffer = io.BytesIO()
    torch.save(part, buffer)
    said = refused(tmp_path / "a.pt", buffer.getvalue(), [read_spatial_encoder])
    assert "'input_layer.0.weight' is missing" in said[0]
    for _ in range(60):
        outer = torch.nn.Sequential()
        outer._modules = OrderedDict(a=part)
        part = outer
    buffer = io.BytesIO()
    torch.save(part, buffer)
    refused(tmp_path / "b.pt", buffer.getvalue(), [read_spatial_encoder])


def test_reading_can_be_interrupted(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    torch.save(authors_layout.encoder_state(), tmp_path / "a.pt")
    with pytest.raises(StopError):
        read_restricted(tmp_path / "a.pt", stop)
    bundle().save(tmp_path / "b.safetensors")
    with pytest.raises(StopError):
        load_bundle(tmp_path / "b.safetensors", stop)
    with pytest.raises(StopError):
        read_prior(DEMO_PRIOR, stop)


def bundle() -> AnomalyBundle:
    rows = torch.arange(16.0).view(2, 8)
    settings = {"settings": {"resolution": 64}}
    return AnomalyBundle("anomaly", {"bottle/crack": rows}, build_spatial_encoder("light", 2, 8), settings)


def stored(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["anomalydiffusion"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"encoder": {"variant": "light", "tokens": 100_000}}, "100000"),
        ({"encoder": {"variant": "light", "tokens": 2.0}}, "2.0"),
        ({"encoder": {"variant": "light", "tokens": True}}, "True"),
        ({"encoder": {"variant": "resnet50_fpn", "tokens": 2}}, "shape"),
        ({"encoder": {"variant": "huge", "tokens": 2}}, "huge"),
        ({"encoder": []}, "encoder"),
        ({"settings": {"resolution": 40_000}}, "40000"),
        ({"settings": {"resolution": "64"}}, "resolution"),
        ({"settings": [1]}, "settings"),
        ({"width": 10**6}, "1000000"),
        ({"width": 9}, "9"),
        ({"types": []}, "types"),
        ({"types": [["bottle/crack"]]}, "types"),
        ({"types": ["bottle/none"]}, "bottle/none"),
        ({"kind": {}}, "kind"),
        ({"losses": [math.nan]}, "NaN"),
        ({"losses": [math.inf]}, "Infinity"),
    ],
)
def test_metadata_that_do_not_fit_the_file(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    bundle().save(tmp_path / "whole.safetensors")
    tensors, metadata = stored(tmp_path / "whole.safetensors")
    text = json.dumps({**metadata, **change})
    save_file(tensors, tmp_path / "bad.safetensors", {"anomalydiffusion": text})
    with pytest.raises(BundleError, match="bad.safetensors") as caught:
        load_bundle(tmp_path / "bad.safetensors")
    assert word in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["anomaly/bottle/crack", "spatial/heads.0.out.weight"])
def test_numbers_that_are_none(tmp_path: Path, name: str, value: float) -> None:
    bundle().save(tmp_path / "whole.safetensors")
    tensors, metadata = stored(tmp_path / "whole.safetensors")
    tensors[name][0, 0] = value
    save_file(tensors, tmp_path / "bad.safetensors", {"anomalydiffusion": json.dumps(metadata)})
    with pytest.raises(BundleError, match=f"'{name}' in bad.safetensors is not finite"):
        load_bundle(tmp_path / "bad.safetensors")
    save_file({"a.lora_down.weight": torch.tensor([value])}, tmp_path / "lora.safetensors")
    with pytest.raises(BundleError, match="lora.safetensors is not finite"):
        load_lora(tmp_path / "lora.safetensors")


def prior_with(path: Path, tensors: dict[str, Any] | None = None, **metadata: Any) -> None:
    from safetensors import safe_open

    with safe_open(DEMO_PRIOR, framework="pt") as file:
        own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = {**file.metadata(), **metadata}
    save_file({**own, **(tensors or {})}, path, texts)


@pytest.mark.parametrize("scale", ["nan", "inf", "0", "-1", "x", ""])
def test_the_latent_scale_of_a_prior_is_a_number_above_zero(tmp_path: Path, scale: str) -> None:
    prior_with(tmp_path / "a.safetensors", latent_scale=scale)
    with pytest.raises(BundleError, match=r"a.safetensors says latent_scale"):
        read_prior(tmp_path / "a.safetensors")


def test_a_prior_that_is_cut_changed_or_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(DEMO_PRIOR.read_bytes()[:-1000])
    with pytest.raises(BundleError, match=r"a.safetensors is no readable safetensors file.*Use another copy"):
        read_prior(path)
    architecture = json.loads(read_prior(DEMO_PRIOR).metadata["architecture"])
    for change in ({"model_channels": 10**6}, {"channel_mult": [1] * 1000}, {"num_heads": 0}, {"context_dim": 7}):
        prior_with(path, architecture=json.dumps({**architecture, **change}))
        with pytest.raises(BundleError, match="a.safetensors"):
            read_prior(path)
    words = read_prior(DEMO_PRIOR).tensors["cond_stage_model.words.weight"].clone()
    words[0, 0] = math.nan
    prior_with(path, {"cond_stage_model.words.weight": words})
    with pytest.raises(BundleError, match=r"words.weight' in a.safetensors is not finite"):
        read_prior(path)
    for captions in ("[]", "[-1]", "[100000]", "[0.5]", "{}", "null"):
        prior_with(path, normal_caption=captions)
        if captions != "[]":
            with pytest.raises(BundleError, match="normal_caption"):
                read_prior(path)


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    """A link to nothing, a pipe, a folder, metadata that are a list or nested deeply: passed over, and named."""
    import os

    good = bundle()
    good.metadata["content_key"] = "k" * 24
    good.save(tmp_path / "z_good.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name, text in (("list", "[]"), ("deep", "[" * 100_000), ("null", "null"), ("text", "{")):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors", {"anomalydiffusion": text})
        assert stored_metadata(tmp_path / f"{name}.safetensors") == {}
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 100)
    assert FolderStore(tmp_path).find("k" * 24) == tmp_path / "z_good.safetensors"
    found, left_out = list_bundles(tmp_path)
    assert [one.path.name for one in found] == ["z_good.safetensors"]
    for name in ("link", "pipe", "list", "deep", "null", "text", "junk"):
        assert sum(f"{name}.safetensors" in problem for problem in left_out) == 1, name
