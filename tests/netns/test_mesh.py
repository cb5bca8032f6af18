"""What a ping in the background has seen, counted right: its own numbers have 16 bits."""

from collections.abc import Iterable

import pytest

from tests.netns.mesh import lost_in


def said(answered: Iterable[int], sent: int) -> str:
    """Return what ping says when these of its packets were answered, 10 ms apart."""
    lines = [
        f"[{1000 + number / 100:.6f}] 64 bytes from 10.99.0.2: icmp_seq={number % 65536} ttl=64 time=0.1 ms"
        for number in answered
    ]
    return "\n".join((*lines, "", f"{sent} packets transmitted, 1 received, 0% packet loss, time 1ms", ""))


@pytest.mark.parametrize("sent", [1000, 70_000, 140_000])
def test_no_loss_is_no_loss_however_long(sent: int) -> None:
    assert lost_in(said(range(1, sent + 1), sent)).lost == 0


@pytest.mark.parametrize("lost", [500, 65_536, 65_537, 100_000])
def test_each_lost_one_counts(lost: int) -> None:
    loss = lost_in(said((number for number in range(1, 140_001) if number != lost), 140_000))
    assert (loss.answered, loss.lost) == (139_999, 1)
    assert loss.gap == pytest.approx(0.02)


def test_answers_out_of_order_around_the_end_of_the_numbers() -> None:
    order = [*range(1, 65_534), 65_537, 65_534, 65_536, 65_535, *range(65_538, 66_001)]
    assert lost_in(said(order, 66_000)).lost == 0
