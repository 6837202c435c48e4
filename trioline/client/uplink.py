"""A worker's connection, made again whenever it is lost."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import anyio

from trioline.client.reach import Backoff, is_final
from trioline.client.session import Session, connect
from trioline.config import Address
from trioline.errors import ConnectionLost, RequestRefused, UsageError

logger = logging.getLogger("trioline.worker")

GOODBYE_SECONDS = 2.0
"""For the last results and ``bye``, also while being cancelled: a round trip and a commit."""


class Uplink:
    """Keeps one session open; work goes on while there is none.

    Args:
        address: Parsed anew at each attempt: an address file may name a server that has moved.
        token: What the server asks for, or None.
        worker: A name for status and logs.
        deadline: See ``connect``.
        reconnect_seconds: How long to try for a connection before giving up.
    """

    def __init__(
        self,
        address: str | Address,
        *,
        token: str | None,
        worker: str,
        deadline: float | None,
        reconnect_seconds: float,
    ) -> None:
        self._address = address
        self._token = token
        self._worker = worker
        self._deadline = deadline
        self._reconnect_seconds = reconnect_seconds
        self._session: Session | None = None
        self._session_id: str | None = None
        self._connected = anyio.Event()

    @property
    def session(self) -> Session | None:
        """The open session, or None."""
        session = self._session
        return None if session is None or session.is_broken else session

    async def wait_session(self) -> Session:
        """Wait until there is a session; it may break at any time.

        **Cancellation**: nothing happened.
        """
        while (session := self.session) is None:
            await self._connected.wait()
        return session

    async def run(
        self,
        on_return: Callable[[Session, bool], Awaitable[None]],
        goodbye: Callable[[Session], Awaitable[None]],
    ) -> None:
        """Connect, and connect again, until cancelled.

        Args:
            on_return: Called after a cut with the new session, before others have it, and with
                whether the former one was taken up again. If not, what was leased in it is gone.
            goodbye: Called under a deadline with the open session when this is cancelled.

        Raises:
            ConnectionLost: There was no connection for ``reconnect_seconds``.
            RequestRefused: The server wants none of us, whenever we come.

        **Cancellation**: ``goodbye`` is said, within ``GOODBYE_SECONDS``.
        """
        backoff: Backoff | None = None
        while True:
            try:
                async with self._open() as session:
                    backoff = None
                    if self._session_id is not None:
                        await on_return(session, session.hello.session == self._session_id)
                    reason = await self._hold(session, goodbye)
            except (ConnectionLost, UsageError) as error:
                reason = str(error)
            except RequestRefused as refusal:
                if is_final(refusal):
                    raise
                reason = str(refusal)
            if backoff is None:
                logger.info("%s Trying again.", reason)
                backoff = Backoff(self._reconnect_seconds, anyio.current_time())
            pause = backoff.pause(anyio.current_time())
            if pause is None:
                raise ConnectionLost(
                    f"Gave up after {self._reconnect_seconds:g} seconds without a connection: "
                    f"{reason}"
                )
            await anyio.sleep(pause)

    def _open(self) -> AbstractAsyncContextManager[Session]:
        return connect(
            self._address,
            token=self._token,
            worker=self._worker,
            deadline=self._deadline,
            session=self._session_id,
        )

    async def _hold(self, session: Session, goodbye: Callable[[Session], Awaitable[None]]) -> str:
        self._session_id = session.hello.session
        self._session = session
        self._connected.set()
        try:
            return await session.wait_broken()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(GOODBYE_SECONDS, shield=True):
                await goodbye(session)
            raise
        finally:
            self._session = None
            self._connected = anyio.Event()
