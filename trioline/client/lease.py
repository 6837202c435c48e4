"""What a ``get`` brought."""

from __future__ import annotations

from collections.abc import Iterator

from trioline.client.item import Item
from trioline.wire.codec import item_bytes
from trioline.wire.messages import Work, WorkLines


class Lease:
    """Lines that are this connection's until the lease runs out.

    Attributes:
        number: The lease's number, for ``extend`` and ``fail``.
        timeout_seconds: How long it holds, from when it was given.
        count: How many lines.
        first: The first line's number; None where they came in items form.
        block: The raw lines, each with its newline; None where they came in items form.
        attempt: Which attempt it is; None where they came in items form and may differ.
    """

    __slots__ = ("_items", "attempt", "block", "count", "first", "number", "timeout_seconds")

    def __init__(
        self,
        reply: Work | WorkLines,
        *,
        items: list[Item] | None = None,
        block: bytes | None = None,
    ) -> None:
        self.number = reply.lease
        self.timeout_seconds = reply.lease_timeout
        self.first = reply.first if isinstance(reply, WorkLines) else None
        self.attempt = reply.attempt if isinstance(reply, WorkLines) else None
        self.count = reply.count if isinstance(reply, WorkLines) else len(reply.items)
        self.block = block
        self._items = items

    @classmethod
    def from_items(cls, reply: Work) -> Lease:
        """Make it of a reply in items form.

        Raises:
            RemoteProtocolError: An item has no line.
        """
        items = [
            Item(row.id, row.attempt if isinstance(row.attempt, int) else 1, item_bytes(row))
            for row in reply.items
        ]
        return cls(reply, items=items)

    @classmethod
    def from_lines(cls, reply: WorkLines, block: bytes) -> Lease:
        """Make it of a reply in lines form and the raw lines behind it."""
        return cls(reply, block=block)

    @property
    def items(self) -> list[Item]:
        """The lines as items, in input order; made at first use where they came raw."""
        if self._items is None:
            self._items = self.items_noting(None)
        return self._items

    def items_noting(self, notes: dict[int, str] | None) -> list[Item]:
        """Make items whose ``note`` leaves its text in ``notes``."""
        if self.block is None or self.first is None or self.attempt is None:
            for item in self.items:
                item.notes = notes
            return self.items
        attempt = self.attempt
        lines = self.block.split(b"\n")
        lines.pop()  # what is behind the last newline
        return [Item(place, attempt, line, notes) for place, line in enumerate(lines, self.first)]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)
