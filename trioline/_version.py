"""The version, in one place: the wheel, ``--version`` and the ``hello`` reply read it here."""

__version__ = "0.1.0"
