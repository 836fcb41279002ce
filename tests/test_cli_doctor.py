"""The command ``hmasd doctor``: what is there, what is missing, and how to get it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from commands import hmasd

from hmasd_sb3.running import cores, diagnosis, requirements
from hmasd_sb3.running.diagnosis import Fact, diagnose
from hmasd_sb3.running.requirements import Requirements, read_requirements, states_of

METADATA = """\
Metadata-Version: 2.4
Name: hmasd-sb3
Version: 0.1.0
Provides-Extra: demo
Provides-Extra: future
Provides-Extra: all
Requires-Dist: numpy>=1.26
Requires-Dist: torch>=2.6; python_version >= '3'
Requires-Dist: antiquated; python_version < '3'
Requires-Dist: nosuchpackage>=1; extra == 'demo'
Requires-Dist: numpy>=99; extra == 'demo'
Requires-Dist: ancient; python_version < '3' and extra == 'future'
Requires-Dist: hmasd-sb3[demo]; extra == 'all'
"""


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Requirements:
    """This package as if installed with the metadata above."""
    place = tmp_path / "site"
    (place / "hmasd_sb3-0.1.0.dist-info").mkdir(parents=True)
    (place / "hmasd_sb3-0.1.0.dist-info/METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(str(place))
    found = read_requirements()
    assert found is not None
    return found


def facts(topic: str) -> list[Fact]:
    return [fact for fact in diagnose() if fact.topic == topic]


def test_requirements_are_those_of_the_metadata(installed: Requirements) -> None:
    assert installed.source == "installed"
    assert list(installed.extras) == ["demo", "future", "all"]
    assert [state.name for state in states_of(installed.core, installed)] == ["numpy", "torch"]
    assert all(state.fits for state in states_of(installed.core, installed))
    demo = states_of(installed.extras["demo"], installed, "demo")
    assert [(state.name, state.wanted, state.fits) for state in demo] == [
        ("nosuchpackage", ">=1", False),
        ("numpy", ">=99", False),
    ]
    assert demo[0].installed is None
    assert states_of(installed.extras["future"], installed, "future") == []
    assert states_of(installed.extras["all"], installed, "all") == demo


def test_what_is_missing_comes_with_its_command(installed: Requirements) -> None:
    demo, future, everything = facts("extras")
    assert re.match(r"demo: lacks nosuchpackage>=1 \(not installed\), numpy>=99 \([\d.]+ installed\)", demo.text)
    assert (demo.level, demo.remedy) == ("note", 'pip install "hmasd-sb3[demo]"')
    assert future.text.startswith("future: has nothing for Python 3")
    assert everything.remedy == 'pip install "hmasd-sb3[all]"'


def test_a_checkout_says_that_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise requirements.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(requirements.metadata, "distribution", absent)
    found = read_requirements()
    if found is not None:  # Python 3.10 cannot read pyproject.toml
        assert {"zoo", "tuning", "demo"} <= set(found.extras)
        assert found.source == "not installed, run from a checkout"


def test_the_core_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert hmasd("doctor") == 0
    out = capsys.readouterr().out
    assert "Training is possible." in out
    assert re.search(r"^ +system +.*Python 3\.", out, re.MULTILINE)
    assert hmasd("doctor", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["exit_code"], answer["core_works"]) == (0, True)
    topics = {fact["topic"] for fact in answer["facts"]}
    assert {"system", "versions", "imports", "cores", "threads", "devices", "runs", "git"} <= topics


def test_a_broken_installation_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    imported = diagnosis.importlib.import_module

    def broken(name: str) -> Any:
        if name == "supersuit":
            raise OSError("libbroken.so: cannot open shared object file")
        return imported(name)

    monkeypatch.setattr(diagnosis.importlib, "import_module", broken)
    assert hmasd("doctor") == 1
    out = capsys.readouterr().out
    assert "X imports        import supersuit fails: OSError: libbroken.so" in out
    assert "-> pip install --force-reinstall supersuit" in out
    assert "Training is not possible" in out


def test_a_core_package_that_is_too_old(installed: Requirements, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "installed_version", lambda name: "1.0" if name == "torch" else "2.0")
    (bad,) = [fact for fact in facts("versions") if fact.level == "error"]
    assert bad.text == "torch>=2.6 (1.0 installed) is needed."
    assert bad.remedy == 'pip install "torch>=2.6"'


@pytest.mark.parametrize(
    ("versions", "level", "text"),
    [
        ({"torch": "2.5.1", "pandas": "2.2", "rl_zoo3": "2.9"}, "error", "torch 2.5.1 can be brought to run code"),
        ({"torch": "2.6.0", "pandas": "3.0.1", "rl_zoo3": "2.9"}, "warning", "cannot draw its plots with pandas 3.0.1"),
        ({"torch": "2.13.0+cpu", "pandas": "3.0.1"}, None, ""),
        ({"torch": "2.13.0+cpu", "pandas": "2.3", "rl_zoo3": "2.9"}, None, ""),
    ],
)
def test_versions_that_go_together_badly(
    versions: dict[str, str], level: str | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "installed_version", versions.get)
    found = facts("known trouble")
    assert [fact.level for fact in found] == ([] if level is None else [level])
    assert all(text in fact.text for fact in found)


def test_cores_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for text, wanted in (("max 100000", None), ("150000 100000", 1.5)):
        (tmp_path / "cpu.max").write_text(text)
        assert cores._quota_v2(tmp_path / "cpu.max") == wanted
    for text, wanted in (("-1", None), ("50000", 0.5)):
        (tmp_path / "cpu.cfs_quota_us").write_text(text)
        (tmp_path / "cpu.cfs_period_us").write_text("100000")
        assert cores._quota_v1(tmp_path / "cpu.cfs_quota_us") == wanted
    monkeypatch.setattr(cores, "_quota_v2", lambda _: 2.5)
    assert cores.usable_cores() == 2.5


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch as th

    monkeypatch.setattr(th, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (fact,) = facts("threads")
    assert (fact.level, fact.text) == ("note", "threads of torch: 8; OMP_NUM_THREADS is not set.")
    assert "torch.set_num_threads(1)" in fact.remedy


def test_places(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fact,) = facts("runs")
    assert fact.level == "ok"
    assert list(in_tmp.iterdir()) == []

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(diagnosis.tempfile, "TemporaryFile", refuse)
        (fact,) = facts("runs")
        assert (fact.level, fact.text) == ("error", f"{os.getcwd()} cannot be written to (Permission denied).")
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda _: usage)
    (fact,) = facts("runs")
    assert fact.level == "warning"
    for fact in facts("shared memory"):
        assert (fact.level, fact.remedy) == ("warning", "In a container: docker run --shm-size=1g.")
