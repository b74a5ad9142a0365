"""Settings that are declared once: checks, and the command line options made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from anomalydiffusion_core.cli.options import with_settings
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.options import Settings, build, declared, option


@dataclass(frozen=True)
class Inner(Settings):
    rate: float = option(0.5, "A share.", min=0, max=1, step=0.1)
    mode: str = option("a", "A choice.", choices=("a", "b"))


@dataclass(frozen=True)
class Outer(Settings):
    steps: int = option(3, "A count.", min=1, max=10)
    inner: Inner = field(default_factory=Inner)
    flag: bool = option(False, "A switch.")
    speed: float = option(1.0, "Above zero.", above=0, max=math.inf)
    weights: Path | None = option(None, "A file.")


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 11}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"speed": 0.0}, "speed"),
        ({"speed": math.nan}, "speed"),
        ({"flag": 1}, "flag"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: "):
        Outer(**values)


@pytest.mark.parametrize("values", [{"rate": -0.1}, {"rate": math.inf}, {"mode": "c"}, {"rate": "0.5"}])
def test_nested_settings_check_themselves(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(values))}: "):
        build(Outer, values)


def test_flat_values_build_nested_settings_and_leave_the_rest() -> None:
    values = {"steps": 5, "mode": "b", "other": 1}
    assert build(Outer, values) == Outer(steps=5, inner=Inner(mode="b"))
    assert values == {"other": 1}


def test_options_are_listed_in_their_order() -> None:
    assert list(declared(Outer)) == ["steps", "rate", "mode", "flag", "speed", "weights"]
    assert declared(Outer)["weights"].type is Path


def test_infinity_is_allowed_only_where_the_maximum_is_infinite() -> None:
    assert Outer(speed=math.inf).speed == math.inf


def test_a_command_gets_settings_from_its_options() -> None:
    seen: list[Any] = []
    app = typer.Typer()

    @app.command()
    @with_settings(outer=Outer, leave_out=["mode"])
    def go(name: str, outer: Outer, more: int = 1) -> None:
        seen.append((name, outer, more))

    runner = CliRunner()
    result = runner.invoke(app, ["x", "--steps", "7", "--rate", "0.25", "--flag", "--more", "4", "--weights", "w.pt"])
    assert result.exit_code == 0, result.output
    assert seen == [("x", Outer(steps=7, inner=Inner(rate=0.25), flag=True, weights=Path("w.pt")), 4)]
    assert runner.invoke(app, ["x", "--steps", "11"]).exit_code == 2
    shown = runner.invoke(app, ["--help"]).output
    assert "A count." in shown and "--mode" not in shown
