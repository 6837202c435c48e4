"""A worker that writes the journal's frames into its results: none of them ever counts.

In a job of text a result may be any bytes. What is behind a damaged frame is searched for the next
good one, by a start and by a repair: so the worker's result, in the midst of the damaged one, must
not pass for it, whatever the worker was told.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from damage_helpers import contents, files_with
from processes import Plain, serving
from repair_helpers import mend_all
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.config import Fsync, JobSettings
from trioline.storage import Job, Results
from trioline.storage.frames import HEADER_BYTES, Frame, Kind, encode, mark_of
from trioline.storage.repair.given import Given
from trioline.wire.codec import find_bad_json

FOLDER = Path("/d")
STATE = FOLDER / "out.trioline"
SEGMENT = STATE / "journal-00000001"
LINES = 20
FORGED = 9
"""The line that the forged frame settles."""
BYTES = [1, 9, 12, 17, 25, HEADER_BYTES + 2]
"""One in the mark, in the crc, in the kind, in the length, in the first line, in the payload."""


def forged_frame(run_id: bytes) -> bytes:
    """A frame that is one where ``run_id`` is the run's; a line, so that it can be a result.

    Raises:
        ValueError: There is a newline in the mark: such a job's frames are no lines.
    """
    for number in range(1_000):
        frame = Frame(Kind.RESULTS, FORGED, 1, b"forged %d\n" % number)
        data = b"".join(encode(frame, mark_of(run_id, 1)))
        if data.count(b"\n") == 1:
            return data
    raise ValueError(data)


def run_id_of(files: CrashFiles) -> bytes:
    (found,) = re.findall(rb'"run_id":\s*"(\w+)"', files.get(STATE / "run.json"))
    return bytes.fromhex(found.decode())


def told_by(job: Job) -> list[bytes]:
    """What a worker that was told the job's id can take for the run id."""
    return [bytes.fromhex(job.public_id), job.public_id.encode()]


def job_with(settings: JobSettings, forger: str) -> tuple[CrashFiles, int]:
    """A job that was killed, with forged frames in a result; and how many these are."""
    while True:
        files = CrashFiles()
        files.put(settings.input, input_of(LINES))
        job = Job.open(settings, files)
        known = told_by(job) if forger == "was told" else [run_id_of(files)]
        try:
            frames = [forged_frame(run_id) for run_id in known]
        except ValueError:
            continue  # a mark with a newline: no worker can write that
        data = b"".join(frames)
        job.commit([Results(3, data.count(b"\n"), data)])
        job.commit([Results(12, 1, b"twelve\n")])
        files.kill()
        return files, len(frames)


def settled(files: CrashFiles, settings: JobSettings) -> set[int]:
    job = Job.open(settings, files)
    lines = set(range(job.written_count)).union(*job.ahead())
    job.close()
    return lines


def spoiled(files: CrashFiles, at: int) -> CrashFiles:
    data = bytearray(files.get(SEGMENT))
    data[at] ^= 0x40
    return files_with({**contents(files), SEGMENT: bytes(data)})


@pytest.mark.parametrize("at", BYTES)
def test_what_a_worker_can_forge_never_counts(at: int) -> None:
    settings = settings_for(FOLDER, text=True)
    files, _ = job_with(settings, "was told")
    assert settled(spoiled(files, at), settings) == {12}
    mended = spoiled(files, at)
    assert mend_all(mended, Given(output=settings.output)).counts.ahead == 1
    assert settled(mended, settings) == {12}


@pytest.mark.parametrize("fsync", Fsync)
def test_nor_where_the_checkpoint_is_lost_and_the_frame_cut(fsync: Fsync) -> None:
    """Then all of the journal is taken for what it seems to be."""
    settings = settings_for(FOLDER, text=True, fsync=fsync)
    files, _ = job_with(settings, "was told")
    whole = contents(files)
    for end in range(HEADER_BYTES, 2 * HEADER_BYTES + 20):
        cut = {**whole, SEGMENT: whole[SEGMENT][:end]}
        del cut[STATE / "checkpoint"]
        mended = files_with(cut)
        mend_all(mended, Given(output=settings.output))
        assert settled(mended, settings) == set()


def test_the_trials_notice_a_forger_that_knows_the_run_id() -> None:
    settings = settings_for(FOLDER, text=True)
    files, count = job_with(settings, "knows all")
    assert count == 1
    assert settled(spoiled(files, 1), settings) == {FORGED, 12}


def test_no_json_holds_a_frame() -> None:
    forged = forged_frame(b"ab" * 8)
    for line in (forged, b'"' + forged[:-1] + b'"\n', b"1 " + forged, bytes(4) + b"1\n"):
        assert find_bad_json(line) == 0


def test_a_result_full_of_heads_of_frames_costs_a_repair_no_time() -> None:
    """Each names a long payload: it would be summed up for each of them."""
    settings = settings_for(FOLDER, text=True)
    files = CrashFiles()
    files.put(settings.input, input_of(LINES))
    job = Job.open(settings, files)
    head = encode(Frame(Kind.RESULTS, 3, 1, bytes(0x10000)), b"12345678")[0]
    assert b"\n" not in head
    job.commit([Results(3, 1, head * 20_000 + b"\n"), Results(12, 1, b"twelve\n")])
    files.kill()
    wounded = spoiled(files, 1)
    before = wounded.call_count
    mend_all(wounded, Given(output=settings.output))
    assert wounded.call_count - before < 500
    assert settled(wounded, settings) == {12}


def test_the_run_id_is_told_to_no_worker(tmp_path: Path) -> None:
    """Nor are its bytes, nor the mark; what is told instead stays the same."""
    (tmp_path / "in").write_bytes(input_of(LINES))
    replies: list[dict[str, object]] = []
    for first in (0, 5):
        with serving("in", "out", "--text", cwd=tmp_path) as server, Plain(server.port) as worker:
            replies.append(worker.ask(op="hello", protocol=1, worker="forger"))
            replies.append(worker.ask(op="get", max=5))
            replies.append(worker.ask(b"x\n" * 5, op="done", first=first, count=5, bytes=10))
            replies.append(worker.ask(op="status"))
            assert server.stop().code == 4
    (run_id,) = re.findall(r'"run_id":\s*"(\w+)"', (tmp_path / "out.trioline/run.json").read_text())
    assert [reply.get("accepted") for reply in replies[2::4]] == [5, 5]
    assert run_id not in str(replies)
    assert len({str(reply["job"]) for reply in replies[::4] + replies[3::4]}) == 1


def test_the_mark_of_a_rejected_file_does_not_tell_it() -> None:
    """It may lie in a folder that others read than those who may read the job's."""
    files = CrashFiles((FOLDER, Path("/e")))
    settings = attrs.evolve(settings_for(FOLDER), rejected=Path("/e/rejects"))
    files.put(settings.input, input_of(LINES))
    Job.open(settings, files).close()
    assert run_id_of(files).hex().encode() not in files.get(Path("/e/rejects.trioline"))
