"""Runs one server from open files to exit code: for ``serve`` and for ``run``."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from trioline.cli.main import EXIT_DONE, EXIT_REJECTED, EXIT_STOPPED
from trioline.cli.options import job_settings, lease_settings, server_settings
from trioline.cli.room import when_there_is_room
from trioline.cli.signals import Stops
from trioline.config import Address, JobSettings, LeaseSettings, ServerSettings
from trioline.errors import StorageError, UsageError
from trioline.ops.progress import Progress, summary
from trioline.server.app import Server
from trioline.server.listeners import open_listeners
from trioline.storage.checkpoint import CheckpointFile
from trioline.storage.files import Disk
from trioline.storage.job import Job
from trioline.storage.numbers import Numbers
from trioline.storage.opening import CHECKPOINT_NAME, check_paths
from trioline.storage.system import OsFiles

log = logging.getLogger("trioline.cli")

REFRESH_SECONDS = 0.5
OWN_FILES = 48
"""File descriptors for the job's files, the event loop and those just being accepted."""

Companion = Callable[[Server, Sequence[Address]], Awaitable[None]]
"""Runs beside the server; cancelled when that ends."""


@attrs.frozen(kw_only=True)
class Service:
    """All that one server's run needs."""

    job: JobSettings
    leases: LeaseSettings
    server: ServerSettings
    address_file: Path | None = None
    log_format: str = "text"
    quiet: bool = False
    is_announced: bool = True
    """Whether stdout says where it listens."""
    numbers: Numbers | None = None
    """Of the lines, where they are only some of a file's."""


def service_from(options: dict[str, Any]) -> Service:
    """Make a service of the options of ``serve``.

    Raises:
        UsageError: One of them cannot be used.
    """
    return Service(
        job=job_settings(options),
        leases=lease_settings(options),
        server=server_settings(options),
        address_file=options["address_file"],
        log_format=options["log_format"],
        quiet=options["quiet"],
    )


def serve_job(service: Service, companion: Companion | None = None) -> int:
    """Serve a job until it is over or a signal stops it; signals mean nothing after that.

    Returns:
        The exit code.

    Raises:
        TriolineError: As ``Job.open`` and ``Server.run`` do, possibly in exception groups.
    """
    _check_before(service)
    with contextlib.closing(when_there_is_room(lambda: Job.open(service.job))) as job:
        job.numbers = service.numbers
        if job.warning is not None:
            log.warning("%s", job.warning)
        if job.is_finished:
            log.info("%s", _finished(job))
        else:
            trio.run(_serve, job, _with_room_for_files(service), companion, Stops())
        return _exit_code(job)


def _exit_code(job: Job) -> int:
    if not job.is_finished:
        return EXIT_STOPPED
    return EXIT_REJECTED if job.rejected_count else EXIT_DONE


def _check_before(service: Service) -> None:
    """Find out what would fail only after a job's files were made, recovered or thrown away.

    Raises:
        UsageError: An address cannot be listened on, or the address file cannot be written.
    """
    path = service.address_file
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK)):
        why = "it is a folder" if path.is_dir() else f"{path.parent} is no folder to write in"
        raise UsageError(f"The address file {path} cannot be written: {why}.")
    if service.job.fresh or not service.job.state.exists():
        check_paths(Disk(OsFiles()), service.job)
    elif not _goes_on(service.job.state / CHECKPOINT_NAME):
        return
    trio.run(_try_to_listen, service.server)


def _goes_on(checkpoint: Path) -> bool:
    """Whether a job there is to be served again; where that cannot be read, opening it says why."""
    try:
        with contextlib.closing(CheckpointFile(Disk(OsFiles()), checkpoint)) as slots:
            found = [slot for slot in slots.slots() if slot is not None]
    except StorageError:
        return False
    return bool(found) and not max(found, key=lambda slot: slot.sequence).finished


async def _try_to_listen(settings: ServerSettings) -> None:
    async with open_listeners(settings):
        pass


async def _serve(job: Job, service: Service, companion: Companion | None, stops: Stops) -> None:
    server = Server(job, service.leases, service.server)
    ended = trio.Event()
    progress = Progress(log.info, is_live=service.log_format == "text")

    async def run(*, task_status: trio.TaskStatus[Sequence[Address]]) -> None:
        await server.run(task_status=task_status)
        ended.set()

    with stops.heard() as signals:
        # Signals are heard to the very end, also while the companion is being ended.
        async with trio.open_nursery() as hearing:
            hearing.start_soon(_stop_at_signals, server, signals, progress, job, service)
            async with trio.open_nursery() as nursery:
                addresses = await nursery.start(run)
                with _announced(addresses, service):
                    if not service.quiet:
                        nursery.start_soon(_show, server, progress)
                    if companion is not None:
                        nursery.start_soon(companion, server, addresses)
                    await ended.wait()
                    nursery.cancel_scope.cancel()
            hearing.cancel_scope.cancel()
    log.info("%s", _last_words(server, job, service))


async def _stop_at_signals(
    server: Server,
    signals: AsyncIterator[int],
    progress: Progress,
    job: Job,
    service: Service,
) -> None:
    stops = 0
    async for number in signals:
        stops += 1
        if stops == 1:
            log.info(
                "%s: finishing what is under way; once more ends it now, and it can be resumed.",
                signal.Signals(number).name,
            )
        if stops == 3:
            progress.close()
            log.info("%s", _last_words(server, job, service))
            os._exit(_exit_code(job))  # what was acknowledged is safe at every instant
        server.stop()


async def _show(server: Server, progress: Progress) -> None:
    with progress:
        while True:
            progress.show(server.snapshot())
            await trio.sleep(REFRESH_SECONDS)


@contextmanager
def _announced(addresses: Sequence[Address], service: Service) -> Iterator[None]:
    address_file = service.address_file
    try:
        for address in addresses if service.is_announced else ():
            print(f"trioline listening on {address}", flush=True)
    except OSError as error:
        raise UsageError(f"Standard output cannot be written: {error.strerror}.") from error
    if address_file is None:
        yield
        return
    _write_whole(address_file, f"{addresses[0]}\n")
    try:
        yield
    finally:
        address_file.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    # Workers on other machines poll for it: it must never be seen half written.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"The address file {path} cannot be written: {error.strerror}.") from error


def _with_room_for_files(service: Service) -> Service:
    """Allow as many connections as the system lets this process have, beside its own files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return service
    most = max(1, min(service.server.max_connections, hard - OWN_FILES))
    return attrs.evolve(service, server=attrs.evolve(service.server, max_connections=most))


def _finished(job: Job) -> str:
    rejected = f", {job.rejected_count:,} of them rejected" if job.rejected_count else ""
    again = "--fresh does it again."
    if job.rejected_count:
        again = "`trioline retry` runs these again; --fresh does all of it again."
    return (
        f"This job is complete already: {job.written_count:,} lines in "
        f"{job.settings.output}{rejected}. {again}"
    )


def _last_words(server: Server, job: Job, service: Service) -> str:
    words = summary(server.snapshot())
    if not job.is_finished:
        return words + " Stopped before the end: the same command goes on."
    if server.snapshot().rejected and service.numbers is None:
        return words + f" See {service.job.rejected}."
    return words
