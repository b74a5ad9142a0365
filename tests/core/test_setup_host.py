from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "setup_host.py"


@pytest.fixture(scope="module")
def setup_host() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_host_under_test", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_base_folder_links_the_repository_and_can_be_made_again(setup_host: ModuleType, tmp_path: Path) -> None:
    for _ in range(2):
        base = setup_host.make_base(tmp_path / "base")
    link = base / "custom_nodes" / "AnomalyDiffusion"
    assert link.resolve() == SCRIPT.parents[1]
    assert (link / "__init__.py").is_file()
    assert {path.name for path in base.iterdir()} >= {"custom_nodes", "input", "output", "models"}


def test_stale_link_is_replaced_and_a_real_folder_is_kept(setup_host: ModuleType, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(tmp_path / "moved away", target_is_directory=True)
    setup_host.link_folder(target, link)
    assert link.resolve() == target
    own = tmp_path / "own"
    own.mkdir()
    (own / "kept.txt").write_text("mine")
    with pytest.raises(setup_host.SetupError, match="folder of its own"):
        setup_host.link_folder(target, own)
    assert (own / "kept.txt").read_text() == "mine"


def test_existing_comfyui_is_checked_before_use(setup_host: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(setup_host.SetupError, match="has no main.py"):
        setup_host.check_existing(tmp_path, None)
    (tmp_path / "main.py").touch()
    setup_host.check_existing(tmp_path, Path(sys.executable))
    with pytest.raises(setup_host.SetupError, match="does not start"):
        setup_host.check_existing(tmp_path, tmp_path / "no python")


def test_missing_packages_are_named_with_the_command_that_installs_them(
    setup_host: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "main.py").touch()
    monkeypatch.setattr(setup_host, "NEEDED", (("no_such_module", "no-such-module"), ("json", "json")))
    with pytest.raises(setup_host.SetupError, match=r"lacks no-such-module\. .*pip install --editable"):
        setup_host.check_existing(tmp_path, Path(sys.executable))


def test_interpreter_of_an_existing_comfyui_is_found(setup_host: ModuleType, tmp_path: Path) -> None:
    assert setup_host.existing_python(tmp_path) is None
    python = setup_host.venv_python(tmp_path / "venv")
    python.parent.mkdir(parents=True)
    python.touch()
    assert setup_host.existing_python(tmp_path) == python


def test_unfit_interpreter_is_refused_with_what_to_do(
    setup_host: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_host.sys, "version_info", (3, 14, 0))
    monkeypatch.setattr(setup_host.shutil, "which", lambda name: None)
    with pytest.raises(setup_host.SetupError, match=r"Python 3\.14 .*3\.10 to 3\.12.*PYTHON=python3\.11"):
        setup_host.make_venv(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()
