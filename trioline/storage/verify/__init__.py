"""``trioline verify``: prove that the nth output line answers the nth input line."""
