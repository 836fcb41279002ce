"""What is promised about the installed package: types, licence, version, extras."""

import re
from importlib import metadata, resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_types_are_shipped() -> None:
    assert resources.files("hmasd_sb3").joinpath("py.typed").is_file()


def test_everything_in_the_package_folder_goes_into_the_wheel() -> None:
    """No list of files to forget an entry in: data files lie beside the modules that read them."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = pyproject.partition("[tool.hatch.build.targets.wheel]")[2].partition("\n[")[0]
    assert re.search(r'^packages = \["hmasd_sb3"\]$', section, re.MULTILINE)
    assert "exclude" not in section


def test_metadata() -> None:
    about = metadata.metadata("hmasd-sb3")
    assert about["License-Expression"] == "MIT"
    assert about["Requires-Python"] == ">=3.10"
    assert {"contrib", "zoo", "tuning", "mpe", "jaxmarl", "demo", "postgresql", "test", "dev"} <= set(
        about.get_all("Provides-Extra") or []
    )


def test_changelog_knows_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{metadata.version('hmasd-sb3')}]" in changelog


def test_constraints_pin_everything_exactly_and_only_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = [re.fullmatch(r"([A-Za-z0-9_.-]+)==[0-9][A-Za-z0-9.]*", pin) for pin in pins]
    assert all(names), [pin for pin, name in zip(pins, names, strict=True) if name is None]
    normalised = [re.sub(r"[-_.]+", "-", name[1]).lower() for name in names if name is not None]
    assert len(set(normalised)) == len(normalised)


@pytest.mark.parametrize("extra", ["demo", "mpe", "zoo", "tuning", "postgresql", "jaxmarl", "test", "dev"])
def test_what_the_makefile_installs_is_pinned(extra: str) -> None:
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    requirements = [
        requirement
        for requirement in metadata.requires("hmasd-sb3") or []
        if "extra ==" not in requirement or re.search(rf"extra == ['\"]{extra}['\"]", requirement)
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9_.-]", name)[0]).lower() for name in requirements}
    assert names <= pinned
