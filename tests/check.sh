#!/bin/sh
# Sets itself up in .venv-test and passes the tests: format, lint, types, everything.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv-test/bin/python ] || ${PYTHON:-python3} -m venv .venv-test
.venv-test/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
PATH="$PWD/.venv-test/bin:$PATH"
ruff format --check .
ruff check .
flake8 trioline tests
mypy
python -m pytest "$@"
