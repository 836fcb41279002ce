"""The TensorBoard server beside a run: there while the run is, gone however it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commands import FAULTY, SMALL, alive, children_of, files_below, hmasd, start, wait_until

from hmasd_sb3.running import tensorboard_server
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.tensorboard_server import TensorBoardServer

LONG = "100_000_000"
WITH_SERVER = [*(argument for argument in SMALL if argument != "--no-tensorboard"), "--tensorboard", "--eval-freq", "0"]
ADDRESS = re.compile(r"TensorBoard is at (http://localhost:\d+/) until the run ends\.")
STAND_IN = tensorboard_server._PROGRAM.partition("from tensorboard")[0] + (
    "import http.server, sys\n"
    "port = next((int(text.split('=')[1]) for text in sys.argv if text.startswith('--port=')), 0)\n"
    "server = http.server.HTTPServer(('localhost', port), http.server.SimpleHTTPRequestHandler)\n"
    "print(f'TensorBoard 0 at http://localhost:{server.server_port}/ (Press CTRL+C to quit)', file=sys.stderr, flush=True)\n"
    "server.serve_forever()\n"
)
"""A server that starts in no time, ended in the same way."""


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard_server, "_PROGRAM", STAND_IN)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False


def taken_port() -> tuple[socket.socket, int]:
    holder = socket.socket()
    holder.bind(("localhost", 0))
    holder.listen()
    return holder, holder.getsockname()[1]


def address_of(process: subprocess.Popen[str]) -> str:
    """What a run says about its server, among the first things it says."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := ADDRESS.fullmatch(line.strip()):
            return found[1]
    raise AssertionError(f"no address: {process.communicate()}")


class TestServer:
    def test_answers_until_it_is_stopped(self, in_tmp: Path, stand_in: None) -> None:
        with TensorBoardServer(in_tmp) as server:
            assert answers(server.address)
            assert server._process is not None
            pid, before = server._process.pid, time.monotonic()
        assert time.monotonic() - before < tensorboard_server.STOP_SECONDS  # by itself: it was not killed
        assert not answers(server.address)
        assert not alive(pid)
        server.stop()

    def test_stopped_by_an_error_too(self, in_tmp: Path, stand_in: None) -> None:
        with pytest.raises(KeyboardInterrupt), TensorBoardServer(in_tmp) as server:
            raise KeyboardInterrupt
        assert not answers(server.address)

    def test_several_that_begin_at_once_get_a_port_each(self, in_tmp: Path) -> None:
        """The real ones."""
        servers = [TensorBoardServer(in_tmp / str(number)) for number in range(2)]
        with ExitStack() as stack, ThreadPoolExecutor() as threads:
            for one in threads.map(TensorBoardServer.__enter__, servers):
                stack.callback(one.stop)
            assert servers[0].port != servers[1].port
            assert all(one._process is not None and one._process.poll() is None for one in servers)
            assert all(answers(one.address) for one in servers)

    def test_a_port_that_is_taken_is_refused(self, in_tmp: Path, stand_in: None) -> None:
        holder, port = taken_port()
        with holder, pytest.raises(InputError, match=f"--tensorboard-port {port}: is in use"):
            TensorBoardServer(in_tmp, port)
        with TensorBoardServer(in_tmp, port) as server:
            assert server.address == f"http://localhost:{port}/"

    def test_one_that_does_not_start_says_why(self, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorboard_server, "_PROGRAM", "raise SystemExit('not today')")
        with pytest.raises(InputError, match="ended with exit code 1: not today"), TensorBoardServer(in_tmp):
            pass

    def test_one_that_never_answers_is_ended(self, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            tensorboard_server, "_PROGRAM", "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
        )
        monkeypatch.setattr(tensorboard_server, "START_SECONDS", 0.5)
        monkeypatch.setattr(tensorboard_server, "STOP_SECONDS", 0.1)
        with pytest.raises(InputError, match=r"did not answer within 0\.5 s"), TensorBoardServer(in_tmp):
            pass
        assert not alive(int(Path("pid").read_text()))

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
    def test_the_real_one_ends_with_a_killed_parent(self, in_tmp: Path) -> None:
        program = (
            "from pathlib import Path\n"
            "from hmasd_sb3.running.tensorboard_server import TensorBoardServer\n"
            "with TensorBoardServer(Path('logs')) as server:\n"
            "    print(server.address, server._process.pid, flush=True)\n"
            "    input()\n"
        )
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        parent = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert parent.stdout is not None
        address, pid = parent.stdout.readline().split()
        assert answers(address)
        assert children_of(int(pid)) == []  # one process does everything
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        wait_until(lambda: not alive(int(pid)), seconds=10)
        assert not answers(address)


class TestTrain:
    def test_beside_a_run(self, in_tmp: Path, stand_in: None, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("train", *WITH_SERVER, "--total-timesteps", "48", "--run-dir", "r") == 0
        found = ADDRESS.search(capsys.readouterr().out)
        assert found is not None
        assert not answers(found[1])
        assert list((in_tmp / "r/tensorboard").glob("events.out.tfevents.*"))

    def test_refused_before_anything_is_written(
        self, in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        holder, port = taken_port()
        with holder:
            assert hmasd("train", *WITH_SERVER, "--tensorboard-port", str(port)) == 2
        assert f"Error: --tensorboard-port {port}: is in use" in capsys.readouterr().err
        monkeypatch.setattr(tensorboard_server, "_PROGRAM", "raise SystemExit('not today')")
        for restarts in ("0", "2"):
            assert hmasd("train", *WITH_SERVER, "--max-restarts", restarts, "--run-dir", "r") == 2
            assert "Error: --tensorboard: the server ended with exit code 1: not today" in capsys.readouterr().err
        assert hmasd("train", *SMALL, "--tensorboard-port", "6006") == 2
        assert "--tensorboard-port is for --tensorboard" in capsys.readouterr().err
        assert files_below(in_tmp) == []

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)]
    )
    def test_the_real_one_ends_with_the_run(self, in_tmp: Path, number: signal.Signals, code: int) -> None:
        process = start(in_tmp, *WITH_SERVER, "--total-timesteps", LONG, "--run-dir", "r")
        address = address_of(process)
        assert answers(address)
        servers = children_of(process.pid)
        assert len(servers) == 1
        wait_until(lambda: (in_tmp / "r/metrics.jsonl").exists() and (in_tmp / "r/metrics.jsonl").stat().st_size, process)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == code
        assert ("--tensorboard" in out) == (number == signal.SIGINT)  # the command that goes on
        wait_until(lambda: not any(alive(pid) for pid in servers), seconds=10)
        assert not answers(address)

    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
    def test_one_server_for_all_attempts(self, in_tmp: Path) -> None:
        once = in_tmp / "once"
        arguments = [argument for argument in FAULTY if argument != "--no-tensorboard"]
        arguments += ["--tensorboard", "--max-restarts", "1", "--total-timesteps", LONG, "--run-dir", "r"]
        process = start(in_tmp, *arguments, "--set", f"env_kwargs={{fault: kill, at: 30, once: {once}}}")
        assert process.stdout is not None
        address = address_of(process)
        servers = set(children_of(process.pid))
        line: Any = ""
        while "Going on from" not in line:
            line = process.stdout.readline()
            assert "TensorBoard is at" not in line
        assert once.exists()
        assert answers(address)
        (server,) = servers & set(children_of(process.pid))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 143
        wait_until(lambda: not alive(server), seconds=10)
