"""Real controllers with a bug in each of them: a short run finds it."""

import sys

import pytest

from tests.etcd import needs_etcd
from tests.faults.run import Run
from tests.netns.lab import missing


@pytest.mark.parametrize(
    ("bug", "fault", "rule"),
    [
        ("unconditional", "member killed", "one_holder"),
        ("early", "two controllers killed", "kept"),
        ("deaf", "member killed", "gone"),
        ("stale", "member killed", "kept"),
    ],
)
def test_a_bug_is_found(bug: str, fault: str, rule: str) -> None:
    needs_etcd()
    if why_not := missing():
        pytest.skip(why_not)
    program = (sys.executable, "-m", "tests.faults.seeded", bug)
    run = Run(25, seed=1, only=(fault,), agents=6, members=8, hosts=(), program=program)
    assert rule in {violation.rule for violation in run.carry_out().violations}
