"""Files that people name: JSON with limits, folders with limits, and reading that is confined."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from anomalydiffusion_core import reading
from anomalydiffusion_core.devices import check_images_fit
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.plain_json import finite_values, plain_json, read_json
from anomalydiffusion_core.reading import confined, files_below, folder_fingerprint, is_file, is_folder
from anomalydiffusion_core.server.workflow import with_inputs

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[" * 100_000, "", "{", "9" * 10_000]
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        plain_json(text)
    assert plain_json('{"a": [1, 2.5, null, "NaN"]}') == {"a": [1, 2.5, None, "NaN"]}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"null", b"[]", b"{", "{}".encode("utf-16")])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"^workflow: .*x\.json"):
        read_json(tmp_path / "x.json", "workflow")
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "x.json", "workflow") == {}


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not there"):
        read_json(tmp_path / "pipe", "workflow")
    assert not is_file(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b", "/".join(["x"] * 3000)])
def test_names_that_no_file_has_are_not_there(tmp_path: Path, name: str) -> None:
    assert not is_file(tmp_path / name) and not is_folder(tmp_path / name)


def test_numbers_that_are_none_become_null() -> None:
    nan = float("nan")
    assert finite_values({"a": [1.5, nan, (float("inf"), "x")]}) == {"a": [1.5, None, [None, "x"]]}


def test_a_folder_that_means_the_whole_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_FILES", 20)
    for number in range(18):
        (tmp_path / f"{number}.json").write_text("x")
    (tmp_path / "inside").mkdir()
    assert len(files_below(tmp_path, "results", ".json")) == 18
    before = folder_fingerprint(tmp_path)
    (tmp_path / "inside" / "b.txt").write_text("x")
    assert folder_fingerprint(tmp_path) != before
    (tmp_path / "inside" / "c.txt").write_text("x")
    with pytest.raises(InputError, match="^results: .* more than 20 files"):
        files_below(tmp_path, "results", ".json")
    folder_fingerprint(tmp_path)


def test_reading_is_confined_to_the_roots(tmp_path: Path) -> None:
    root, secret = tmp_path / "input", tmp_path / "secret"
    for folder in (root, secret):
        folder.mkdir()
    (root / "link").symlink_to(secret, target_is_directory=True)
    assert confined(root / "a" / "b", [root], "folder") == root / "a" / "b"
    assert confined(secret, None, "folder") == secret
    said = set()
    for path in (secret, tmp_path / "nothing", root / "link", root / ".." / "secret", Path("/etc"), root / "a\x00b"):
        with pytest.raises(InputError, match="^folder: lies outside") as caught:
            confined(path, [root], "folder")
        said.add(str(caught.value))
    assert len(said) == 1


def test_images_that_do_not_fit_are_said_with_both_sizes() -> None:
    # 24 images of 4096 x 4096 with 3 values of 4 bytes: 4.83 GB
    with pytest.raises(InputError, match=r"^count: 24 images of 4096x4096 px need about 4\.8 GB.*2\.0 GB are free"):
        check_images_fit("count", 24, (4096, 4096), 3, 2 * 10**9)
    check_images_fit("count", 24, torch.Size((4096, 4096)), 3, 5 * 10**9)


@pytest.mark.parametrize(
    ("old", "value"), [(1, True), (1, float("nan")), (1.5, "abc"), (1.5, None), (True, 1), (False, "true"), (2, [1])]
)
def test_values_that_a_server_would_bend_are_refused(old: object, value: object) -> None:
    workflow = {"1": {"class_type": "X", "inputs": {"a": old}}}
    with pytest.raises(InputError, match=r"^set: 1\.a: "):
        with_inputs(workflow, [("1", "a", value)])
    assert with_inputs({"1": {"class_type": "X", "inputs": {"a": 1.5}}}, [("1", "a", 2)])["1"]["inputs"]["a"] == 2
