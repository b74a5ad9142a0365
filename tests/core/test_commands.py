"""The command line as a whole."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from anomalydiffusion_core.cli.app import MODULES, app

pytestmark = pytest.mark.core


def test_help_lists_every_command_without_importing_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom anomalydiffusion_core.cli.app import app\n"
        "print(CliRunner().invoke(app, ['--help']).output)\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_command_has_a_help_of_its_own(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0 and f" {name} [OPTIONS]" in done.output


def test_an_unknown_command_is_named() -> None:
    done = CliRunner().invoke(app, ["nothing"])
    assert done.exit_code == 2 and "nothing" in done.output
