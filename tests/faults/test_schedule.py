from random import Random

from tests.faults.faults import BEYOND, FAULTS, schedule


def kinds(seed: int, seconds: float) -> list[str]:
    return [step.kind for step in schedule(Random(seed), seconds)]


def test_the_seed_says_what_is_done() -> None:
    assert kinds(7, 600) == kinds(7, 600) != kinds(8, 600)


def test_every_kind_comes_once_before_any_comes_again() -> None:
    rounds = kinds(7, 1800)
    assert sorted(rounds[: len(FAULTS)]) == sorted(FAULTS)
    assert sorted(rounds[len(FAULTS) : 2 * len(FAULTS)]) == sorted(FAULTS)


def test_three_minutes_are_enough_for_nearly_all() -> None:
    assert all(len(set(kinds(seed, 180))) >= len(FAULTS) - 3 for seed in range(50))


def test_the_last_is_not_one_in_which_changes_have_to_wait() -> None:
    assert all(kinds(seed, seconds)[-1] not in BEYOND for seed in range(50) for seconds in (180, 1800))
