#!/bin/sh
# Sets itself up in .venv-test and passes the tests: format, lint, types, everything.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv-test/bin/python ] || ${PYTHON:-python3} -m venv .venv-test
.venv-test/bin/pip install --quiet --disable-pip-version-check -e '.[test,lint]'
PATH="$PWD/.venv-test/bin:$PATH"
ruff format --check trioline tests
ruff check trioline tests
# What ruff does not see. It is slow: only files that have anything to see.
# 114: a list to be kept by hand; 124: fakes have async functions without await; 128: task_status is
# handed on to a function that calls started().
grep -rlwE --include='*.py' 'async|trio|anyio|asyncio|BaseException|Cancelled' trioline tests |
    xargs -n 25 -P 2 flake8-async --enable=ASYNC1,ASYNC2 --disable=ASYNC114,ASYNC124,ASYNC128
mypy
python -m pytest -n 3 --dist worksteal "$@"
