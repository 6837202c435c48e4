"""``trioline doctor``: what a folder's file system can be trusted with, found by trying it."""
