"""Worker processes as the parent sees them: starting, asking, waiting with a limit, ending, and what went wrong."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import connection as mp_connection
from multiprocessing import forkserver
from typing import Any

from hmasd_sb3.wrappers.shared_rows import NOBODY, SharedBlock
from hmasd_sb3.wrappers.worker_process import Failure, Making, Report, WorkerTask, one_thread_environment, run_worker

CLOSE_SECONDS = 5.0
"""How long workers may take to close their environments before they are terminated."""
TERMINATE_SECONDS = 1.0
"""How long a terminated worker may take to end before it is killed."""


class WorkerError(RuntimeError):
    """A game in a worker process raised, or the process died or fell silent.

    :param message: what happened, with the worker's own traceback if there is one
    :param env_index: the environment that was at work, or None if none was
    :param step: how many steps that environment had begun, the failing one included; 0 before the first
    :param worker_traceback: the text of the error raised in the worker; None if the process died or fell silent
    """

    def __init__(self, message: str, env_index: int | None = None, step: int = 0, worker_traceback: str | None = None) -> None:
        super().__init__(message)
        self.env_index = env_index
        self.step = step
        self.worker_traceback = worker_traceback


class LostError(Exception):
    """A worker can give no answer any more; the text says why."""


class WorkerHandle:
    """One worker process and the pipe to it.

    :param context: how to start processes
    :param index: of the worker
    :param rows: the environments it holds
    :param env_fns: functions that make them, by cloudpickle
    :param keep_going: whether its other environments go on after one has raised
    """

    def __init__(self, context: Any, index: int, rows: range, env_fns: bytes, keep_going: bool) -> None:
        self.context, self.index, self.rows = context, index, rows
        self.env_fns, self.keep_going = env_fns, keep_going
        self.process: Any = None
        self.pipe: Any = None
        self.exit_code: int | None = None
        self.fate: str | None = None  # why there can be no answers any more
        self.making: int | None = None  # while it makes its environments: which one
        self.has_begun = False  # whether anything was ever heard of its process
        self.due = False  # whether it owes an answer
        self.deadline = 0.0

    @property
    def alive(self) -> bool:
        """Whether requests can be sent, as far as is known."""
        return self.pipe is not None

    def start(self, again: bool) -> None:
        """Start the process, which answers as soon as its environments are made.

        :param again: whether its environments were made before
        """
        task = WorkerTask(self.index, self.rows.start, self.env_fns, again, self.keep_going)
        self.pipe, child_end = self.context.Pipe()
        # A forked process holds a copy of this end as well, and would never see the pipe close.
        inherited = self.pipe if self.context.get_start_method() == "fork" else None
        self.process = self.context.Process(
            target=run_worker, args=(child_end, inherited, task), name=f"hmasd-worker-{self.index}", daemon=True
        )
        try:
            with one_thread_environment():
                self.process.start()
        finally:
            child_end.close()
        self.exit_code, self.fate, self.making, self.due = None, None, None, True
        self.has_begun = False

    def send(self, message: bytes) -> None:
        """Send a request, which will be answered. If the worker has died, `collect` finds out."""
        self.due = True
        with suppress(OSError):  # reading tells more: there may be an answer left, and then comes the end of the pipe
            self.pipe.send_bytes(message)

    def send_block(self, block: SharedBlock) -> None:
        """Hand over the shared memory, which is not answered."""
        with suppress(OSError):  # as above: whoever asks next finds out
            block.send(self.pipe, self.process.pid)

    def receive(self) -> Any:
        """Read one message.

        :raises LostError: if the worker has died, or its message cannot be read
        """
        try:
            data = self.pipe.recv_bytes()
        except (EOFError, OSError):
            _join([self], TERMINATE_SECONDS)
            raise LostError(self.describe_end()) from None
        try:
            message = pickle.loads(data)
        except Exception as error:
            raise LostError(f"process {self.process.pid} sent an answer that cannot be read here: {error!r}") from error
        self.has_begun = True
        if isinstance(message, Making):
            self.making = message.row
        else:
            self.making, self.due = None, False
        return message

    def lose(self, fate: str, patience: float = 0.0) -> None:
        """End a process that is of no use any more.

        :param fate: why
        :param patience: seconds it may take to close its environments
        """
        self.fate = fate
        end_workers([self], patience)

    def describe_end(self) -> str:
        """How the process ended, e.g. ``"process 4711 was killed by SIGKILL"``."""
        pid, code = self.process.pid, self.exit_code
        if code is None:
            return f"process {pid} closed its pipe without ending"
        if code >= 0:
            return f"process {pid} ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"process {pid} was killed by {name}"


def collect(workers: Iterable[WorkerHandle], timeout: float, hasty: bool = False) -> dict[int, Any]:
    """Wait for the answers that workers owe.

    A worker that dies or stays silent is ended, and its ``fate`` says so.

    :param timeout: seconds each may take; counted anew when it tells that it goes on to make its next environment
    :param hasty: whether to leave it at the first fault, as all workers are to be ended then
    :return: the answers, by worker index
    """
    answers: dict[int, Any] = {}
    fault = False
    waiting = {worker.pipe: worker for worker in workers if worker.due}
    for worker in waiting.values():
        worker.deadline = time.monotonic() + timeout
    while waiting and not (fault and hasty):
        patience = min(worker.deadline for worker in waiting.values()) - time.monotonic()
        for pipe in mp_connection.wait(list(waiting), max(0.0, patience)):
            worker = waiting[pipe]
            try:
                answer = worker.receive()
            except LostError as error:
                del waiting[pipe]
                worker.lose(str(error))
                fault = True
                continue
            if worker.due:
                worker.deadline = time.monotonic() + timeout
            else:
                answers[worker.index] = answer
                fault = fault or isinstance(answer, Failure) or (isinstance(answer, Report) and bool(answer.failures))
                del waiting[pipe]
        for pipe, worker in list(waiting.items()):
            if time.monotonic() >= worker.deadline and not pipe.poll():
                del waiting[pipe]
                worker.lose(f"process {worker.process.pid} did not answer within {timeout:g} s, and was killed")
                fault = True
    return answers


def end_workers(workers: Iterable[WorkerHandle], patience: float | None = None) -> None:
    """End processes: first by closing their pipes, then by SIGTERM, then by SIGKILL.

    :param patience: seconds they may take to close their environments; by default `CLOSE_SECONDS`
    """
    started = [worker for worker in workers if worker.process is not None]
    for worker in started:
        if worker.pipe is not None:
            worker.pipe.close()
            worker.pipe = None
        worker.due = False
    _join(started, CLOSE_SECONDS if patience is None else patience)
    for stop in ("terminate", "kill"):
        left = [worker for worker in started if worker.exit_code is None]
        for worker in left:
            getattr(worker.process, stop)()
        _join(left, TERMINATE_SECONDS)


def _join(workers: list[WorkerHandle], patience: float) -> None:
    deadline = time.monotonic() + patience
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.exit_code = worker.process.exitcode


def error_from_failure(failure: Failure, doing: str, step: int) -> WorkerError:
    """The error for a game that raised.

    :param doing: what the environment was doing, e.g. ``"in its step 3"``
    """
    return WorkerError(
        f"environment {failure.row} raised {doing}: {failure.summary}\n\n"
        f"Its own traceback, in the worker process:\n{failure.traceback}",
        failure.row,
        step,
        failure.traceback,
    )


def error_from_loss(worker: WorkerHandle, at_work: int, doing: str, step: int) -> WorkerError:
    """The error for a worker that died or fell silent.

    :param at_work: the environment it was in, or `NOBODY`
    :param doing: what the environment was doing
    """
    who = f"worker {worker.index} (environments {worker.rows.start} to {worker.rows.stop - 1})"
    row = worker.making if worker.making is not None else (None if at_work == NOBODY else at_work)
    if not worker.has_begun:
        where = (
            "while it started. New processes import the program that makes them, so a script must do its work under "
            "`if __name__ == '__main__':`; what the process itself had to say is printed above"
        )
    else:
        where = "while no environment was at work" if row is None else f"while environment {row} was at work, {doing}"
    return WorkerError(f"{who}: {worker.fate}, {where}.", row, step)


def find_context(start_method: str | None) -> Any:
    """How to start workers: by forkserver where there is one, else by spawn, unless told otherwise.

    :raises ValueError: if there is no such start method here
    """
    known = multiprocessing.get_all_start_methods()
    if start_method is None:
        start_method = "forkserver" if "forkserver" in known else "spawn"
    if start_method not in known:
        raise ValueError(f"start_method must be one of {known} here; got {start_method!r}")
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        # Importing takes longer than anything else about starting a worker. The server does it once, for all of them;
        # what others want it to import stays. Where it runs already, workers import for themselves.
        wanted = list(getattr(forkserver._forkserver, "_preload_modules", ["__main__"]))
        if run_worker.__module__ not in wanted:
            context.set_forkserver_preload([*wanted, run_worker.__module__])
        with one_thread_environment():
            forkserver.ensure_running()
    return context
