#!/bin/sh
# Sets itself up in .venv and runs a whole job on real data: the sentiment of the titles of 17,000
# films (OMDb's table, inside the package bokeh_sampledata), by vaderSentiment, with four workers.
# The job is killed once on its way, as machines do, and goes on.
set -eu
cd "$(dirname "$0")/../.."
echo "== setting up .venv"
[ -x .venv/bin/python ] || ${PYTHON:-python3} -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check '.[demo]'
.venv/bin/pip install --quiet --disable-pip-version-check --no-deps bokeh_sampledata
PATH="$PWD/.venv/bin:$PATH"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp tests/demo/films.py tests/demo/sentiment.py "$work"
cd "$work"
python films.py > films.jsonl
echo "== $(wc -l < films.jsonl) films; the first:"
head -n 1 films.jsonl

echo "== trioline run films.jsonl answers.jsonl sentiment:score -j 4      (and kill -9 on its way)"
trioline run films.jsonl answers.jsonl sentiment:score -j 4 > log 2>&1 &
server=$!
while [ "$(cat answers.jsonl 2>/dev/null | wc -l)" -lt 1000 ] && kill -0 $server 2>/dev/null; do
    sleep 0.05
done
kill -9 $server 2>/dev/null || true
wait $server 2>/dev/null || true
echo "killed with $(wc -l < answers.jsonl) answers in the file"

echo "== the same command again"
trioline run films.jsonl answers.jsonl sentiment:score -j 4
echo "== $(wc -l < answers.jsonl) answers; the nth answers the nth film:"
paste films.jsonl answers.jsonl | sed -n '1p;2000p;9000p;17000p'
python films.py check answers.jsonl
