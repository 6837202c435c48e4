from __future__ import annotations

import msgspec
import pytest

from trioline.client import outbox as outbox_module
from trioline.client.item import Failure, Outcome, Raw
from trioline.client.outbox import Outbox, Parcel, Row, pack
from trioline.errors import ErrorCode, RequestRefused
from trioline.wire.messages import Done, DoneLines, DoneReply, Result


def rows(*numbers: int, line: bytes = b"1") -> list[Row]:
    return [(number, line) for number in numbers]


def ids(parcel: Parcel) -> list[int]:
    return [number for number, _ in parcel.rows]


def test_lines_that_follow_each_other_go_raw_whatever_their_order() -> None:
    (parcel,) = pack([(3, b"c"), (1, b"a"), (2, Raw(b"b"))])
    assert parcel.request == DoneLines(first=1, count=3, bytes=6)
    assert parcel.body == b"a\nb\nc\n"


def test_scattered_lines_share_one_message() -> None:
    (parcel,) = pack([(1, b"[1]"), (5, Raw(b"text")), (3, Failure("no", retry=False))])
    assert parcel.request == Done(
        results=[
            Result(1, result=msgspec.Raw(b"[1]")),
            Result(3, error="no", retry=False),
            Result(5, line="text"),
        ]
    )
    assert parcel.body == b""


def test_long_runs_among_scattered_ones_go_raw() -> None:
    parcels = pack(rows(1, *range(10, 20), 30))
    assert [type(each.request) for each in parcels] == [DoneLines, Done]
    assert [ids(each) for each in parcels] == [list(range(10, 20)), [1, 30]]


def test_what_is_no_utf8_goes_raw() -> None:
    parcels = pack([(1, b"1"), (4, Raw(b"\xff")), (9, b"9")])
    assert parcels[0].request == DoneLines(first=4, count=1, bytes=2)
    assert parcels[0].body == b"\xff\n"
    assert ids(parcels[1]) == [1, 9]


def test_the_same_line_twice_is_sent_twice() -> None:
    sent = [number for parcel in pack(rows(1, 2, 2, 3)) for number in ids(parcel)]
    assert sorted(sent) == [1, 2, 2, 3]


@pytest.mark.parametrize("outcome", [b"x" * 40, Failure("x" * 40)])
def test_messages_keep_to_their_size(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MAX_PARCEL_BYTES", 100)
    parcels = pack([(number, outcome) for number in range(5)])
    assert [len(each.rows) for each in parcels] == [2, 2, 1]
    assert [number for parcel in parcels for number in ids(parcel)] == list(range(5))


def test_one_row_beyond_the_size_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MAX_PARCEL_BYTES", 100)
    assert [ids(each) for each in pack([(0, b"1"), (1, b"x" * 500), (2, b"1")])] == [[0], [1], [2]]


def test_counts_follow_a_row_to_its_answer() -> None:
    outbox = Outbox()
    outbox.add(1, b"one")
    outbox.add(2, Failure("no"))
    assert (len(outbox), outbox.waiting, outbox.in_flight) == (2, 2, 0)
    (parcel,) = outbox.take()
    assert (len(outbox), outbox.waiting, outbox.in_flight) == (2, 0, 1)
    outbox.acknowledge(parcel, DoneReply(accepted=1, duplicate=0, failed=1))
    assert (len(outbox), outbox.in_flight, outbox.size_bytes) == (0, 0, 0)
    assert (outbox.accepted, outbox.duplicate, outbox.failed) == (1, 0, 1)


def test_what_was_lost_on_the_way_is_sent_again() -> None:
    outbox = Outbox()
    outbox.add(1, b"one")
    (parcel,) = outbox.take()
    outbox.put_back(parcel)
    assert outbox.waiting == 1
    (again,) = outbox.take()
    assert again.request == parcel.request
    outbox.acknowledge(again, DoneReply(accepted=0, duplicate=1, failed=0))
    assert (len(outbox), outbox.size_bytes) == (0, 0)


def refuse_bad(outbox: Outbox, bad: int, code: str) -> list[int]:
    """Play a server that refuses whatever holds a bad row; returns what it took."""
    taken = []
    for _ in range(20):
        for parcel in outbox.take():
            good = bad not in ids(parcel) or isinstance(dict(parcel.rows)[bad], Failure)
            if good:
                taken += ids(parcel)
                outbox.acknowledge(parcel, DoneReply(accepted=0, duplicate=0, failed=0))
            else:
                outbox.refuse(parcel, RequestRefused(code, "bad"))
    return taken


def test_one_bad_result_among_many_becomes_a_failed_attempt() -> None:
    outbox = Outbox()
    for number in range(10):
        outbox.add(number, b"1")
    assert sorted(refuse_bad(outbox, 6, ErrorCode.BAD_RESULT)) == list(range(10))
    assert (len(outbox), outbox.size_bytes, outbox.refused) == (0, 0, [])


def test_a_line_the_server_does_not_know_is_given_up_alone() -> None:
    outbox = Outbox()
    for number in range(10):
        outbox.add(number, b"1")
    taken = refuse_bad(outbox, 6, ErrorCode.UNKNOWN_ID)
    assert sorted(taken) == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert [number for number, _ in outbox.refused] == [6]
    assert (len(outbox), outbox.size_bytes) == (0, 0)
