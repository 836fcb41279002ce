"""What a crash, a full disk or a bad disk leaves of model files and checkpoints: good ones stay, bad ones are named."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_disks import FullFor, full
from resumable import make_env, make_run
from teams import make_model, parameters_of, same

from hmasd_sb3 import HMASD
from hmasd_sb3.monitoring import CheckpointFolder, TrainingCheckpoint
from hmasd_sb3.saving import CorruptFileError, ForeignFileError, ModelFileError, verify_model_file
from hmasd_sb3.saving import archive as archive_module

ROLLOUT = 48


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.zip"
    make_model().save(path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------ reading


def test_truncated_anywhere(tmp_path: Path, good: Path) -> None:
    data, path = good.read_bytes(), tmp_path / "cut.zip"
    lengths = [*range(0, 64, 7), *np.linspace(64, len(data) - 1, 60, dtype=int).tolist(), *range(len(data) - 30, len(data))]
    for length in lengths:
        path.write_bytes(data[:length])
        message = "is truncated or damaged" if length >= 43 else "is truncated or damaged|is not a model file"
        with pytest.raises(ModelFileError, match=f"cut.zip ({message})"):
            HMASD.load(path)


def test_one_byte_changed_anywhere(tmp_path: Path, good: Path) -> None:
    data, path, rng = good.read_bytes(), tmp_path / "flipped.zip", np.random.default_rng(0)
    with zipfile.ZipFile(good) as archive:
        entries = archive.infolist()
        directory = archive.start_dir
    places = [*range(directory, len(data), 3)]
    for entry in entries:
        start = entry.header_offset + 30 + len(entry.filename)
        places += rng.integers(start, start + entry.file_size, 12).tolist()
        places += range(entry.header_offset, start)
    harmless = 0
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        try:
            verify_model_file(path)
        except ModelFileError:
            pass
        else:
            harmless += 1  # times, systems and permissions in zip headers say nothing about the content
            with zipfile.ZipFile(path) as archive, zipfile.ZipFile(good) as original:
                assert {n: archive.read(n) for n in archive.namelist()} == {n: original.read(n) for n in original.namelist()}
    assert harmless < 0.5 * len(places)


def test_each_part_has_its_checksum(tmp_path: Path, good: Path) -> None:
    with zipfile.ZipFile(good) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for name in parts:
        if name == "manifest.json":
            continue
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:  # whose own checksums are right
            for other, content in parts.items():
                archive.writestr(other, content[:-1] + bytes([content[-1] ^ 1]) if other == name else content)
        with pytest.raises(CorruptFileError, match=f"{name} does not fit its checksum. Load an earlier checkpoint"):
            HMASD.load(tmp_path / "bad.zip")
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
            for other, content in parts.items():
                if other != name:
                    archive.writestr(other, content)
        with pytest.raises(CorruptFileError, match=f"{name} does not fit its checksum"):
            HMASD.load(tmp_path / "bad.zip")


def test_no_file_at_all(tmp_path: Path, good: Path) -> None:
    (tmp_path / "empty.zip").touch()
    with pytest.raises(ForeignFileError, match=r"empty.zip is not a model file"):
        HMASD.load(tmp_path / "empty.zip")
    with pytest.raises(CorruptFileError, match="truncated"):
        HMASD.load(io.BytesIO(b""))
    (tmp_path / "model").mkdir()
    with pytest.raises(IsADirectoryError, match="model is a folder, not a model file"):
        HMASD.load(tmp_path / "model")
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        HMASD.load(tmp_path / "folder")
    (tmp_path / "model.zip").write_bytes(good.read_bytes())  # save("model") writes it beside a folder of that name
    HMASD.load(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="no model file"):
        HMASD.load(tmp_path / "nothing")


def test_a_file_that_may_not_be_read(tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    for steps in (48, 96):
        folder.path_for(steps).write_bytes(good.read_bytes())
    read = Path.read_bytes

    def forbidden(path: Path) -> bytes:  # whoever runs the tests may be allowed everything
        if path == folder.path_for(96):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(PermissionError, match="checkpoint_000000000096"):
        HMASD.load(folder.path_for(96))
    assert folder.newest() == folder.path_for(48)


# ------------------------------------------------------------------ folders


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, good: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = CheckpointFolder(tmp_path / "run")
    assert folder.newest() is None
    assert folder.all() == []
    folder.path.mkdir()
    for steps in (48, 96, 1000, 999):
        folder.path_for(steps).write_bytes(good.read_bytes())
    (folder.path / "best.zip").write_bytes(good.read_bytes())
    (folder.path / "checkpoint_x.zip").write_bytes(b"")
    assert folder.newest() == folder.path_for(1000)
    assert not caplog.records
    damaged(folder.path_for(1000))
    folder.path_for(999).unlink()
    folder.path_for(999).mkdir()
    assert folder.newest() == folder.path_for(96)
    messages = [record.message for record in caplog.records if "new episodes" not in record.message]
    assert len(messages) == 2
    assert "checkpoint_000000001000.zip cannot be used, so the one before it is" in messages[0]
    assert "truncated or damaged" in messages[0]
    assert "checkpoint_000000000999.zip" in messages[1]
    for steps in (48, 96):
        damaged(folder.path_for(steps))
    assert folder.newest() is None


def test_a_run_goes_on_from_the_last_good_checkpoint(tmp_path: Path) -> None:
    model = make_run("discrete", make_env("discrete"))
    model.learn(4 * ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT))
    folder = CheckpointFolder(tmp_path)
    assert [path.name[-7:-4] for path in folder.all()] == ["096", "144", "192"]
    damaged(folder.path_for(192))
    (tmp_path / ".checkpoint_000000000240.zip.123.partial").write_bytes(b"half")
    resumed = HMASD.load(folder.newest(), env=make_env("discrete", seed=9))
    assert resumed.num_timesteps == 144
    resumed.learn(ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT), reset_num_timesteps=False)
    assert same(parameters_of(resumed), parameters_of(model))
    (aside,) = tmp_path.glob("set_aside_*")
    assert [path.name for path in aside.iterdir()] == ["checkpoint_000000000192.zip"]
    assert sorted(path.name for path in tmp_path.iterdir() if path != aside) == [
        f"checkpoint_000000000{steps}.zip" for steps in ("096", 144, 192)
    ]


def test_a_writer_that_was_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from teams import make_model\n"
        "import hmasd_sb3.saving.archive as archive\n"
        "from hmasd_sb3.monitoring import CheckpointFolder\n"
        "model, folder = make_model(), CheckpointFolder(sys.argv[1])\n"
        "model.save(folder.path_for(48))\n"
        "archive.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "model.save(folder.path_for(48))\n"
    )
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(tests), str(tests.parent)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    folder = CheckpointFolder(tmp_path)
    assert len(list(tmp_path.glob(".*.partial"))) == 1
    assert folder.all() == [folder.path_for(48)]
    assert folder.newest() == folder.path_for(48)
    folder.remove_unfinished()
    assert list(tmp_path.iterdir()) == [folder.path_for(48)]


def test_old_checkpoints_are_removed_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "best.zip").write_text("mine")
    model = make_model()
    model.learn(5 * ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT, keep_last=2))
    kept = [f"checkpoint_000000000{steps}.zip" for steps in (192, 240)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.zip", *kept, "notes.txt"]
    CheckpointFolder(tmp_path).path_for(100).mkdir()  # which cannot be unlinked
    model.learn(ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT, keep_last=1), reset_num_timesteps=False)
    assert any("checkpoint_000000000100.zip could not be removed" in record.message for record in caplog.records)
    assert CheckpointFolder(tmp_path).newest() == CheckpointFolder(tmp_path).path_for(288)


# ------------------------------------------------------------------ writing


class FullStream(io.FileIO):
    """A file on a disk without room for more than some bytes."""

    room = 10_000

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            full()
        return super().write(data)


@pytest.mark.parametrize("how", ["fsync", "replace", "write"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    model, path = make_model(), tmp_path / "model.zip"
    model.save(path)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        if how == "write":
            patch.setattr(archive_module, "open", lambda name, mode: FullStream(name, "w"), raising=False)
        else:
            patch.setattr(archive_module.os, how, full)
        model.learn(ROLLOUT)
        with pytest.raises(
            OSError, match=r"model.zip could not be written: No space left.*before is kept. Make room"
        ) as caught:
            model.save(path)
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match=r"new.zip could not be written: No space left on device. Make room"):
            model.save(tmp_path / "new")
    assert files(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    model.save(path)
    assert same(parameters_of(HMASD.load(path)), parameters_of(model))


def test_a_limit_of_the_system(tmp_path: Path) -> None:
    """A real one, by the kernel: files of this process may not grow beyond a size."""
    model, path = make_model(), tmp_path / "model.zip"
    model.save(path)
    before = files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model.zip could not be written: File too large.*before is kept"):
            model.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(tmp_path) == before


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    model = make_model()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.zip").mkdir()
    for path in (tmp_path / "file" / "model.zip", tmp_path / "folder.zip", tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match="could not be written"):
            model.save(path)
    assert files(tmp_path) == {"file": b"mine"}


def test_a_folder_that_cannot_be_synchronised_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.fsync

    def fsync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(code, os.strerror(code))
        original(handle)

    monkeypatch.setattr(archive_module.os, "fsync", fsync)
    code = errno.EINVAL
    make_model().save(tmp_path / "model")
    verify_model_file(tmp_path / "model.zip")
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        make_model().save(tmp_path / "model")
    verify_model_file(tmp_path / "model.zip")


# ------------------------------------------------------------------ training on a full disk


def test_training_goes_on_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, checkpoint = make_model(), TrainingCheckpoint(tmp_path, ROLLOUT, keep_last=9)
    with monkeypatch.context() as patch:
        model.learn(6 * ROLLOUT, callback=[checkpoint, FullFor(patch, range(3, 5))])
    assert [path.name[-7:-4] for path in CheckpointFolder(tmp_path).all()] == ["000", "048", "096", "240", "288"]
    messages = [record.message for record in caplog.records if "new episodes" not in record.message]
    assert len(messages) == 2
    assert "checkpoint_000000000144.zip could not be written: No space left on device" in messages[0]
    assert "Training goes on and tries again" in messages[0]
    assert messages[1] == "Checkpoints can be written again."
    assert model.num_timesteps == 6 * ROLLOUT


def test_a_disk_that_is_full_at_the_end_or_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"checkpoint_000000000096.zip could not be written"):
        model.learn(2 * ROLLOUT, callback=[TrainingCheckpoint(tmp_path, ROLLOUT), FullFor(patch, range(2, 9))])
    assert model.num_timesteps == 2 * ROLLOUT
    assert CheckpointFolder(tmp_path).newest() == CheckpointFolder(tmp_path).path_for(48)
    model.save(tmp_path / "by_hand")
    monkeypatch.setattr(archive_module.os, "replace", full)
    with pytest.raises(OSError, match=r"checkpoint_000000000000.zip could not be written"):
        make_model().learn(ROLLOUT, callback=TrainingCheckpoint(tmp_path / "other", ROLLOUT))
