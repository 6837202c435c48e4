"""A file belongs to one job by whatever name it is given, and wherever the job is moved."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from processes import numbers, trioline
from storage_helpers import input_of, settings_for

from trioline.config import JobSettings
from trioline.errors import UsageError
from trioline.storage import Job, Rejection, encode_record

LINES = 3


def settings_in(folder: Path) -> JobSettings:
    (folder / "job").mkdir()
    (folder / "in").write_bytes(input_of(LINES))
    made = attrs.evolve(settings_for(folder / "job"), input=folder / "in")
    return attrs.evolve(made, rejected=folder / "bad")


def reject(settings: JobSettings) -> bytes:
    job = Job.open(settings)
    line = job.written_count
    record = encode_record(line, b"x", attempts=1, losses=0, errors=["no"])
    job.commit([Rejection(line, record)])
    job.close()
    return settings.rejected.read_bytes()


def test_a_job_that_was_renamed_keeps_its_file(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    before = reject(settings)
    (tmp_path / "job").rename(tmp_path / "renamed")
    renamed = attrs.evolve(settings, output=tmp_path / "renamed" / "out")
    assert reject(renamed).startswith(before)
    other = attrs.evolve(settings, output=tmp_path / "other")
    with pytest.raises(UsageError, match=r"the output .*/renamed/out"):
        Job.open(other)


def test_a_jobs_copy_does_not_go_on_with_the_same_file(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    before = reject(settings)
    copied = tmp_path / "copy" / "out.trioline"
    copied.mkdir(parents=True)
    for path in (settings.output, *settings.state.iterdir()):
        target = tmp_path / "copy" / path.relative_to(tmp_path / "job")
        target.write_bytes(path.read_bytes())
    copy = attrs.evolve(settings, output=tmp_path / "copy" / "out")
    with pytest.raises(UsageError, match=r"the output .*/job/out: this job cannot go on"):
        Job.open(copy)
    assert reject(settings).startswith(before)


def test_a_job_moved_with_its_file_goes_on_without_the_mark(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    before = reject(settings)
    new = tmp_path / "new"
    new.mkdir()
    for name in ("job", "bad"):
        (tmp_path / name).rename(new / name)
    moved = attrs.evolve(settings, output=new / "job" / "out", rejected=new / "bad")
    assert reject(moved).startswith(before)
    reject(attrs.evolve(settings, output=tmp_path / "other"))  # the old mark means nothing


@pytest.mark.parametrize("option", ["rejected", "output"])
@pytest.mark.parametrize("kind", ["symbolic", "hard", "folder"])
@pytest.mark.parametrize("name", ["bad", "job/out"])
def test_a_link_to_another_jobs_file_is_refused(
    tmp_path: Path, option: str, kind: str, name: str
) -> None:
    settings = settings_in(tmp_path)
    Job.open(settings).close()
    link = tmp_path / "link"
    if kind == "folder":
        link.symlink_to((tmp_path / name).parent)
        link /= Path(name).name
    elif kind == "hard":
        link.hardlink_to(tmp_path / name)
    else:
        link.symlink_to(tmp_path / name)
    second = attrs.evolve(settings, output=tmp_path / "other", rejected=tmp_path / "other.rejected")
    second = attrs.evolve(second, **{option: link})  # type: ignore[arg-type] # two are paths
    if (option, name) == ("output", "job/out") and kind != "hard":
        with pytest.raises(UsageError, match="with --rejected"):  # it is the job itself
            Job.open(second)
        return
    with pytest.raises(UsageError, match=r"the output .*/job/out|is the output of|several names"):
        Job.open(second)
    assert reject(settings)


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_file_in_a_folder_that_a_link_leads_to_stays_its_jobs(
    tmp_path: Path, is_empty: bool
) -> None:
    settings = settings_in(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    settings = attrs.evolve(settings, rejected=tmp_path / "link" / "bad")
    Job.open(settings).close()
    before = b"" if is_empty else reject(settings)
    for folder in ("link", "deep/er"):
        other = attrs.evolve(
            settings, output=tmp_path / "other", rejected=tmp_path / folder / "bad"
        )
        with pytest.raises(UsageError, match=r"the output .*/job/out: name another"):
            Job.open(other)
    assert reject(settings).startswith(before)


def test_commands_name_the_file_and_the_job(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(numbers(2))
    options = ("--rejected", "bad", "--max-attempts", "1", "--quiet", "--each", "false")
    assert trioline("run", "in", "one", *options, cwd=tmp_path).code == 3
    before = (tmp_path / "bad").read_bytes()
    assert len(before.splitlines()) == 2
    for second in (("in", "two", *options), ("in", "bad", *options[2:])):
        refused = trioline("run", *second, cwd=tmp_path)
        assert refused.code == 2, refused.stderr
        assert "bad has the rejected lines of the job with the output" in refused.stderr
        assert "/one: name another file for" in refused.stderr.replace("output one", "output /one")
    assert trioline("run", "in", "one", *options, cwd=tmp_path).code == 3
    assert trioline("verify", "in", "one", cwd=tmp_path).code == 0
    assert (tmp_path / "bad").read_bytes() == before
