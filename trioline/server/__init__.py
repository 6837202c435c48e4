"""The Trio server: the task tree, its connections, and the one writer.

``app`` starts and stops it; ``connection`` reads one peer's requests; ``dispatch`` carries them
out on the ledger; ``writer`` commits results and sets the waiting replies free; ``sweeper`` does
what falls due.
"""
