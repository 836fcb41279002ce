"""``hmasd doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from hmasd_sb3.commands.ends import Outcome, end
from hmasd_sb3.running.errors import DONE, FAILED

EXIT_CODES = """\b
Exit codes:
  0  training is possible; extras may be missing
  1  it is not
"""
_MARKS = {"ok": " ", "note": "-", "warning": "!", "error": "X"}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object; all else goes to standard error.")] = False,
) -> None:
    """Look at this computer: versions, cores and threads, devices, extras, folders.

    What is missing comes with the command that installs it. X: training is not possible; !: it will not go as it should;
    -: good to know.
    """
    raise end(_doctor, json_wanted=json)


def _doctor() -> Outcome:
    from hmasd_sb3.running.diagnosis import as_dict, core_works, diagnose

    facts = diagnose()
    topic = ""
    for fact in facts:
        print(f"{_MARKS[fact.level]} {'' if fact.topic == topic else fact.topic:<14} {fact.text}")
        if fact.remedy:
            print(f"{'':17}-> {fact.remedy}")
        topic = fact.topic
    works = core_works(facts)
    print(f"\n{'Training is possible.' if works else 'Training is not possible: see the lines marked X.'}", flush=True)
    return Outcome(DONE if works else FAILED, as_dict(facts))
