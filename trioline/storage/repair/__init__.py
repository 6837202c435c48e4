"""``trioline repair``: the way out of damaged files, without losing what can still be trusted."""
