"""Jobs that are killed and lose power at random system calls, also while they recover.

After each restart: nothing acknowledged is lost, the output is whole lines in order. At the end: it
is what was acknowledged, each line once. ``crash_trial`` has the trial.
"""

from __future__ import annotations

import pytest
from crash_trial import Trial, find_failing_seed, run_trial

from trioline.config import Fsync


def test_acknowledged_lines_outlive_crashes(crash_seeds: range) -> None:
    for seed in crash_seeds:
        run_trial(seed)


def test_a_failing_seed_is_named_and_fails_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "check_end", lambda _self: 1 / 0)
    assert find_failing_seed(range(3, 5)) == 3
    with pytest.raises(ZeroDivisionError) as caught:
        run_trial(3)
    assert caught.value.__notes__ == ["Seed 3. Again: pytest tests/crash --crash-seed 3"]


@pytest.mark.parametrize("fsync", Fsync)
def test_trials_see_crashes_in_every_state(fsync: Fsync) -> None:
    """The trials themselves: crashes while a job is made, recovers, commits, and is over."""
    seen: set[str] = set()

    class Watched(Trial):
        def crash(self) -> None:
            seen.add("before any result" if not any(self.offered) else "later")
            if self.crash_count == 2:
                seen.add("third")
            super().crash()

        def work(self) -> None:
            had = bool(self.acknowledged)
            try:
                super().work()
            except BaseException:
                if had and not self.files.open_count:
                    seen.add("recovering, before the first file")
                raise
            seen.add("ended")

        def full_at_times(self, *call: object) -> int | None:
            code = super().full_at_times(*call)  # type: ignore[arg-type]
            seen.update(["full"] if code else [])
            return code

    for seed in range(150):
        Watched(seed, fsync).run()
    assert seen >= {"before any result", "later", "third", "ended", "full"}
