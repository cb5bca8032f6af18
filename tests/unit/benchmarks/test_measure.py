import argparse

import pytest

from benchmarks.measure import busy_seconds, resident_mib, rtt
from benchmarks.overlay import _rounds, cell, median

PING = """PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.
64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=9.500 ms
64 bytes from 10.0.0.2: icmp_seq=2 ttl=64 time=0.041 ms
64 bytes from 10.0.0.2: icmp_seq=3 ttl=64 time=0.043 ms
rtt min/avg/max/mdev = 0.041/3.194/9.500/4.4 ms
"""


def test_the_round_trip_is_the_median_of_what_came_back() -> None:
    assert rtt(PING) == pytest.approx(43)
    with pytest.raises(RuntimeError, match="no answer"):
        rtt("3 packets transmitted, 0 received, 100% packet loss, time 2000ms".replace("time ", ""))


def test_memory_is_of_the_larger_end_and_of_live_daemons_only() -> None:
    assert resident_mib([]) == 0
    assert resident_mib([1]) > 0
    with pytest.raises(RuntimeError, match="a daemon has ended"):
        resident_mib([1, 2**22 + 1])


def test_busy_time_only_grows() -> None:
    before = busy_seconds()
    sum(range(3_000_000))
    assert busy_seconds() >= before


def test_a_median_is_of_the_runs_that_have_the_quantity() -> None:
    runs = [{"a": 1.0}, {"a": 9.0, "b": 4.0}, {"a": 2.0}]
    assert (median(runs, "a"), median(runs, "b"), median(runs, "c")) == (2, 4, None)


def test_a_cell_has_its_ratio_where_there_is_a_base() -> None:
    assert cell(3.0, 2.0) == "3 (1.50x)"
    assert (cell(3.0, 0), cell(3.0, None), cell(None, 2.0)) == ("3", "3", "-")


def test_the_gates_mode_is_measured_most_often_and_all_modes_by_turns() -> None:
    options = argparse.Namespace(repetitions=3, bounds=1)
    assert _rounds(["nic", "soft"], options) == [(0, "nic"), (0, "soft"), (1, "nic"), (2, "nic")]
    assert _rounds(["routed"], options) == [(0, "routed")]
