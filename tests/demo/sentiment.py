"""The work: how a film's title feels, by a lexicon that runs on any CPU."""

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

analyzer = SentimentIntensityAnalyzer()


def score(item):
    """One film in, one answer out."""
    title = item.data["title"]
    compound = analyzer.polarity_scores(title)["compound"]
    mood = "cheerful" if compound > 0.05 else "gloomy" if compound < -0.05 else "neutral"
    return {"title": title, "mood": mood, "score": compound}
