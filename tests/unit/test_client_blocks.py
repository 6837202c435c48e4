from __future__ import annotations

import pytest

from trioline.client.blocks import Block, BlockHand
from trioline.client.lease import Lease
from trioline.wire.messages import WorkLines


def block(first: int, count: int) -> Block:
    return Block(first, count, b"".join(b"%d\n" % number for number in range(first, first + count)))


def lease(first: int, count: int) -> Lease:
    body = block(first, count).body
    reply = WorkLines(
        lease=1, lease_timeout=9.0, first=first, count=count, bytes=len(body), attempt=1
    )
    return Lease.from_lines(reply, body)


def spans(*blocks: Block) -> list[tuple[int, int]]:
    """First and last line of each, whose bytes are looked at."""
    for each in blocks:
        assert each.body == block(each.first, each.count).body
    return [(each.first, each.first + each.count - 1) for each in blocks]


def take_all(hand: BlockHand, max_count: int = 100) -> list[Block]:
    taken = []
    while (each := hand.take(max_count)) is not None:
        taken.append(each)
    return taken


@pytest.mark.parametrize(
    ("lines", "rests"),
    [
        (set(), [(3, 9)]),
        ({1, 20}, [(3, 9)]),
        ({3}, [(4, 9)]),
        ({9}, [(3, 8)]),
        ({5, 6}, [(3, 4), (7, 9)]),
        ({3, 5, 7, 9}, [(4, 4), (6, 6), (8, 8)]),
        (set(range(20)), []),
    ],
)
def test_lines_are_taken_out_of_a_block(lines: set[int], rests: list[tuple[int, int]]) -> None:
    assert spans(*block(3, 7).without(lines)) == rests


def test_blocks_are_begun_whole_or_so_many_lines_of_them() -> None:
    hand = BlockHand()
    hand.put(lease(0, 10))
    hand.put(lease(20, 2))
    assert spans(*take_all(hand, 4)) == [(0, 3), (4, 7), (8, 9), (20, 21)]
    assert (hand.queued, hand.running, len(hand)) == (0, 12, 12)


def test_lines_that_are_lost_are_never_begun_and_held_no_more() -> None:
    hand = BlockHand()
    hand.put(lease(0, 10))
    begun = hand.take(4)
    assert begun is not None
    hand.drop([2, 5, 99])
    assert [number for number in begun.numbers if hand.holds(number)] == [0, 1, 3]
    assert spans(*take_all(hand)) == [(4, 4), (6, 9)]
    hand.finish(begun)
    hand.put(lease(2, 1))  # it comes again
    assert spans(*take_all(hand)) == [(2, 2)]
    assert hand.holds(2)


def test_a_line_that_comes_again_while_it_is_at_work_is_not_begun_twice() -> None:
    hand = BlockHand()
    hand.put(lease(0, 10))
    hand.take(4)
    hand.forget_queue()
    hand.put(lease(2, 8))
    assert spans(*take_all(hand)) == [(4, 9)]


def test_what_would_be_begun_last_is_given_back() -> None:
    hand = BlockHand()
    hand.put(lease(0, 10))
    hand.put(lease(20, 2))
    hand.shed(5)
    assert sorted(hand.unwanted) == [7, 8, 9, 20, 21]
    assert spans(*take_all(hand)) == [(0, 6)]


def test_once_closed_nothing_is_begun() -> None:
    hand = BlockHand()
    hand.put(lease(0, 3))
    hand.close()
    hand.put(lease(5, 2))
    assert hand.take(1) is None
    assert sorted(hand.unwanted) == [0, 1, 2, 5, 6]
