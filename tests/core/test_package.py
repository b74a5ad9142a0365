"""What is published: the archive of the registry, its metadata, requirements that replace nothing of the host's."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 25e6
# The host brings them; what they need is between them and the host.
HOSTS_OWN = {"torch", "torchvision", "torchaudio"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def listed(*arguments: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", "-z", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return set(done.stdout.split("\0")) - {""}


def archive() -> set[str]:
    """The tracked files without those of .comfyignore, as the registry packs them."""
    return listed() - listed("-c", "-i", "--exclude-from=.comfyignore")


def test_archive_is_small_and_without_tests() -> None:
    files = archive()
    assert not [name for name in files if re.match(r"(tests|benchmarks|tools|\.github|\.ci)/", name)]
    assert sum((ROOT / name).stat().st_size for name in files) < MOST_BYTES


def test_archive_has_everything_that_runs() -> None:
    files = archive()
    for folder in ("anomalydiffusion_core", "nodes", "web", "locales", "workflows", "subgraphs", "models", "docs"):
        missing = {name for name in listed(folder) if name not in files}
        assert listed(folder) and not missing, folder
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md"} <= files


def test_readme_has_a_row_for_every_node() -> None:
    nodes = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8")).values()
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Nodes")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    named = [name.strip() for cell in cells for name in cell.split(",")]
    assert sorted(named[2:]) == sorted(node["display_name"] for node in nodes)


@pytest.mark.parametrize(("key", "ratio", "most"), [("Icon", 1.0, 400), ("Banner", 21 / 9, 2100)])
def test_images_of_the_registry_are_there_and_have_its_shape(key: str, ratio: float, most: int) -> None:
    repository = PROJECT["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    address = PROJECT["tool"]["comfy"][key]
    start = f"https://raw.githubusercontent.com/{repository}/main/"
    assert address.startswith(start)
    image = ET.parse(ROOT / address.removeprefix(start)).getroot()
    width, height = float(image.attrib["width"]), float(image.attrib["height"])
    assert width / height == ratio and width <= most
    assert image.attrib["viewBox"] == f"0 0 {width:g} {height:g}"


def test_metadata_of_the_registry_is_complete() -> None:
    comfy, project = PROJECT["tool"]["comfy"], PROJECT["project"]
    assert {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"} <= set(comfy)
    assert {"Repository", "Documentation", "Bug Tracker"} <= set(project["urls"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"]) and len(project["name"]) < 100
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_installing_the_requirements_replaces_nothing() -> None:
    # Offline what `pip install --dry-run -r requirements.txt` says: every package that they need, and that those need,
    # is there in a version that suits all of them.
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    waiting = [(Requirement(line), "requirements.txt") for line in lines if line and not line.startswith("#")]
    seen, problems = set[str](), list[str]()
    while waiting:
        wanted, by = waiting.pop()
        try:
            found = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{wanted} of {by} is not installed")
            continue
        if not wanted.specifier.contains(found.version, prereleases=True):
            problems.append(f"{wanted} of {by} would replace {found.version}")
        if wanted.name.lower() in seen | HOSTS_OWN:
            continue
        seen.add(wanted.name.lower())
        for text in found.requires or ():
            needed = Requirement(text)
            extras = {"extra": ",".join(wanted.extras)}
            if needed.marker is None or needed.marker.evaluate(extras):
                waiting.append((needed, wanted.name))
    assert not problems
    assert {"numpy", "diffusers", "huggingface-hub"} <= {name.replace("_", "-") for name in seen}
