"""Processes that meet on one storage: real locks, real kills."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import postgres
import pytest
from optuna.trial import Trial
from tuning import spec, value_of

from hmasd_sb3.monitoring.stopping import StopRequest
from hmasd_sb3.running.errors import DONE
from hmasd_sb3.tuning.leases import FileLeases, Leases, PostgresLeases
from hmasd_sb3.tuning.report import state_of
from hmasd_sb3.tuning.storage import open_storage
from hmasd_sb3.tuning.study import RETRY_OF, load_study, open_study
from hmasd_sb3.tuning.workers import work


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def in_child(act: Callable[[], None]) -> int:
    """A process that acts, and then lives until it is killed; its id, once it has acted."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act()
            os.write(write, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def fork(act: Callable[[], object]) -> int:
    """A process that acts and ends, with 0 if all went well; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def ended_well(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


class TestTogether:
    """Processes that meet on one storage."""

    @pytest.fixture(params=["journal", "sqlite", "postgresql"])
    def storage(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
        if request.param == "postgresql":
            if reason := postgres.why_not():
                pytest.skip(reason)
            pytest.importorskip("psycopg")
            with postgres.server() as url:
                yield url
        else:
            yield str(tmp_path / "s.journal") if request.param == "journal" else f"sqlite:///{tmp_path}/s.db"

    @pytest.mark.parametrize("first_the_storage", [False, True])
    def test_several_make_a_fresh_study_at_once(self, storage: str, first_the_storage: bool) -> None:
        start = time.time() + 1.0

        def make() -> None:
            place = open_storage(storage) if first_the_storage else None
            time.sleep(max(0.0, start - time.time()))
            open_study(place or open_storage(storage), "s", spec(), {"defaults": {}})

        if first_the_storage:
            open_storage(storage).leases.close()
        children = [fork(make) for _ in range(5)]
        ends = [ended_well(child) for child in children]
        assert all(ends)
        shared, is_new = open_study(open_storage(storage), "s", spec(), {"defaults": {}})
        assert not is_new
        assert len(shared.trials()) == 1
        shared.place.leases.close()

    def test_the_number_of_trials_is_exact_though_one_worker_is_killed(self, storage: str) -> None:
        first = open_study(open_storage(storage), "s", spec(), {})[0]
        if not storage.startswith("postgresql"):
            first.place.leases.close()

        def objective(trial: Trial) -> float:
            value = value_of(trial)
            time.sleep(0.05 * value)
            trial.report(value, 1)
            if trial.number % 5 == 4:
                raise optuna.TrialPruned
            return value

        def worker() -> None:
            shared = load_study(open_storage(storage), "s", 0)
            assert work(shared, objective, 15, 3, StopRequest()) == DONE

        def first_worker() -> None:
            shared = load_study(open_storage(storage), "s", 0)
            work(shared, lambda trial: time.sleep(60 * (value_of(trial) + 1)) or 0.0, 15, 3, StopRequest())

        doomed = fork(first_worker)
        while not [trial for trial in first.trials() if trial.params]:
            time.sleep(0.01)
        others = [fork(worker) for _ in range(2)]
        while first.n_finished() < 3:
            time.sleep(0.01)
        kill(doomed)
        ends = [ended_well(child) for child in others]
        assert all(ends)
        states = [state_of(trial) for trial in first.trials()]
        assert states.count("complete") + states.count("pruned") == 15
        assert states.count("killed") == 1
        assert len(states) == 16
        (retry,) = [trial for trial in first.trials() if RETRY_OF in trial.user_attrs]
        assert retry.params == first.trials()[retry.user_attrs[RETRY_OF]].params
        first.place.leases.close()


class TestLeases:
    """Real locks and real kills."""

    @pytest.fixture(params=["files", "postgres"])
    def make(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Leases]]:
        if request.param == "files":
            yield lambda: FileLeases(tmp_path / "leases")
            return
        if reason := postgres.why_not():
            pytest.skip(reason)
        sqlalchemy = pytest.importorskip("sqlalchemy")
        pytest.importorskip("psycopg")
        with postgres.server() as url:
            yield lambda: PostgresLeases(sqlalchemy.create_engine(url.replace("postgresql", "postgresql+psycopg")))

    def test_a_lease_ends_with_its_process(self, make: Callable[[], Leases]) -> None:
        leases = make()
        other = make()
        child = in_child(lambda: other.hold("worker"))
        try:
            assert leases.is_held("worker")
            assert leases.is_held("worker")
            assert not leases.is_held("nobody")
        finally:
            kill(child)
        end = time.monotonic() + 10
        while leases.is_held("worker") and time.monotonic() < end:
            time.sleep(0.01)
        assert not leases.is_held("worker")
        assert not make().is_held("worker")  # nor does the one who asked hold it now
        leases.hold("me")
        assert leases.is_held("me")
        leases.close()
        assert not leases.is_held("me")
        leases.close()

    def test_only_one_is_in_the_exclusive_part(self, make: Callable[[], Leases], tmp_path: Path) -> None:
        path = tmp_path / "count"
        path.write_text("0")

        def count() -> None:
            leases = make()
            for _ in range(20):
                with leases.exclusive():
                    number = int(path.read_text())
                    time.sleep(0.002)
                    path.write_text(str(number + 1))

        other = fork(count)
        count()
        assert ended_well(other)
        assert path.read_text() == "40"
