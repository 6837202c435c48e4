#!/bin/sh
# Sets itself up in .venv-oldest with the oldest dependencies that pyproject.toml allows, and runs
# the tests that touch them most.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv-oldest/bin/python ] || ${PYTHON:-python3} -m venv .venv-oldest
sed -n '/^dependencies/,/^\]/s/^ *"\([a-z]*\)>=\([0-9.]*\)".*/\1==\2/p' pyproject.toml > .venv-oldest/oldest.txt
.venv-oldest/bin/pip install --quiet --disable-pip-version-check -e '.[test]' -c .venv-oldest/oldest.txt
cat .venv-oldest/oldest.txt
.venv-oldest/bin/python -m pytest -q -n 3 -p no:cacheprovider -m 'not slow' tests/unit tests/docs tests/net/test_client_with_server.py "$@"
