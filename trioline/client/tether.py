"""A ``Client``'s connection, made again whenever it is lost; shared by its threads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import attrs

from trioline.client.link import Link
from trioline.client.reach import Backoff, is_final, parse_address
from trioline.config import Address
from trioline.errors import ConnectionLost, RequestRefused, TriolineError, UsageError
from trioline.wire.messages import Hello, Request, WorkLines

T = TypeVar("T")

logger = logging.getLogger("trioline.client")


class Tether:
    """Keeps one link open.

    Args:
        address: Parsed anew at each attempt: an address file may name a server that has moved.
        hello: What to say first; the session is put in.
        reconnect_seconds: How long to try for a connection before giving up.
        on_link: Called with each new link, before others have it, and whether the former session
            was taken up again: if not, what was leased in it is not held any more.
    """

    def __init__(
        self,
        address: str | Address,
        hello: Hello,
        *,
        reconnect_seconds: float,
        on_link: Callable[[Link, bool], None],
    ) -> None:
        self._address = address
        self._hello = hello
        self._reconnect_seconds = reconnect_seconds
        self._on_link = on_link
        self._link: Link | None = None
        self._linking = threading.Lock()
        self._closing = threading.Event()
        self._fatal: TriolineError | None = None

    @property
    def link(self) -> Link:
        """The link as it is; it may be broken.

        Raises:
            UsageError: It was never made.
            ConnectionLost, RequestRefused: There will be none any more.
        """
        if self._fatal is not None:
            raise self._fatal
        if self._link is None:
            raise UsageError(
                "The client is not connected: use it as in `with Client(…) as client:`."
            )
        return self._link

    def renew(self, broken: Link | None) -> Link:
        """Make the link again, unless another thread has done so.

        Args:
            broken: The link that was found broken; None for the first one.

        Raises:
            ConnectionLost: There was no connection for ``reconnect_seconds``, or all is closed.
            RequestRefused: The server does not want us, whenever we come.
        """
        with self._linking:
            if self._link is not broken:
                return self.link
            if broken is not None:
                broken.close()
            try:
                link = self._connect("" if broken is None else str(broken.end_reason))
            except (ConnectionLost, RequestRefused) as error:
                self._fatal = error
                raise
            self._on_link(link, self._hello.session in (None, link.hello.session))
            self._hello = attrs.evolve(self._hello, session=link.hello.session)
            self._link = link
            return link

    def ask(
        self,
        request: Request,
        decode: Callable[[bytes], T | WorkLines],
        *,
        on_reply: Callable[[T], None] | None = None,
    ) -> T:
        """Make a request that may be made twice, and make it again where the link is lost.

        Args:
            request: Any such.
            decode: Reads the reply; see ``pipeline.decoder``.
            on_reply: As for ``Link.ask``.

        Raises:
            ConnectionLost, RequestRefused: As ``renew``; the latter also from the request itself.
        """
        while True:
            link = self.link
            try:
                return link.ask(request, decode, on_reply=on_reply)
            except ConnectionLost:
                self.renew(link)

    def close(self) -> None:
        """Close the link and make no other. Idempotent."""
        self._closing.set()
        if self._link is not None:
            self._link.close()

    def _connect(self, reason: str) -> Link:
        backoff = Backoff(self._reconnect_seconds, time.monotonic())
        if reason:
            logger.info("%s Trying again.", reason)
        while not self._closing.is_set():
            try:
                return Link.open(parse_address(self._address), self._hello)
            except (ConnectionLost, UsageError) as error:
                reason = str(error)
            except RequestRefused as refusal:
                if is_final(refusal):
                    raise
                reason = str(refusal)
            pause = backoff.pause(time.monotonic())
            if pause is None:
                raise ConnectionLost(
                    f"Gave up after {self._reconnect_seconds:g} seconds without a connection: "
                    f"{reason}"
                )
            self._closing.wait(pause)
        raise ConnectionLost("The client is closed.")
