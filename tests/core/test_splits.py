from __future__ import annotations

import pytest

from anomalydiffusion_core.data.splits import SPLIT_RULES, SplitSettings, natural_key, runs_text
from anomalydiffusion_core.errors import InputError

pytestmark = pytest.mark.core


def test_natural_order() -> None:
    names = ["10", "9", "B2", "b10", "0.jpg", "a", "002"]
    assert sorted(names, key=natural_key) == ["0.jpg", "002", "9", "10", "a", "B2", "b10"]


@pytest.mark.parametrize(("total", "expected"), [(20, 6), (22, 7), (21, 7), (3, 1), (2, 0), (0, 0)])
def test_lowest_third_is_a_third_rounded_down(total: int, expected: int) -> None:
    names = [f"{number}" for number in range(total)]
    train, test = SplitSettings("lowest third").divide(names[::-1])
    assert train == names[:expected]
    assert test == names[expected:]


def test_first_n_and_more_than_there_are() -> None:
    assert SplitSettings("first n", 2).divide(["3", "1", "20"]) == (["1", "3"], ["20"])
    assert SplitSettings("first n", 9).divide(["3", "1"]) == (["1", "3"], [])


def test_random_is_reproducible_complete_and_depends_on_the_seed() -> None:
    names = [f"{number:03d}" for number in range(40)]
    train, test = SplitSettings("random", 10, split_seed=3).divide(names)
    assert (train, test) == SplitSettings("random", 10, split_seed=3).divide(names[::-1])
    assert len(train) == 10
    assert sorted(train + test) == names
    assert train == sorted(train)
    assert train != SplitSettings("random", 10, split_seed=4).divide(names)[0]


@pytest.mark.parametrize("rule", SPLIT_RULES)
def test_training_and_testing_are_disjoint_and_complete_for_every_number(rule: str) -> None:
    for total in range(61):
        names = [f"{number:03d}" for number in range(total)]
        for rate in (10, 20, 30, 40, 50):
            train, test = SplitSettings(rule, 1 + total % 7, 5, "", rate, ",".join(names[1::3])).divide(names)
            assert not set(train) & set(test)
            assert sorted(train + test) == names


@pytest.mark.parametrize(
    # Table 7 of the paper: 10 to 50 percent of, say, the 22 images of bottle/broken_small.
    ("rate", "expected"),
    [(10, 2), (20, 4), (30, 6), (40, 8), (50, 11)],
)
def test_rates_take_the_lowest_or_as_many_at_random(rate: int, expected: int) -> None:
    names = [f"{number:03d}" for number in range(22)]
    assert SplitSettings("lowest rate", train_rate=rate).divide(names) == (names[:expected], names[expected:])
    drawn, _ = SplitSettings("random rate", split_seed=1, train_rate=rate).divide(names)
    assert len(drawn) == expected
    assert SplitSettings("random rate", split_seed=2, train_rate=rate).divide(names)[0] != drawn


def test_list_takes_what_is_listed() -> None:
    assert SplitSettings("list", train_list="20, 1, 7").divide(["3", "1", "20"]) == (["1", "20"], ["3"])


def test_runs_are_short_and_exact() -> None:
    names = ["000", "001", "002", "004", "b"]
    assert runs_text(names[:2], names) == "000 to 001"
    assert runs_text(["000", "002", "004"], names) == "000, 002 to 004"
    assert runs_text([], names) == "none"
    assert runs_text(names, names) == "000 to b"


def test_bad_values_are_named() -> None:
    for bad in ({"split": "half"}, {"train_count": 0}, {"train_rate": 0}, {"train_rate": 100}, {"split_seed": -1}):
        ((name, value),) = bad.items()
        with pytest.raises(InputError, match=f"^{name}: .*{value}"):
            SplitSettings(**bad)


def test_a_test_rate_keeps_one_test_set_for_any_rate_of_training() -> None:
    names = [f"{number:03d}" for number in range(21)]
    tests = [SplitSettings("lowest rate", train_rate=rate, test_rate=50).divide(names) for rate in (10, 30, 50)]
    assert [len(train) for train, _ in tests] == [2, 6, 10]
    assert all(test == names[10:] for _, test in tests), "11 of 21, rounded up"
    assert SplitSettings("lowest rate", train_rate=10).divide(names)[1] == names[2:]


def test_a_validation_split_never_touches_the_test_set() -> None:
    names = [f"{number:02d}" for number in range(30)]
    train, test = SplitSettings("lowest third").divide(names)
    # A third of ten training pairs, rounded up, is four.
    assert SplitSettings("lowest third", validation_rate=33).divide(names) == (train[:6], train[6:])
    for rule in ("lowest third", "random", "first n", "lowest rate"):
        settings = {"train_count": 7, "train_rate": 40, "split_seed": 5}
        whole = SplitSettings(rule, **settings).divide(names)
        kept, held = SplitSettings(rule, **settings, validation_rate=50).divide(names)
        assert sorted([*kept, *held]) == sorted(whole[0]) and not set(held) & set(whole[1])
    assert SplitSettings("first n", 1, validation_rate=50).divide(names) == (["00"], []), "one pair stays"
    assert SplitSettings(validation_rate=20).options == {"validation_rate": 20}
