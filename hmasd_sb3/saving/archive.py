"""The model file: a zip archive of plain parts, a manifest with their checksums, written whole or not at all.

========================  =======================================================================
``manifest.json``         format and its version, the class that saved it, versions, SHA-256 of every other part
``hyperparameters.json``  constructor arguments and spaces, see ``plain.py``
``policy.pth``            weights, for ``torch.load(weights_only=True)``
``optimizers.pth``        optimizer states, likewise
``training.pth``          everything else that a run goes on from, likewise; see ``run_state.py``
``left_out.pkl``          values that are no plain data, pickled; opened only for a file that the caller trusts
========================  =======================================================================
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pathlib
import platform
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import stable_baselines3
import torch as th

FORMAT = "hmasd-sb3"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_SB3_DATA = "data"
_SB3_MARKER = "skill_interval"
"""An attribute that every HMASD file in SB3's format holds and no other algorithm's."""
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
_MANIFEST_TYPES = {"format_version": int, "kind": str, "class": str, "versions": dict, "sha256": dict}

PathOrFile = str | pathlib.Path | io.BufferedIOBase


class ModelFileError(ValueError):
    """A file cannot be used as a model file."""


class CorruptFileError(ModelFileError):
    """A model file is truncated or damaged."""


class ForeignFileError(ModelFileError):
    """A file is something else than a model file of this package."""


class UntrustedFileError(ModelFileError):
    """A file could run code while it is loaded, and the caller has not said that they trust it."""


class Archive(NamedTuple):
    """A model file whose checksums have been compared."""

    manifest: dict[str, Any]
    parts: dict[str, bytes]


# ------------------------------------------------------------------ writing


def write_archive(path: PathOrFile, kind: str, class_name: str, parts: dict[str, bytes], run: str | None = None) -> None:
    """Write a model file; an existing one is replaced only once the new one is safely on the disk.

    :param path: ".zip" is added to a path without suffix
    :param kind: what is in it, "model" or "policy"
    :param class_name: "module:Class" that saved it
    :param parts: content by name
    :param run: tells the run from others whose files may lie beside it
    :raises OSError: if it cannot be written, for instance because the disk is full; an existing file is kept
    :raises TypeError: if ``path`` is neither a path nor a binary stream
    """
    import hmasd_sb3

    _check_path_or_stream(path, "write")

    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "class": class_name,
        "run": run,
        "versions": {
            "hmasd-sb3": hmasd_sb3.__version__,
            "python": platform.python_version(),
            "torch": th.__version__,
            "numpy": np.__version__,
            "stable-baselines3": stable_baselines3.__version__,
        },
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()},
    }
    contents = {MANIFEST: json.dumps(manifest, indent=2).encode(), **parts}

    def write(stream: Any) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in contents.items():
                # The moment of writing is left out, so that equal models are equal files.
                archive.writestr(zipfile.ZipInfo(name, _FIXED_TIME), content)

    if isinstance(path, str | pathlib.Path):
        write_atomically(with_suffix(path), write)
    else:
        write(path)


def with_suffix(path: str | pathlib.Path) -> pathlib.Path:
    """The path with ``.zip`` added if it has no suffix, as Stable-Baselines3 does."""
    path = pathlib.Path(path)
    if not path.name:
        raise ValueError(f"A model file needs a name, and {str(path)!r} has none. Give one, such as 'model'.")
    return path if path.suffix else path.with_suffix(".zip")


def write_atomically(path: pathlib.Path, write: Callable[[Any], None]) -> None:
    """Call ``write`` with a temporary neighbour of ``path``, make sure it is on the disk, and rename it into place.

    :raises OSError: naming the file, if anything on the way fails; nothing is left behind and an existing file is kept
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        kept = " The file that was there before is kept." if os.path.exists(path) else ""
        raise OSError(
            error.errno, f"{path} could not be written: {error.strerror or error}.{kept} Make room, or save to another place"
        ) from error
    _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    """Make the renaming itself survive a power cut, where the system can.

    :raises OSError: if the disk fails; the new file is in its place all the same
    """
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # Some file systems cannot do this with folders, and one may write where one may not look.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM):
            raise


# ------------------------------------------------------------------ reading


def read_archive(path: PathOrFile, kind: str) -> Archive:
    """Read a model file and compare its checksums. Nothing in it is interpreted beyond the manifest.

    :param path: ".zip" is added to a path without suffix that is not there
    :param kind: what it should hold, "model" or "policy"
    :raises FileNotFoundError: if there is no such file
    :raises TypeError: if ``path`` is neither a path nor a binary stream
    :raises UntrustedFileError: if it was saved in Stable-Baselines3's pickled format by an earlier release
    :raises ForeignFileError: if it is another algorithm's, or no model file, or from a newer release
    :raises CorruptFileError: if it is truncated or damaged
    """
    source = find_file(path)
    data = source.read_bytes() if isinstance(source, pathlib.Path) else _read_all(source)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if MANIFEST not in names and data[30 : 30 + len(MANIFEST)] == MANIFEST.encode():
                raise zipfile.BadZipFile("its beginning is a model file's, its end is not")  # but that of some part
            if MANIFEST not in names:
                raise _what_it_is(path, archive, kind)
            _check_entries(path, archive.infolist())
            contents = {name: archive.read(name) for name in names}
    except ModelFileError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, ValueError) as error:
        if isinstance(path, str | pathlib.Path) and not data.startswith(b"PK"):
            raise ForeignFileError(f"{path} is not a model file: it is no zip archive.") from error
        raise CorruptFileError(
            f"{path} is truncated or damaged ({error}). Load an earlier checkpoint; this file cannot be repaired."
        ) from error
    manifest = _checked_manifest(path, contents.pop(MANIFEST), kind)
    damaged = [
        name
        for name, digest in manifest["sha256"].items()
        if name not in contents or hashlib.sha256(contents[name]).hexdigest() != digest
    ]
    if damaged or set(contents) != set(manifest["sha256"]):
        raise CorruptFileError(
            f"{path} is damaged: {', '.join(damaged) or 'a part that does not belong there'} does not fit its checksum. "
            "Load an earlier checkpoint; this file cannot be repaired."
        )
    return Archive(manifest, contents)


def verify_model_file(path: PathOrFile) -> dict[str, Any]:
    """Compare a model file's checksums without loading it.

    :return: its manifest
    :raises ModelFileError: if it cannot be used, see :func:`read_archive`
    """
    return read_archive(path, "model").manifest


def find_file(path: PathOrFile) -> pathlib.Path | io.BufferedIOBase:
    """The file that a path given to ``load`` means.

    :raises FileNotFoundError: if there is none
    :raises IsADirectoryError: if it is a folder
    :raises TypeError: if it is neither a path nor a binary stream
    """
    if not isinstance(path, str | pathlib.Path):
        _check_path_or_stream(path, "read")
        return path
    source = pathlib.Path(path)
    if source.name and source.suffix == "" and not source.is_file():
        zipped = source.with_suffix(".zip")  # also where a folder has the name without it
        source = zipped if zipped.is_file() or not source.exists() else source
    if source.is_dir():
        raise IsADirectoryError(
            errno.EISDIR,
            f"{source} is a folder, not a model file. Pass a file in it, see CheckpointFolder.newest()",
        )
    if not source.is_file():
        raise FileNotFoundError(f"There is no model file {source}. Pass the path given to save(), with or without '.zip'.")
    return source


def _check_path_or_stream(path: Any, method: str) -> None:
    if not isinstance(path, str | pathlib.Path) and (isinstance(path, io.TextIOBase) or not hasattr(path, method)):
        hint = " (CheckpointFolder.newest() gives None where there is no checkpoint yet.)" if path is None else ""
        raise TypeError(f"A model file is given by its path, or as a binary stream to {method} it, not by {path!r}.{hint}")


def _read_all(stream: io.BufferedIOBase) -> bytes:
    start = stream.tell()
    data = stream.read()
    stream.seek(start)
    return data


def _check_entries(path: PathOrFile, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse what is never written here: a name twice, of which readers may take either, and packed parts without end."""
    names = [entry.filename for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CorruptFileError(f"{path} is damaged: it holds {', '.join(twice)} more than once. Load an earlier checkpoint.")
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CorruptFileError(
            f"{path} is damaged: {', '.join(packed)} is compressed, which model files never are. Load an earlier checkpoint."
        )


def _checked_manifest(path: PathOrFile, content: bytes, kind: str) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        known, version, found = manifest["format"] == FORMAT, manifest["format_version"], manifest["kind"]
        for name, kind_of_value in _MANIFEST_TYPES.items():
            if type(manifest[name]) is not kind_of_value:
                raise ValueError(f"{name} is {manifest[name]!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{path} has a damaged manifest ({error}). Load an earlier checkpoint.") from error
    if not known:
        raise ForeignFileError(f"{path} is not a model file of hmasd-sb3 but of {manifest['format']!r}.")
    if version > FORMAT_VERSION:
        raise ForeignFileError(
            f"{path} has format version {version}, this release reads versions up to {FORMAT_VERSION}. It was saved by "
            f"hmasd-sb3 {manifest['versions'].get('hmasd-sb3', '(unknown)')}: upgrade to that or a later one."
        )
    if found != kind:
        remedy = "HMASD.load()" if found == "model" else "the policy class's load()"
        raise ForeignFileError(f"{path} holds a {found}, not a {kind}. Load it with {remedy}.")
    return dict(manifest)


def _what_it_is(path: PathOrFile, archive: zipfile.ZipFile, kind: str) -> ModelFileError:
    """The error for a zip archive that is not ours; nothing in it is unpickled to find out."""
    names = archive.namelist()
    try:
        data = json.loads(archive.read(_SB3_DATA)) if _SB3_DATA in names else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        if kind == "policy" and any(name.endswith("data.pkl") for name in names):
            return UntrustedFileError(
                f"{path} is a pickled policy in Stable-Baselines3's format, which runs code from the file while it is "
                "loaded. If you trust where it comes from, pass trust=True."
            )
        return ForeignFileError(f"{path} is not a model file: it is some other zip archive.")
    if _SB3_MARKER not in data:
        saved_by = data.get("policy_class")
        described = saved_by.get("__module__") if isinstance(saved_by, dict) else "unknown"
        return ForeignFileError(
            f"{path} was not saved by HMASD (its policy comes from {described!r}). Load it with the class that saved it."
        )
    return UntrustedFileError(
        f"{path} is in Stable-Baselines3's own format, as hmasd-sb3 0.1 wrote it. Loading that format unpickles objects, "
        "which can run any code that the file contains. If you trust where it comes from, load it with "
        "HMASD.load(path, trust=True) and save it again."
    )
