"""For all tests: one torch thread per process, as more of them only get in each other's way on networks this small."""

import os
import pathlib
import signal
import sys

import pytest
import torch as th

sys.path.insert(0, str(pathlib.Path(__file__).parent))
th.set_num_threads(1)
# What a shell starts in the background ignores Ctrl-C, and so would the programs that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where every extra is installed, ``NO_SKIPS=1`` makes a skipped test a failure: a moved module would go unseen."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if os.environ.get("NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
