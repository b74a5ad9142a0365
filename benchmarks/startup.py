"""What this extension adds to the start of ComfyUI, whose own modules are imported before and not counted.

    python benchmarks/startup.py [--rounds 5]

Each round is a process of its own. ComfyUI's own modules are imported first and not counted; what is left is what a
user waits longer. A first round that is not counted compiles the modules, as the first start after an update does;
where PYTHONDONTWRITEBYTECODE is set, every start would compile them anew.

The last line is JSON: {"added_seconds": median, "comfyui": version, "rounds": [...]}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import asyncio, importlib.util, sys, tempfile, time
comfyui, root = sys.argv[1:3]
sys.argv = ["main.py", "--cpu", "--base-directory", tempfile.mkdtemp()]
sys.path.insert(0, comfyui)
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config, folder_paths, comfy.sd, comfy.samplers, execution, server, nodes, latent_preview
from comfy_api.latest import io, ui
import comfyui_version
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
spec = importlib.util.spec_from_file_location("ext", root + "/__init__.py", submodule_search_locations=[root])
package = importlib.util.module_from_spec(spec)
sys.modules["ext"] = package
before = time.perf_counter()
spec.loader.exec_module(package)
made = asyncio.run(asyncio.run(package.comfy_entrypoint()).get_node_list())
for node in made:
    node.GET_NODE_INFO_V1()
print("ADDED", time.perf_counter() - before, len(made), comfyui_version.__version__)
"""


def measure(bytecode: str) -> tuple[float, int, str]:
    """Seconds added, number of nodes and version of ComfyUI, of one process with a folder of compiled modules."""
    sys.path.append(str(ROOT))
    from anomalydiffusion_core.server.process import find_host

    host = find_host(ROOT)
    command = [host.python, "-c", CODE, str(host.comfyui), str(ROOT)]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    settings["PYTHONPYCACHEPREFIX"] = bytecode
    done = subprocess.run(command, capture_output=True, text=True, cwd=host.comfyui, env=settings)
    found = [line for line in done.stdout.splitlines() if line.startswith("ADDED")]
    if not found:
        raise SystemExit(f"ComfyUI did not start:\n{done.stderr[-2000:]}")
    _, seconds, nodes, version = found[-1].split()
    return float(seconds), int(nodes), version


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Seconds that the extension adds to the start of ComfyUI.")
    parser.add_argument("--rounds", type=int, default=5, help="Processes to measure.")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as bytecode:
        measured = [measure(bytecode) for _ in range(rounds + 1)][1:]
    seconds = [one[0] for one in measured]
    sys.stdout.write(f"| ComfyUI | nodes | added seconds, median of {rounds} |\n|---|---|---|\n")
    sys.stdout.write(f"| {measured[0][2]} | {measured[0][1]} | {statistics.median(seconds):.2f} |\n")
    figures = {"added_seconds": round(statistics.median(seconds), 3), "comfyui": measured[0][2]}
    sys.stdout.write(json.dumps({**figures, "rounds": [round(one, 3) for one in seconds]}) + "\n")


if __name__ == "__main__":
    main()
