"""Addresses, settings and their ranges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs
import cattrs
import pytest

from trioline.config import (
    DEFAULT_PORT,
    Address,
    Fsync,
    JobSettings,
    LeaseSettings,
    ServerSettings,
    converter,
)
from trioline.errors import UsageError

# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("gpu-07:80", Address("gpu-07", 80)),
        ("gpu-07", Address("gpu-07", DEFAULT_PORT)),
        ("tcp://gpu-07", Address("gpu-07", DEFAULT_PORT)),
        ("tcp://gpu-07:1", Address("gpu-07", 1)),
        ("tcp://gpu-07:65535/", Address("gpu-07", 65_535)),
        ("127.0.0.1:7766", Address("127.0.0.1", 7_766)),
        ("[::1]", Address("::1", DEFAULT_PORT)),
        ("[::1]:80", Address("::1", 80)),
        ("tcp://[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("unix:/run/t.sock", Address(path="/run/t.sock")),
        ("unix:///run/t.sock", Address(path="/run/t.sock")),
        ("unix:here.sock", Address(path="here.sock")),
    ],
)
def test_an_address_is_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address, "and written so that it can be read again"


def test_an_address_is_written_as_the_server_says_it() -> None:
    assert str(Address("127.0.0.1", 7_766)) == "tcp://127.0.0.1:7766"
    assert str(Address("::1", 7_766)) == "tcp://[::1]:7766"
    assert str(Address(path="/run/t.sock")) == "unix:/run/t.sock"


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    assert Address.parse("unix:~/t.sock").path == "/home/anna/t.sock"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":80",
        "gpu:",
        "gpu:x",
        "gpu:-1",
        "gpu:123456",
        "gpu:\uff11\uff12",
        "gpu 07:80",
        "gpu:80\n",
        "::1",
        "[::1",
        "[::1]80",
        "tcp://",
        "http://gpu:80",
        "anna@gpu:80",
        "gpu:80/path",
        "gpu\0:80",
        "unix",
    ],
)
def test_what_is_no_address_is_refused_and_named(text: str) -> None:
    if text == "unix":
        assert Address.parse(text).host == "unix", "a host may be called so"
        return
    with pytest.raises(UsageError, match="is no address: write host:port") as caught:
        Address.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("port", [0, 65_536, 99_999])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match=f"has port {port}; ports go from 1 to 65535"):
        Address.parse(f"gpu:{port}")


@pytest.mark.parametrize("text", ["unix:", "unix://"])
def test_a_socket_without_a_path_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="has no path"):
        Address.parse(text)


def test_an_address_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "address"
    file.write_text("tcp://gpu-07:80\n")
    assert Address.parse(f"@{file}") == Address("gpu-07", 80)
    file.write_text("unix:/run/t.sock\n")
    assert Address.parse(f"@{file}") == Address(path="/run/t.sock")


@pytest.mark.parametrize("content", [None, b"\xff", "folder"])
def test_an_address_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | str | None
) -> None:
    file = tmp_path / "address"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.mkdir()
    with pytest.raises(UsageError, match=r"The address file .*/address cannot be read: "):
        Address.parse(f"@{file}")


def test_an_address_file_of_no_possible_name_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Address.parse("@a\0b")


def test_an_address_file_that_names_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "address"
    file.write_text(f"@{file}\n")
    with pytest.raises(UsageError, match="names another file"):
        Address.parse(f"@{file}")


def test_an_address_file_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "address"
    for content in ("", "not there yet"):
        file.write_text(content)
        with pytest.raises(UsageError, match="is no address"):
            Address.parse(f"@{file}")


# --- ranges --------------------------------------------------------------------------------------

RANGES: list[tuple[type, str, str, float, float]] = [
    (LeaseSettings, "lease_timeout_seconds", "--lease-timeout", 0.001, 1e9),
    (LeaseSettings, "max_attempts", "--max-attempts", 1, 1_000_000),
    (LeaseSettings, "max_losses", "--max-losses", 1, 1_000_000),
    (LeaseSettings, "retry_delay_seconds", "--retry-delay", 0, 1e9),
    (LeaseSettings, "hedge", "--hedge", 0, 1e6),
    (LeaseSettings, "max_held", "--max-held", 1, 1_000_000_000),
    (LeaseSettings, "grace_seconds", "--grace", 0, 1e9),
    (LeaseSettings, "window", "--window", 1, 1_000_000_000),
    (ServerSettings, "port", "--port", 0, 65_535),
    (ServerSettings, "linger_seconds", "--linger", 0, 86_400),
    (ServerSettings, "drain_seconds", "--drain", 0, 1e9),
    (ServerSettings, "max_connections", "--max-connections", 1, 1_000_000),
    (JobSettings, "max_line_bytes", "--max-line", 1_024, 1 << 30),
]
"""Class, field, option, smallest, largest."""


def make(kind: type, **values: float) -> Any:  # noqa: ANN401 - one of three classes
    """Make settings with what must be given."""
    paths = {"input": Path("i"), "output": Path("o"), "rejected": Path("r")}
    return kind(**(paths if kind is JobSettings else {}), **values)


def test_every_number_has_a_range() -> None:
    numbers = {
        field.name
        for kind in (JobSettings, LeaseSettings, ServerSettings)
        for field in attrs.fields(attrs.resolve_types(kind))
        if field.type in (int, float, int | None)
    }
    assert numbers == {field for _, field, *_ in RANGES}


@pytest.mark.parametrize(("kind", "field", "option", "low", "high"), RANGES)
def test_the_ends_of_a_range_are_inside(
    kind: type, field: str, option: str, low: float, high: float
) -> None:
    assert getattr(make(kind, **{field: low}), field) == low
    assert getattr(make(kind, **{field: high}), field) == high


@pytest.mark.parametrize(("kind", "field", "option", "low", "high"), RANGES)
def test_a_value_out_of_range_is_refused_with_all_that_matters(
    kind: type, field: str, option: str, low: float, high: float
) -> None:
    shown = {low: f"{low:.15g}", high: f"{int(high)}"}
    for value in (low - 1, high + 1, -math.inf, math.inf, math.nan):
        with pytest.raises(UsageError) as caught:
            make(kind, **{field: value})
        text = f"{value}" if not math.isfinite(value) else f"{value:.15g}"
        assert str(caught.value) == (
            f"{option} is {text}; it must be at least {shown[low]} and at most {shown[high]}."
        )


def test_no_tcp_is_a_setting() -> None:
    assert ServerSettings(port=None, unix=Path("s")).port is None


def test_settings_cannot_change() -> None:
    for kind, field in ((JobSettings, "text"), (LeaseSettings, "window"), (ServerSettings, "host")):
        settings = make(kind)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(settings, field, 7)


def test_the_state_stands_beside_the_output() -> None:
    settings = attrs.evolve(make(JobSettings), output=Path("/data/answers.jsonl"))
    assert settings.state == Path("/data/answers.jsonl.trioline")


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(ServerSettings(token="secret"))


# --- plain mappings ------------------------------------------------------------------------------


def structure(kind: type, **values: object) -> Any:  # noqa: ANN401 - one of three classes
    """Structure settings from a mapping, with what must be given."""
    paths = {"input": "i", "output": "o", "rejected": "r"}
    return converter.structure((paths if kind is JobSettings else {}) | values, kind)


def test_plain_values_become_settings() -> None:
    lease = structure(LeaseSettings, lease_timeout_seconds=5, max_attempts=2)
    assert lease == LeaseSettings(lease_timeout_seconds=5.0, max_attempts=2)
    assert isinstance(lease.lease_timeout_seconds, float)
    server = structure(ServerSettings, host="gpu", port=None, unix="/run/s", token="t")
    assert server == ServerSettings(host="gpu", port=None, unix=Path("/run/s"), token="t")
    job = structure(JobSettings, fsync="never", text=True, placeholder=b"{}")
    assert (job.input, job.fsync, job.text) == (Path("i"), Fsync.NEVER, True)
    assert isinstance(job.fsync, Fsync)


def test_settings_survive_a_round_trip() -> None:
    for settings in (make(JobSettings), LeaseSettings(), ServerSettings(unix=Path("s"))):
        plain = converter.unstructure(settings)
        assert converter.structure(plain, type(settings)) == settings


@pytest.mark.parametrize(
    ("kind", "field", "value", "reason"),
    [
        (LeaseSettings, "max_attempts", True, "True is not a whole number"),
        (LeaseSettings, "max_attempts", 2.0, "2.0 is not a whole number"),
        (LeaseSettings, "max_attempts", "2", "'2' is not a whole number"),
        (LeaseSettings, "max_attempts", None, "None is not a whole number"),
        (LeaseSettings, "max_attempts", 0, "--max-attempts is 0"),
        (LeaseSettings, "grace_seconds", "2", "'2' is not a number"),
        (LeaseSettings, "grace_seconds", True, "True is not a number"),
        (LeaseSettings, "grace_seconds", math.nan, "--grace is nan"),
        (ServerSettings, "port", "80", "'80' is not a whole number"),
        (ServerSettings, "port", 80.0, "80.0 is not a whole number"),
        (ServerSettings, "host", 7, "7 is not a text"),
        (ServerSettings, "token", 7, "7 is not a text"),
        (JobSettings, "text", "false", "'false' is neither true nor false"),
        (JobSettings, "text", 1, "1 is neither true nor false"),
        (JobSettings, "placeholder", 3, "3 is not bytes"),
        (JobSettings, "placeholder", "null", "'null' is not bytes"),
        (JobSettings, "fsync", "sometimes", "'sometimes' is not a valid Fsync"),
        (JobSettings, "fsync", 1, "1 is not a text"),
        (LeaseSettings, "max_atempts", 2, "max_atempts"),
    ],
)
def test_another_type_is_refused_and_never_converted(
    kind: type, field: str, value: object, reason: str
) -> None:
    with pytest.raises((UsageError, ValueError, cattrs.ForbiddenExtraKeysError)) as caught:
        structure(kind, **{field: value})
    assert reason in str(caught.value)
