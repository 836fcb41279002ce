"""How commands end: one line for the person if something is wrong, an exit code and, if asked for, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import typer

from hmasd_sb3.running.errors import BROKE_DOWN, FAILED, NON_FINITE, SIGNAL_BASE, WRONG_INPUT, InputError
from hmasd_sb3.running.files import as_json

_SIGINT = 2
_STDOUT, _STDERR = 1, 2


class Outcome(NamedTuple):
    """What became of a command."""

    code: int
    answer: dict[str, Any]
    """What ``--json`` prints."""


def end(work: Callable[[], Outcome], *, json_wanted: bool = False, verbose: bool = False) -> typer.Exit:
    """Carry a command out, and say what has to be said if it fails.

    :param work: the command
    :param json_wanted: print one JSON object on standard output, and nothing else there: text for people goes to standard
        error then
    :param verbose: print tracebacks of wrong input too
    :return: to be raised
    """
    with _everything_to_stderr() if json_wanted else contextlib.nullcontext():
        outcome = _carry_out(work, verbose)
    if json_wanted:
        answer = {"exit_code": outcome.code, **outcome.answer}
        print(json.dumps(as_json(answer), allow_nan=False), flush=True)
    return typer.Exit(outcome.code)


@contextlib.contextmanager
def _everything_to_stderr() -> Iterator[None]:
    """Also what libraries of C and other processes write, such as workers in which a game greets when it is imported."""
    with contextlib.redirect_stdout(sys.stderr):
        kept = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)
        try:
            yield
        finally:
            os.dup2(kept, _STDOUT)
            os.close(kept)


def _carry_out(work: Callable[[], Outcome], verbose: bool) -> Outcome:
    try:
        return work()
    except KeyboardInterrupt:  # before, or after, what the command does was ready to be interrupted
        print("Stopped.", file=sys.stderr, flush=True)
        return Outcome(SIGNAL_BASE + _SIGINT, {"error": "stopped by a signal"})
    except InputError as error:
        if verbose:
            traceback.print_exc()
        return Outcome(fail(WRONG_INPUT, str(error)), {"error": str(error)})
    except (Exception, SystemExit) as error:  # the latter is a game's: nothing here raises it
        return Outcome(report(error), {"error": describe(error)[1]})


def report(error: BaseException) -> int:
    """Say what ended a training, and give the exit code for it."""
    code, text, expected = describe(error)
    if not expected:
        traceback.print_exception(error)
    return fail(code, text)


def describe(error: BaseException) -> tuple[int, str, bool]:
    """The exit code for an error, one line about it, and whether that line says it all."""
    from hmasd_sb3.policies.flat import NonFiniteError
    from hmasd_sb3.running.blame import raised_by_environment
    from hmasd_sb3.validation import InvalidTransitionError
    from hmasd_sb3.wrappers import WorkerError

    if isinstance(error, NonFiniteError | InvalidTransitionError):
        return NON_FINITE, str(error), True
    if isinstance(error, WorkerError):
        return BROKE_DOWN, str(error), True
    if raised_by_environment(error):
        return BROKE_DOWN, f"an environment raised {type(error).__name__}: {error}", False
    return FAILED, f"{type(error).__name__}: {error}", False


def fail(code: int, message: Any) -> int:
    """Print one line of error; returns the code."""
    print(f"Error: {message}", file=sys.stderr, flush=True)
    return code
