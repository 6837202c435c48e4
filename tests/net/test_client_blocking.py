from __future__ import annotations

import functools
import itertools
import socket
import threading
import time

import pytest
from fake_server import DEADLINE_SECONDS, FINAL, FakeServer

from trioline.client import pace
from trioline.client.blocking import Client
from trioline.client.item import Raw, Reject
from trioline.client.link import Link, Message
from trioline.client.pipeline import Pending, decode_get, decoder
from trioline.client.reach import parse_address
from trioline.errors import ConnectionLost, ErrorCode, RequestRefused, UsageError
from trioline.wire.messages import Extend, ExtendReply, Get, Hello, Refusal


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def all_squares(server: FakeServer) -> bool:
    return server.results == {n: [b"%d" % n**2] for n in range(len(server.lines))}


def square_all(server: FakeServer, **options: object) -> None:
    with Client(server.address, **options) as client:  # type: ignore[arg-type]  # the test's
        for item in client:
            client.done(item, item.data**2)


@pytest.mark.parametrize("batch", [None, 1, 7, 100])
def test_a_plain_loop_does_the_job(batch: int | None) -> None:
    with FakeServer(numbers(100)) as server:
        square_all(server, batch=batch)
        assert all_squares(server)
        assert server.log[-1].op == "bye"


def test_batches_grow_by_themselves() -> None:
    with FakeServer(numbers(3_000), max_batch=500) as server:
        square_all(server)
        asked = [each.request.max for each in server.log if isinstance(each.request, Get)]
        assert asked[0] == 1
        assert max(asked) == 500
        assert all_squares(server)


def test_results_and_a_get_go_out_together() -> None:
    with FakeServer(numbers(1_000)) as server:
        square_all(server, batch=10)
        ops = [each.op for each in server.log]
        assert ops[:3] == ["hello", "get", "get"]
        assert set(itertools.pairwise(ops)) >= {("done", "get"), ("get", "done")}
        assert ("done", "done") not in set(itertools.pairwise(ops))


def test_the_next_lines_are_there_before_they_are_needed() -> None:
    with FakeServer(numbers(30)) as server:
        with Client(server.address, batch=10) as client:
            for item in client:
                assert len(server.holder) <= 30
                if item.id == 0:
                    server.wait_for(lambda: 19 in server.holder)
                client.done(item, item.data**2)
        assert all_squares(server)


def test_one_line_at_a_time_is_one_line_in_hand() -> None:
    with FakeServer(numbers(5)) as server:
        with Client(server.address, batch=1) as client:
            for item in client:
                assert list(server.holder) == [item.id]
                client.done(item, item.data**2)
                client.flush()
        assert all_squares(server)


def test_lines_that_never_arrived_are_given_back_during_a_long_computation() -> None:
    with FakeServer(numbers(6), lease_timeout=0.3) as server:
        with Client(server.address, batch=2) as client:
            for item in client:
                if item.id == 1:
                    server.drop.append("get!")  # of lines 4 and 5, asked for ahead
                if item.id == 2 and server.connections == 1:
                    server.wait_for(lambda: server.count("release") == 1)
                    server.wait_for(lambda: not {4, 5} & set(server.holder))
                client.done(item, item.data**2)
        assert all_squares(server)
        assert server.connections == 2


def test_lists_for_those_who_compute_lists() -> None:
    sizes = []
    with FakeServer(numbers(70)) as server:
        with Client(server.address) as client:
            for items in client.batches(32):
                sizes.append(len(items))
                for item in items:
                    client.done(item, item.data**2)
        assert all_squares(server)
        assert sizes[0] == 32
        assert max(sizes) == 32


def test_failures_of_all_kinds() -> None:
    with FakeServer(numbers(5), max_attempts=1) as server:
        with Client(server.address, batch=5) as client:
            for item in client:
                match item.id:
                    case 0:
                        client.fail(item, "no luck")
                    case 1:
                        client.fail(item.id, ValueError("odd"))
                    case 2:
                        client.fail(item, Reject("never"))
                    case 3:
                        client.done(item, float("nan"))
                    case 4:
                        client.done(item.id, Raw(b"{no json"))
        assert server.results == {
            0: ["no luck"],
            1: ["ValueError: odd"],
            2: ["Reject: never" + FINAL],
            3: ["The result cannot be written: ValueError: the result holds nan, which JSON lacks"],
            4: ["The server refused the result: Line 4: not JSON. (bad-result)"],
        }


def test_text_results_are_lines_as_they_are() -> None:
    with FakeServer(numbers(2)) as server:
        with Client(server.address, text=True) as client:
            for item in client:
                client.done(item, f"[{item.line}]")
        assert server.results == {0: [b"[0]"], 1: [b"[1]"]}


def test_leases_are_renewed_during_a_long_computation() -> None:
    with FakeServer(numbers(1), lease_timeout=0.3) as server:
        with Client(server.address) as client:
            for item in client:
                began = time.monotonic()
                server.wait_for(lambda: server.count("extend") >= 4)
                assert time.monotonic() - began > 0.3
                client.done(item, 0)
        assert all_squares(server)


def test_results_do_not_wait_for_a_long_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioline.client.returns.FLUSH_SECONDS", 0.1)
    with FakeServer(numbers(2), lease_timeout=0.3) as server:
        with Client(server.address, batch=2) as client:
            for item in client:
                if item.id == 1:
                    server.wait_for(lambda: server.count("done") == 1)
                client.done(item, item.data)
        assert all_squares(server)


def test_notes_reach_the_server() -> None:
    with FakeServer(numbers(1), lease_timeout=0.3) as server, Client(server.address) as client:
        for item in client:
            item.note("half")
            server.wait_for(lambda: server.count("note") == 1)
            client.done(item, 0)


@pytest.mark.parametrize("drop", ["done", "done!", "get", "get!", "hello", "hello!"])
def test_a_lost_connection_costs_nothing(drop: str) -> None:
    with FakeServer(numbers(100)) as server:
        server.drop += [drop] * 2
        square_all(server, batch=10)
        assert all_squares(server)
        assert server.connections == 3
        sessions = [each.request.session for each in server.log if isinstance(each.request, Hello)]
        assert drop.startswith("hello") or sessions[1] == sessions[2] == "session-1"


def test_results_lost_at_the_very_end_are_sent_again() -> None:
    with FakeServer(numbers(10)) as server:
        with Client(server.address, batch=10) as client:
            for item in client:
                client.done(item, item.data**2)
                if item.id == 9:
                    server.hang_up()
                    break
        assert all_squares(server)


def test_leaving_early_gives_the_rest_back() -> None:
    with FakeServer(numbers(10)) as server:

        def leave_at_three() -> None:
            with Client(server.address, batch=10) as client:
                for item in client:
                    client.done(item, item.data**2)
                    if item.id == 3:
                        raise KeyError

        with pytest.raises(KeyError):
            leave_at_three()
        assert server.results == {n: [b"%d" % n**2] for n in range(4)}
        assert server.holder == {}


def test_release_gives_back_what_has_no_result() -> None:
    with FakeServer(numbers(10)) as server, Client(server.address, batch=10) as client:
        for item in client:
            client.done(item, 0)
            break
        assert client.release() == 9
        assert server.holder == {}
        assert list(server.results) == [0]


def test_flush_returns_when_all_is_safe() -> None:
    with FakeServer(numbers(3)) as server, Client(server.address, batch=3) as client:
        for item in client:
            client.done(item, 0)
            if item.id == 1:
                client.flush()
                assert sorted(server.results) == [0, 1]


def test_threads_may_share_a_client() -> None:
    with FakeServer(numbers(500)) as server:
        with Client(server.address, batch=20) as client:

            def work() -> None:
                for item in client:
                    client.done(item, item.data**2)

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE_SECONDS)
                assert not thread.is_alive()
        assert all_squares(server)


def test_a_wait_is_taken_up_again_after_a_renewal() -> None:
    with FakeServer(numbers(1), lease_timeout=0.3) as server:
        server.is_open = True
        with Client(server.address) as client:
            lines = iter(client)
            held = next(lines)

            def bring_work_after_renewals() -> None:
                server.wait_for(lambda: server.count("extend") >= 2)
                server.add_lines([b"1"])

            thread = threading.Thread(target=bring_work_after_renewals)
            thread.start()
            client.done(next(lines), 1)
            thread.join(DEADLINE_SECONDS)
            client.done(held, 0)
            server.is_open = False
            assert list(lines) == []
        assert all_squares(server)


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_without_a_server_it_gives_up_in_time(seconds: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(ConnectionLost, match=f"Gave up after {seconds:g} seconds.*refused"):
        Client(address, reconnect_seconds=seconds).__enter__()
    assert seconds <= time.monotonic() - began < seconds + 5


def test_the_loss_of_the_server_is_an_exception_of_the_loop() -> None:
    def work() -> None:
        with Client(server.address, batch=1, reconnect_seconds=0.2) as client:
            for item in client:
                server.hang_up(listen=False)
                client.done(item, 0)

    with FakeServer(numbers(10)) as server, pytest.raises(ConnectionLost, match="Gave up"):
        work()


def test_the_wrong_token_is_final() -> None:
    with FakeServer(numbers(1), token="right") as server:
        with pytest.raises(RequestRefused) as caught, Client(server.address, token="wrong"):
            pass
        assert caught.value.code == ErrorCode.AUTH_FAILED
        assert server.connections == 1


def test_a_refused_get_is_an_exception_of_the_loop() -> None:
    with FakeServer(numbers(1)) as server, Client(server.address, stage="what") as client:
        server.refuse["get"].append(Refusal(error=ErrorCode.BAD_REQUEST, message="no such stage"))
        with pytest.raises(RequestRefused, match="no such stage"):
            list(client)


def test_outside_of_its_block_it_says_so() -> None:
    client = Client("localhost:1")
    with pytest.raises(UsageError, match="not connected"):
        client.status()


def test_no_thread_outlives_it() -> None:
    before = threading.active_count()
    with FakeServer(numbers(3)) as server:
        square_all(server)
    assert threading.active_count() == before


def test_sent_home_it_ends_and_hands_everything_in() -> None:
    with FakeServer(numbers(3)) as server:
        with Client(server.address, deadline=1900000000.0) as client:
            for item in client:
                client.done(item, item.data)
                server.drop.append("done")
                server.send_home = "deadline"
            assert client.reason == "deadline"
        assert server.results == {0: [b"0"]}
        hello = server.log[0].request
        assert isinstance(hello, Hello)
        assert hello.deadline == 1900000000.0
        assert server.log[-1].op == "bye"


def test_a_slow_line_does_not_hold_those_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(pace, "MAX_HAND_SECONDS", 1.0)
    with FakeServer(numbers(1_000), lease_timeout=0.6) as server:
        with Client(server.address) as client:
            held = 0
            for item in client:
                if not held and len(server.holder) > 50:
                    held = len(server.holder)
                    server.wait_for(lambda: server.count("release") == 1)
                    assert len(server.holder) < held
                client.done(item, item.data**2)
        assert held
        assert all_squares(server)


def extended(server: FakeServer, count: int) -> bool:
    return server.count("extend") >= count


def test_lines_are_renewed_from_their_receipt_and_lost_ones_never_begun() -> None:
    with FakeServer(numbers(3), lease_timeout=0.3) as server:
        begun = []
        with Client(server.address, batch=3) as client:
            for item in client:
                begun.append(item.id)
                if item.id == 0:
                    server.settle([(1, b'"theirs"')])
                    server.lost.add(1)
                    server.wait_for(lambda: not server.lost)
                    more = server.count("extend") + 1
                    server.wait_for(functools.partial(extended, server, more))
                client.done(item, item.data)
        assert begun == [0, 2]


# --- replies in their order -----------------------------------------------------------------------


def test_a_renewal_is_heard_before_the_lines_that_come_behind_it() -> None:
    """A line may be lost by the one reply and leased again by the next: whoever reads both."""
    heard: list[str] = []
    with FakeServer(numbers(2)) as server:
        server.gates["extend"] = threading.Event()
        link = Link.open(parse_address(server.address), Hello())
        renewing = threading.Thread(
            target=link.ask,
            args=(Extend(), decoder(ExtendReply)),
            kwargs={"on_reply": lambda _: heard.append("extend")},
        )
        renewing.start()
        server.wait_for(lambda: server.count("extend") == 1)
        pending = Pending(decode_get, lambda _: heard.append("get"))
        link.send([Message(Get(), pending)])
        server.gates["extend"].set()
        link.wait(pending)
        renewing.join()
        link.close()
    assert heard == ["extend", "get"]
