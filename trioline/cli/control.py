"""``trioline status``, ``set`` and ``drain``: one question to a running server."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import attrs
import click
import msgspec

from trioline.cli.options import ADDRESS_ENVIRONMENT, read_token, token_option
from trioline.client.session import Session, connect
from trioline.config import LeaseSettings
from trioline.errors import ConnectionLost, TriolineError, UsageError
from trioline.ops.progress import describe
from trioline.wire.messages import SetReply

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""A server that does not answer a question for so long is as good as gone."""

MAX_NAMES = 100
"""Shown of the workers there are."""
MAX_HEDGE = 1e6

address_argument = click.argument("address", envvar=ADDRESS_ENVIRONMENT)


@click.command("status")
@address_argument
@token_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as on the wire.")
def status_command(address: str, token_file: Path | None, as_json: bool) -> int:
    """Show how the job at ADDRESS stands.

    ADDRESS: host:port, tcp://…, unix:PATH or @FILE; TRIOLINE_ADDRESS where it is left out.
    """
    snapshot = _ask(address, token_file, lambda session: session.status())
    if as_json:
        click.echo(msgspec.json.encode(attrs.asdict(snapshot)))
    else:
        click.echo(describe(snapshot))
    return 0


@click.command("set")
@click.argument("arguments", nargs=-1, metavar="ADDRESS NAME=VALUE...")
@token_option
def set_command(arguments: tuple[str, ...], token_file: Path | None) -> int:
    """Change settings of the running job at ADDRESS.

    ADDRESS: as for status; TRIOLINE_ADDRESS where it is left out.

    lease_timeout=SECONDS (for leases given or renewed from now on), max_attempts=N,
    paused=true|false (true: nothing is given out until false), hedge=K|on|off (a line that takes K
    times as long as others is given to a second worker, too).
    """
    address, settings = _find_address(arguments)
    values: dict[str, Any] = {}
    for setting in settings:
        name, value = _parse(setting)
        if name in values:
            raise UsageError(f"{name} is given twice: give it once.")
        values[name] = value
    reply = _ask(address, token_file, lambda session: session.set(**values))
    click.echo(_settings_line(reply))
    return 0


@click.command("drain")
@click.argument("arguments", nargs=-1, metavar="ADDRESS WORKER")
@token_option
def drain_command(arguments: tuple[str, ...], token_file: Path | None) -> int:
    """Send WORKER of the job at ADDRESS home: it finishes what it has begun and gets no more.

    ADDRESS: as for status; TRIOLINE_ADDRESS where it is left out.

    WORKER: its name, as in status; all its connections are told.
    """
    if len(arguments) == 1 and ADDRESS_ENVIRONMENT in os.environ:
        arguments = (os.environ[ADDRESS_ENVIRONMENT], *arguments)
    if len(arguments) != 2:
        raise UsageError(
            f"Give an ADDRESS (or set {ADDRESS_ENVIRONMENT}) and a worker's name, as in "
            "trioline drain host:7766 gpu-07."
        )
    address, worker = arguments

    async def drain(session: Session) -> tuple[int, list[str]]:
        count = await session.drain(worker)
        rows = () if count else (await session.status()).workers
        return count, sorted({row.name for row in rows})

    count, names = _ask(address, token_file, drain)
    if not count:
        there = f"those there are: {', '.join(names[:MAX_NAMES])}" if names else "there is none"
        raise TriolineError(f"No worker named {worker!r} is connected; {there}.")
    click.echo(f"{worker}: {count} {'connection' if count == 1 else 'connections'} told to go home")
    return 0


def _find_address(arguments: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    # No address has a name before an equals sign: unix:/a=b and @a=b have not.
    if arguments and arguments[0].partition("=")[0].isidentifier() and "=" in arguments[0]:
        arguments = (os.environ.get(ADDRESS_ENVIRONMENT, ""), *arguments)
    if len(arguments) < 2 or not arguments[0]:
        raise UsageError(
            f"Give an ADDRESS (or set {ADDRESS_ENVIRONMENT}) and what to change, as in "
            "trioline set host:7766 lease_timeout=1600."
        )
    return arguments[0], arguments[1:]


def _parse(setting: str) -> tuple[str, float | int | bool]:
    name, _, value = setting.partition("=")
    try:
        match name:
            case "lease_timeout":
                return name, LeaseSettings(lease_timeout_seconds=float(value)).lease_timeout_seconds
            case "max_attempts":
                return name, LeaseSettings(max_attempts=int(value)).max_attempts
            case "hedge" if value in ("on", "off"):
                return name, value == "on"
            case "hedge" if 0 <= float(value) <= MAX_HEDGE:
                return name, float(value)
            case "paused" if value in ("true", "false"):
                return name, value == "true"
    except UsageError as error:
        raise UsageError(f"{setting!r} cannot be set: {error}") from error
    except ValueError:
        pass
    raise UsageError(
        f"{setting!r} is no setting: write lease_timeout=SECONDS, max_attempts=N, "
        "paused=true|false or hedge=K|on|off."
    )


def _settings_line(reply: SetReply) -> str:
    paused = "true" if reply.paused else "false"
    return (
        f"lease_timeout={reply.lease_timeout:g} max_attempts={reply.max_attempts} paused={paused} "
        f"hedge={f'{reply.hedge:g}' if reply.hedge else 'off'}"
    )


def _ask(address: str, token_file: Path | None, question: Callable[[Session], Awaitable[T]]) -> T:
    token = read_token(token_file)

    async def ask() -> T:
        with anyio.move_on_after(ANSWER_SECONDS):
            async with connect(address, token=token) as session:
                return await question(session)
        raise ConnectionLost(f"{address} did not answer within {ANSWER_SECONDS:g} seconds.")

    return anyio.run(ask, backend="trio")
