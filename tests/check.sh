#!/bin/sh
# Sets itself up in .venv-test and passes the tests: format, lint, types, everything.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv-test/bin/python ] || ${PYTHON:-python3} -m venv .venv-test
.venv-test/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
PATH="$PWD/.venv-test/bin:$PATH"
ruff format --check trioline tests
ruff check trioline tests
# What ruff does not see. 114: a list to be kept by hand; 124: fakes have async functions without
# await; 128: task_status is handed on to a function that calls started().
flake8 --select ASYNC1,ASYNC2 --extend-ignore ASYNC114,ASYNC124,ASYNC128 trioline tests
mypy
python -m pytest -n 3 --dist worksteal "$@"
