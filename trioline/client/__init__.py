"""Workers: everything that takes lines from a server and hands results in.

``session`` is one connection (anyio). ``worker`` keeps a function busy over it: its tasks are in
``crew``, the calls in ``functions``, and lines that go as blocks to a command in ``blocks`` and
``pool``. ``blocking`` is the same for plain threads. What they share does no I/O: ``item`` (a line
and its result), ``lease``, ``pipeline`` (replies to their requests), ``outbox`` (results on their
way), ``hand`` and ``pace`` (lines in hand, and how many to have).
"""
