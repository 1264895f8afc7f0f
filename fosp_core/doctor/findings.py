# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a check of `fosp inspect` says, and the list of all checks. The checks and the command alone import it."""

import dataclasses
from collections.abc import Callable

ERROR, WARNING, INFO = 'error', 'warning', 'info'
SEVERITIES = (ERROR, WARNING, INFO)     # the worst first


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that the user should look at: how bad, which check, where it is, and what was found."""

    severity: str
    code: str
    where: str
    text: str


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a check found in one episode: `count` records of `key`, the first at `step`."""

    key: str
    step: int
    count: int
    text: str


@dataclasses.dataclass(frozen=True)
class Code:
    """One line of the table in docs/how-to/inspect.md."""

    name: str
    severity: str
    meaning: str
    remedy: str
    check: Callable | None      # None: the reader itself says so


CODES: dict[str, Code] = {}
EPISODE_CHECKS: list[Code] = []     # check(episode, contract, seen) -> Marks
TOTAL_CHECKS: list[Code] = []       # check(totals, contract) -> texts


def _register(into: list | None, name: str, severity: str, meaning: str, remedy: str):
    def keep(check: Callable | None):
        code = CODES[name] = Code(name, severity, meaning, remedy, check)
        if into is not None:
            into.append(code)
        return check
    return keep


def of_episode(name: str, severity: str, meaning: str, remedy: str):
    """Register a function of (episode, contract, seen) that yields Marks."""
    return _register(EPISODE_CHECKS, name, severity, meaning, remedy)


def of_totals(name: str, severity: str, meaning: str, remedy: str):
    """Register a function of (totals, contract) that yields texts."""
    return _register(TOTAL_CHECKS, name, severity, meaning, remedy)


def of_reader(name: str, severity: str, meaning: str, remedy: str) -> None:
    """Register a code that no function of the data yields: the reader found it."""
    _register(None, name, severity, meaning, remedy)(None)


class Tally:
    """Collects Marks, so that a fault in five hundred episodes is one finding; memory: one entry per code and key."""

    def __init__(self):
        self._found: dict[tuple[str, str], list] = {}   # -> [first where, first text, episodes, records]

    def add(self, code: Code, where: str, mark: Mark) -> None:
        """Count one mark; `where` names source and episode."""
        entry = self._found.setdefault((code.name, mark.key), [f'{where}, step {mark.step}', mark.text, 0, 0])
        entry[2] += 1
        entry[3] += mark.count

    def findings(self) -> list[Finding]:
        """One finding per code and key: the first place, and how many more there are."""
        out = []
        for (name, _), (where, text, episodes, records) in self._found.items():
            more = f'; in {episodes} episodes, {records} records in all' if episodes > 1 else ''
            out.append(Finding(CODES[name].severity, name, where, text + more))
        return out
