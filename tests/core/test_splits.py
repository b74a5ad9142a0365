from __future__ import annotations

import pytest

from anomalydiffusion_core.data.splits import SPLIT_RULES, natural_key, runs_text, split_names
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


@pytest.mark.parametrize("rule", SPLIT_RULES)
def test_training_and_testing_are_disjoint_and_complete_for_every_number(rule: str) -> None:
    for total in range(61):
        names = [f"{number:03d}" for number in range(total)]
        for rate in (10, 20, 30, 40, 50):
            train, test = split_names(names, rule, 1 + total % 7, 5, rate, names[1::3])
            assert not set(train) & set(test)
            assert sorted(train + test) == names


@pytest.mark.parametrize(
    # Table 7 of the paper: 10 to 50 percent of, say, the 22 pictures of bottle/broken_small.
    ("rate", "expected"),
    [(10, 2), (20, 4), (30, 6), (40, 8), (50, 11)],
)
def test_rates_take_the_lowest_or_as_many_at_random(rate: int, expected: int) -> None:
    names = [f"{number:03d}" for number in range(22)]
    assert split_names(names, "lowest rate", rate=rate) == (names[:expected], names[expected:])
    drawn, _ = split_names(names, "random rate", seed=1, rate=rate)
    assert len(drawn) == expected
    assert split_names(names, "random rate", seed=2, rate=rate)[0] != drawn


def test_list_takes_what_is_listed() -> None:
    assert split_names(["3", "1", "20"], "list", listed=["20", "1", "7"]) == (["1", "20"], ["3"])


def test_runs_are_short_and_exact() -> None:
    names = ["000", "001", "002", "004", "b"]
    assert runs_text(names[:2], names) == "000 to 001"
    assert runs_text(["000", "002", "004"], names) == "000, 002 to 004"
    assert runs_text([], names) == "none"
    assert runs_text(names, names) == "000 to b"


def test_bad_values_are_named() -> None:
    with pytest.raises(InputError, match="half"):
        split_names(["a"], "half")
    with pytest.raises(InputError, match="train_count: 0"):
        split_names(["a"], "first n", 0)
    for rate in (0, 100):
        with pytest.raises(InputError, match=f"train_rate: {rate} percent"):
            split_names(["a"], "lowest rate", rate=rate)
    with pytest.raises(InputError, match="a given twice"):
        split_names(["a", "b", "a"], SPLIT_RULES[0])
