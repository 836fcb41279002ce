"""Deferred imports of packages that only some users need."""

import importlib
from typing import Any


def import_optional(module: str, *, purpose: str, extra: str) -> Any:
    """
    Import ``module``, or say which extra of this package brings it.

    :param module: dotted name, e.g. ``"matplotlib.figure"``
    :param purpose: what the caller wants it for; starts the error message
    :param extra: name of the extra that installs it
    :return: the module
    :raises ImportError: if the package is absent. An import error *inside* an installed package is passed on
        unchanged, because installing the extra would not cure it.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(
            f'{purpose} needs the package "{package}", which is not installed: pip install "hmasd-sb3[{extra}]"'
        ) from error
