"""The line protocol without any I/O: what the messages are, their bytes, and bytes into lines.

Server and clients use the same code, so that what one writes the other reads. protocol.md is
the specification; tests compare it with ``messages`` and ``errors`` both ways.
"""
