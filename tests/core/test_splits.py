from __future__ import annotations

import pytest

from anomalydiffusion_core.data.splits import SPLIT_RULES, natural_key, split_names
from anomalydiffusion_core.errors import InputError

pytestmark = pytest.mark.core


def test_natural_order() -> None:
    names = ["10", "9", "B2", "b10", "0.jpg", "a", "002"]
    assert sorted(names, key=natural_key) == ["0.jpg", "002", "9", "10", "a", "B2", "b10"]


@pytest.mark.parametrize(("total", "expected"), [(20, 6), (22, 7), (21, 7), (3, 1), (2, 0), (0, 0)])
def test_lowest_third_is_a_third_rounded_down(total: int, expected: int) -> None:
    names = [f"{number}" for number in range(total)]
    train, test = split_names(names[::-1], "lowest third")
    assert train == names[:expected]
    assert test == names[expected:]


def test_first_n_and_more_than_there_are() -> None:
    assert split_names(["3", "1", "20"], "first n", 2) == (["1", "3"], ["20"])
    assert split_names(["3", "1"], "first n", 9) == (["1", "3"], [])


def test_random_is_reproducible_complete_and_depends_on_the_seed() -> None:
    names = [f"{number:03d}" for number in range(40)]
    train, test = split_names(names, "random", 10, seed=3)
    assert (train, test) == split_names(names[::-1], "random", 10, seed=3)
    assert len(train) == 10
    assert sorted(train + test) == names
    assert train == sorted(train)
    assert train != split_names(names, "random", 10, seed=4)[0]


def test_bad_values_are_named() -> None:
    with pytest.raises(InputError, match="half"):
        split_names(["a"], "half")
    with pytest.raises(InputError, match="train_count: 0"):
        split_names(["a"], "first n", 0)
    with pytest.raises(InputError, match="a given twice"):
        split_names(["a", "b", "a"], SPLIT_RULES[0])
