"""``trioline retry``: a job over the rejected lines of another one, and the swap at its end."""
