# make setup   packages, ComfyUI and a base folder, into .venv and .comfy (the other targets do this first)
# make demo    the whole job on rendered images: output/demo/contact_sheet.png, output/demo/summary.json
# make demo-headless   the same without ComfyUI: output/demo_headless
# make ui      the graph editor on 127.0.0.1:8188
# make test    all but the slow tests       make lint    ruff and mypy
#
# COMFYUI_PATH=folder   use this ComfyUI instead of the one that set-up unpacks
# PYTHON=interpreter    with COMFYUI_PATH: the interpreter that runs it (default: its own .venv or venv, else .venv
#                       here); without: the one that makes .venv (3.10 to 3.12, default python3)
# PORT=8188             port of make ui
# TESTS="tests/core"    what make test runs
# WORKERS=3             processes that make test runs the tests in, each with one thread: one more than two cores,
#                       since one of them waits for a server or a browser most of the time

PORT ?= 8188
TESTS ?= tests
WORKERS ?= 3

# Threads that spin while they wait slow each other down wherever two processes share the cores.
export OMP_WAIT_POLICY ?= passive

bootstrap = $(if $(COMFYUI_PATH),python3,$(or $(PYTHON),python3))
setup_options = $(if $(COMFYUI_PATH),--comfyui "$(COMFYUI_PATH)" $(if $(PYTHON),--python "$(PYTHON)"))
# Set-up writes down the interpreter that it chose.
python = "$$(cat .comfy/python)"

.PHONY: setup demo demo-headless ui test lint

setup:
	@$(bootstrap) tools/setup_host.py $(setup_options)

demo: setup
	@$(python) -m anomalydiffusion_core.cli demo

demo-headless: setup
	@$(python) -m anomalydiffusion_core.cli demo --headless

ui: setup
	@$(python) -m anomalydiffusion_core.cli ui --port $(PORT)

test: setup
	@$(python) -m pytest -m "not slow" -n $(WORKERS) $(TESTS)

lint: setup
	@$(python) -m ruff check .
	@$(python) -m mypy __init__.py anomalydiffusion_core nodes tools benchmarks
	@host_python=$(python); cd tests && "$$host_python" -m mypy --config-file ../pyproject.toml .
