"""Real controllers with a bug in each of them: a short run finds it."""

import sys

import pytest

from tests.etcd import needs_etcd
from tests.faults.run import Run
from tests.netns.lab import missing


@pytest.mark.parametrize(
    ("bug", "rule"),
    [("unconditional", "one_holder"), ("early", "kept"), ("deaf", "gone"), ("stale", "one_story")],
)
def test_a_bug_is_found(bug: str, rule: str) -> None:
    needs_etcd()
    if why_not := missing():
        pytest.skip(why_not)
    program = (sys.executable, "-m", "tests.faults.seeded", bug)
    run = Run(8, seed=1, only=("two controllers killed",), agents=6, hosts=(), program=program)
    assert rule in {violation.rule for violation in run.carry_out().violations}
