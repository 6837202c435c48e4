"""The film table inside bokeh_sampledata as JSON lines; and a check of the answers to it."""

from __future__ import annotations

import json
import sqlite3
import sys
from importlib.resources import files

DATABASE = files("bokeh_sampledata") / "_data" / "movies.db"


def films() -> list[dict[str, object]]:
    """Every film: id, title, year."""
    rows = sqlite3.connect(str(DATABASE)).execute("SELECT ID, Title, Year FROM omdb ORDER BY ID")
    return [{"id": number, "title": title, "year": year} for number, title, year in rows]


def check(answers: str) -> None:
    """See that the nth answer is about the nth film, and count the moods."""
    moods = {"cheerful": 0, "neutral": 0, "gloomy": 0}
    with open(answers, encoding="utf-8") as lines:
        for film, line in zip(films(), lines, strict=True):
            answer = json.loads(line)
            assert answer["title"] == film["title"], (film, answer)
            moods[answer["mood"]] += 1
    print(f"aligned: {sum(moods.values())} answers, {moods}")


if __name__ == "__main__":
    if sys.argv[1:]:
        check(sys.argv[2])
    else:
        for film in films():
            print(json.dumps(film, ensure_ascii=False))
