"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file by another at once: a crash leaves the old one or the new one.

    :param write: writes the new one to the path it is given
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    replace_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def as_json(value: Any) -> Any:
    """Nested values as JSON has them: NumPy's as plain ones, paths as texts, numbers that are none by name (``"NaN"``)."""
    if isinstance(value, dict):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
