"""``hmasd envs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmasd_sb3.commands.ends import Outcome, end
from hmasd_sb3.running.errors import DONE

if TYPE_CHECKING:
    from hmasd_sb3.running.env_list import EnvEntry


def envs(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only those with this in their name.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Names alone: do not make the environments to ask their sizes.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object; all else goes to standard error.")] = False,
) -> None:
    """List environments: agents, sizes, time limits, what has to be installed, recommended settings.

    Listed are this package's own, JaxMARL's and MPE's through extras, cooperative ones registered with PettingZoo, and those that
    the settings file of this package has an entry for. Any other goes by package.module:function; `hmasd check` tries it out.
    """
    raise end(lambda: _envs(name, quick), json_wanted=json)


def _envs(name: str | None, quick: bool) -> Outcome:
    from hmasd_sb3.running.env_list import list_environments

    entries = list_environments(name, with_sizes=not quick)
    for line in _table(entries):
        print(line)
    if name is not None:
        for entry in entries:
            print(*_settings(entry), sep="\n", flush=True)
    return Outcome(DONE, {"envs": [entry.as_dict() for entry in entries]})


def _table(entries: list[EnvEntry]) -> list[str]:
    head = ["environment", "agents", "obs", "state", "actions", "limit", "settings", ""]
    rows = [head]
    for entry in entries:
        sizes = [_text(entry.agents), _shape(entry.obs), _shape(entry.state), _text(entry.actions), _text(entry.time_limit)]
        note = entry.missing or entry.problem or ", ".join(entry.masks)
        rows.append([entry.env, *sizes, "yes" if entry.settings else "", note])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]


def _settings(entry: EnvEntry) -> list[str]:
    if not entry.settings:
        return [f"\n{entry.env}: no recommended settings."]
    return [f"\n{entry.env}:", *(f"  {name}: {value}" for name, value in entry.settings.items())]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(str(size) for size in shape)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
