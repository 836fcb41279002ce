"""Numbers as people type them on a command line."""

from __future__ import annotations

from collections.abc import Callable

import typer

from hmasd_sb3.running.literals import read_integer


def whole_number(least: int) -> Callable[[str], int]:
    """A reader of whole numbers, also written ``1e6`` or ``1_000_000``.

    :param least: the smallest that is allowed
    """

    def read(text: str | int) -> int:
        number = read_integer(text)
        if not isinstance(number, int) or number < least:
            raise typer.BadParameter(
                f"must be a whole number of at least {least}, such as {max(least, 1) * 100_000} or 1e5; got {text!r}"
            )
        return number

    return read
