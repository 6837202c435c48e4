"""The same job through RQ or Dask: ``python_queues.py rq PORT|dask INPUT OUTPUT LINES_A_JOB``.

Run by whatever interpreter has them. It says ``ready`` when its two workers are there.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

WORKERS = 2
LOOK_SECONDS = 0.005
WORK = "from rq import SimpleWorker; from redis import Redis; \
SimpleWorker(['lines'], connection=Redis(port={port})).work(logging_level='ERROR')"


def echo(lines: list[str]) -> list[str]:
    """Do nothing."""
    return lines


def jobs(source: str, lines_a_job: int) -> list[list[str]]:
    """Cut the input into jobs."""
    with Path(source).open(encoding="utf-8") as stream:
        return list(iter(lambda: list(islice(stream, lines_a_job)), []))


def with_rq(port: int, source: str, output: str, lines_a_job: int) -> None:
    """Enqueue, wait for each job in order, write."""
    rq, redis = importlib.import_module("rq"), importlib.import_module("redis")
    connection = redis.Redis(port=port)
    queue = rq.Queue("lines", connection=connection)
    work = [sys.executable, "-c", WORK.format(port=port)]
    workers = [subprocess.Popen(work) for _ in range(WORKERS)]
    try:
        while len(rq.Worker.all(connection)) < WORKERS:
            time.sleep(LOOK_SECONDS)
        begin_at = wait_for_word()
        prepared = [
            rq.Queue.prepare_data("python_queues.echo", args=(lines,), result_ttl=600)
            for lines in jobs(source, lines_a_job)
        ]
        results = [_result(job) for job in queue.enqueue_many(prepared)]
        report(output, results, begin_at)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _result(job: Any) -> list[str]:  # noqa: ANN401 - a class of a library that may be missing
    while (lines := job.return_value(refresh=True)) is None:
        time.sleep(LOOK_SECONDS)
    result: list[str] = lines
    return result


def with_dask(source: str, output: str, lines_a_job: int) -> None:
    """Map, gather, write."""
    distributed = importlib.import_module("distributed")
    options = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        begin_at = wait_for_word()
        results = client.gather(client.map(echo, jobs(source, lines_a_job), pure=False))
        report(output, results, begin_at)


def wait_for_word() -> float:
    """Say that all is there; gives the instant of the begin."""
    print("ready", flush=True)
    sys.stdin.readline()
    return time.monotonic()


def report(output: str, results: list[list[str]], begin_at: float) -> None:
    """Write the output and say how it went."""
    with Path(output).open("w", encoding="utf-8") as stream:
        for lines in results:
            stream.writelines(lines)
    print(sum(map(len, results)), begin_at, time.monotonic(), flush=True)


def main(kind: str, port: str, source: str, output: str, lines_a_job: str) -> None:
    """Do what the command line says."""
    if kind == "rq":
        with_rq(int(port), source, output, int(lines_a_job))
    else:
        with_dask(source, output, int(lines_a_job))


if __name__ == "__main__":
    main(*sys.argv[1:])
