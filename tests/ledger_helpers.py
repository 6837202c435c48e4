"""Short ways to make a ledger and to give lines out."""

from __future__ import annotations

from trioline.config import LeaseSettings
from trioline.ledger import HolderId, Lease, Ledger

ANNA, BERT, CARL = HolderId(1), HolderId(2), HolderId(3)


def make(base: int = 0, *, is_resumed: bool = False, **changes: float) -> Ledger:
    """Make a ledger with short times: lease timeout 10, grace 2, three attempts, no delays."""
    values = {
        "lease_timeout_seconds": 10,
        "grace_seconds": 2,
        "window": 1_000_000,
        "retry_delay_seconds": 0,
    } | changes
    return Ledger(LeaseSettings(**values), base=base, is_resumed=is_resumed)  # type: ignore[arg-type]


def take(ledger: Ledger, holder: HolderId, count: int = 1, now: float = 0.0) -> Lease:
    """Lease the next ``count`` lines; there must be so many in one offer."""
    offer = ledger.offer(now, count)
    assert offer is not None
    assert offer.count == count
    return ledger.lease(now, holder, offer, count)


def lines_of(ledger: Ledger, *lines: int) -> list[HolderId | None]:
    """Say who holds each line, copies aside."""
    leases = [ledger.lease_of(line) for line in lines]
    return [None if lease is None else lease.holder for lease in leases]
