"""One trial of the crash simulator: a small job over some crashes to its end, checked all the way.

All of it follows from the seed: the policy, the commits, the full disks, the crashes. The job's
code is the real one; only the system calls are a double's.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import attrs
import msgspec
from storage_helpers import Crash, CrashFiles, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import DiskFull
from trioline.storage import Entry, Job, Rejection, Results, Tried, encode_record

MAX_CRASHES = 3
FOLDER = Path("/d")
POLICIES = tuple(Fsync)
SETTINGS = {fsync: settings_for(FOLDER, fsync=fsync) for fsync in POLICIES}
PLACEHOLDER = b"null\n"


class Trial:
    """One job, from its start over up to three crashes to its end.

    Args:
        seed: All that happens follows from it.
        fsync: Instead of the seed's.
    """

    def __init__(self, seed: int, fsync: Fsync | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.settings: JobSettings = SETTINGS[fsync or POLICIES[seed % len(POLICIES)]]
        if seed % 4 == 1:  # a file that needs a mark
            self.settings = attrs.evolve(self.settings, rejected=FOLDER / "bad")
        self.line_count = rng.choice((1, 3, 6, 12))
        self.files = CrashFiles()
        self.files.put(self.settings.input, b"%d\n" % seed * self.line_count)
        if rng.random() < 0.2:
            self.files.short_writes = rng
        if rng.random() < 0.2:
            self.files.fail = self.full_at_times
        elif seed % 5 == 2:
            self.files.fail = without_locks
        self.segment_bytes = rng.choice((64, 64, 300, 1 << 20))
        self.sync_share = rng.choice((0.1, 0.6))
        self.crash_count = 0
        self.crash_while_open = False
        self.acknowledged: dict[int, bytes] = {}
        """Line to output line: what a crash of the process must leave."""
        self.safe: dict[int, bytes] = {}
        """What a power loss must leave."""
        self.offered: list[set[bytes]] = [set() for _ in range(self.line_count)]
        """All that was ever handed in for a line, acknowledged or not."""
        self.is_shuffled = rng.random() < 0.7
        self.max_lines = rng.choice((1, 4))
        self.tried_share = rng.choice((0, 0.3, 0.8))
        self.tried_count = 0
        self.histories: list[list[bytes]] = [[] for _ in range(self.line_count)]
        """All that may be kept of what was tried with a line, in order."""
        self.kept: dict[int, int] = {}
        """Line to the number of its acknowledged history: that or a later one must be there."""
        self.safe_kept: dict[int, int] = {}
        """The same after a power loss."""

    def run(self) -> None:
        """Crash some times, then finish and compare."""
        crashes = self.rng.randint(1, MAX_CRASHES)
        for self.crash_count in range(crashes):
            self.crash_while_open = self.rng.random() < 0.65
            if not self.crash_while_open:
                self.plan_crash(60)  # so many calls to make a job, or to recover it
            try:
                self.work()
            except (Crash, DiskFull):
                self.crash()
            else:
                self.files.kill()
        self.crash_count = crashes
        self.crash_while_open = False
        self.files.fail = None
        self.work()
        self.files.kill()
        self.check_end()

    def plan_crash(self, within: int) -> None:
        """Let the process end at one of the next calls."""
        self.files.call_count = 0
        self.files.crash_at = self.rng.randrange(1, within)
        self.files.crash_after = self.rng.random() < 0.5

    def crash(self) -> None:
        if self.rng.random() < 0.4:
            self.files.kill()
        else:
            self.files.lose_power(self.rng)
            self.acknowledged = dict(self.safe)
            self.kept = dict(self.safe_kept)
        if self.files.has(self.settings.state / "owner"):
            self.files.unlink(self.settings.state / "owner")  # by hand: nobody is at work

    def work(self) -> None:
        """Open the job, check what is there, and go on with it to its end."""
        job = Job.open(self.settings, self.files, segment_bytes=self.segment_bytes)
        settled = set(range(job.written_count))
        if job.ahead_count:
            settled.update(*job.ahead())
        self.check_restart(job, settled)
        if self.crash_while_open:
            self.plan_crash(self.rng.choice((4, 12, 40)))
        if not job.is_finished:
            missing = [line for line in range(self.line_count) if line not in settled]
            if self.is_shuffled:
                self.rng.shuffle(missing)
            while missing:
                self.commit_some(job, missing, settled)
                assert job.written_count + job.ahead_count == len(settled)
                while self.rng.random() < self.sync_share:
                    self.sync(job, missing, settled)
            assert job.written_count == self.line_count
            self.repeat_while_full(lambda: job.finish(job.source.offset_of(self.line_count)))
            self.safe = dict(self.acknowledged)
            self.check_files(job)
        job.close()

    def commit_some(self, job: Job, missing: list[int], settled: set[int]) -> None:
        count = self.rng.randint(1, self.max_lines)
        self.commit(job, missing[:count], self.tried(missing))
        settled.update(missing[:count])
        del missing[:count]

    def tried(self, missing: list[int]) -> list[Tried]:
        """Of lines that are not settled before this commit; the same one may be there again."""
        entries: list[Tried] = []
        while self.rng.random() < self.tried_share and len(entries) < 3:
            first = end = self.rng.choice(missing[-4:])  # the last to be settled
            while end in missing and end - first < 3:
                end += 1
            self.tried_count += 1
            padding = b"." * self.rng.choice((0, 9, 700))
            entries.append(Tried(first, end - first, b"%d%s" % (self.tried_count, padding)))
        return entries

    def commit(self, job: Job, lines: list[int], tried: list[Tried]) -> None:
        answers = {line: self.answer(line) for line in lines}
        for line, answer in answers.items():
            self.offered[line].add(answer)
        kept: dict[int, int] = {}
        for entry in tried:
            for line in range(entry.first, entry.first + entry.count):
                kept[line] = len(self.histories[line])
                self.histories[line].append(entry.history)
        entries = [*tried, *(self.entry(line, answer) for line, answer in answers.items())]
        self.repeat_while_full(lambda: job.commit(entries))
        self.acknowledged |= answers
        self.kept |= kept
        if self.settings.fsync is Fsync.ALWAYS:
            self.safe |= answers
            self.safe_kept |= kept

    def sync(self, job: Job, missing: list[int], settled: set[int]) -> None:
        """Make a durable point, at times with commits beside it; some of these are given up."""
        offset = job.source.offset_of(job.written_count)
        safe, kept = dict(self.acknowledged), dict(self.kept)
        if self.rng.random() < 0.4:
            self.repeat_while_full(lambda: job.sync(offset))
        else:
            point = job.begin_point(offset)
            self.files.beside = lambda: self.commit_beside(job, missing, settled)
            self.repeat_while_full(lambda: job.make_point(point))
            self.files.beside = None
            if self.rng.random() < 0.1:
                return
            self.repeat_while_full(lambda: job.end_point(point))
        self.safe |= safe
        for line, number in kept.items():
            self.safe_kept[line] = max(number, self.safe_kept.get(line, 0))
        self.check_files(job)

    def commit_beside(self, job: Job, missing: list[int], settled: set[int]) -> None:
        if missing and self.rng.random() < 0.3:
            self.commit_some(job, missing, settled)

    def repeat_while_full(self, call: Callable[[], None]) -> None:
        while True:
            try:
                return call()
            except DiskFull:
                continue

    def full_at_times(self, call: str, _path: Path, _count: int) -> int | None:
        takes_room = call in ("pwrite", "create")
        return errno.ENOSPC if takes_room and self.rng.random() < 0.1 else None

    def answer(self, line: int) -> bytes:
        """Another one in each life, so that a line computed again is noticed."""
        if self.rng.random() < 0.15:
            return PLACEHOLDER
        padding = b"." * self.rng.choice((0, 0, 9, 700))
        return b'"%d in %d%s"\n' % (line, self.crash_count, padding)

    def entry(self, line: int, answer: bytes) -> Entry:
        if answer == PLACEHOLDER:
            return Rejection(line, encode_record(line, b"x", attempts=1, losses=0, errors=["no"]))
        return Results(line, 1, answer)

    # --- checks -----------------------------------------------------------------------------

    def check_restart(self, job: Job, settled: set[int]) -> None:
        assert settled.issuperset(self.acknowledged), "an acknowledged line is lost"
        assert len(settled) == job.written_count + job.ahead_count
        # What is there without having been acknowledged is as good as acknowledged now.
        for line, answer in enumerate(self.check_files(job)):
            self.acknowledged[line] = answer
        # Recovery synced it all.
        self.safe |= self.acknowledged
        self.check_tried(job, settled)

    def check_tried(self, job: Job, settled: set[int]) -> None:
        """The last history of each line that is not settled, and of no other line."""
        there = {line: history for lines, history in job.tried() for line in lines}
        assert settled.isdisjoint(there), "a settled line is to be tried again"
        assert settled.union(there).issuperset(self.kept), "what was tried with a line is lost"
        for line, histories in enumerate(self.histories):
            if line in there:
                assert there[line] in histories, "another line's history"
                number = histories.index(there[line])
                assert number >= self.kept.get(line, 0), "an old history came back"
                # What came after it was never acknowledged, and was cut off.
                del histories[number + 1 :]
                self.kept[line] = number
            elif line not in settled:
                histories.clear()
        self.safe_kept = dict(self.kept)

    def check_files(self, job: Job) -> list[bytes]:
        """Whole lines in order, each once and the acknowledged one; the rejected ones likewise."""
        content = self.files.get(self.settings.output)
        lines = content.splitlines(keepends=True)
        assert len(lines) == job.written_count, "the output has not as many lines as it should"
        assert content.endswith(b"\n") or not content, "the output ends within a line"
        for line, answer in enumerate(lines):
            assert answer in self.offered[line], "a line is not in its place"
            assert self.acknowledged.get(line, answer) == answer, "a line was done again"
        records = self.files.get(self.settings.rejected).splitlines()
        rejected = [line for line, answer in enumerate(lines) if answer == PLACEHOLDER]
        assert [msgspec.json.decode(record)["id"] for record in records] == rejected
        assert job.rejected_count == len(rejected)
        return lines

    def check_end(self) -> None:
        job = Job.open(self.settings, self.files)
        assert job.is_finished
        assert job.is_resumed
        assert len(self.check_files(job)) == self.line_count
        assert job.journal_bytes == 0
        job.close()
        assert self.files.open_count == 0


def without_locks(call: str, _path: Path, _count: int) -> int | None:
    """A file system that has none."""
    return errno.ENOLCK if call == "lock" else None


def run_trial(seed: int) -> None:
    """Run one; a failure says how to see it again."""
    try:
        Trial(seed).run()
    except Exception as error:
        error.add_note(f"Seed {seed}. Again: pytest tests/crash --crash-seed {seed}")
        raise


def find_failing_seed(seeds: range) -> int | None:
    """The first seed whose trial does not end well; for showing that a trial can fail."""
    for seed in seeds:
        try:
            Trial(seed).run()
        except Exception:  # noqa: BLE001 - whatever a broken promise leads to
            return seed
    return None
