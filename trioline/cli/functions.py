"""Finds the user's function from MODULE:FUNCTION."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from trioline.errors import UsageError


def load_function(name: str) -> Callable[..., Any]:
    """Import a function; the current folder counts as a place for modules.

    Args:
        name: ``package.module:function``; the function may be an attribute of an object.

    Raises:
        UsageError: There is no such module or function, or the module fails to import.
    """
    module_name, colon, path = name.partition(":")
    parts = module_name.split(".")
    if not (colon and path and all(part.isidentifier() for part in parts)):
        raise UsageError(f"{name!r} is no function: write MODULE:FUNCTION, as in mymodel:answer.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Cannot import {module_name}: {error}. Modules are looked for in the current folder "
            "and among the installed packages."
        ) from error
    except (Exception, SystemExit) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())  # one line, whatever it says
        raise UsageError(f"Importing {module_name} failed: {text}.") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"The module {module_name} has no {path}.")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{name} is no function but a {type(found).__name__}.")
    function: Callable[..., Any] = found
    return function
