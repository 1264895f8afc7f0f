# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs all checks of `fosp inspect` over sources, one episode in memory at a time. No ROS; anyone may import it."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.sources import read_source
from fosp_core.doctor import checks
from fosp_core.doctor.findings import CODES, EPISODE_CHECKS, SEVERITIES, TOTAL_CHECKS, Finding, Tally
from fosp_core.doctor.totals import Seen, Totals
from fosp_core.errors import ContractError, DataError

_TRANSPORT = ('lost', 'doubled', 'reordered', 'mismatched')


@dataclasses.dataclass
class Survey:
    """What was found: figures over all sources, and the findings, the worst first."""

    totals: Totals
    findings: list[Finding]

    @property
    def worst(self) -> str | None:
        """Severity of the worst finding; None when there is none."""
        return self.findings[0].severity if self.findings else None


def survey(sources: Iterable[str | Path], contract: Contract, namespace: str | None = None,
           references: dict | None = None, watch: Callable[[str, Episode, list[int]], None] | None = None) -> Survey:
    """Read the sources once and check them.

    Parameters
    ----------
    sources
        Whatever `fosp_core.data.sources` reads. All together are one data set: what is never there is in none of them.
    contract
        What the episodes are checked against.
    namespace
        Where the replay topics of bags lie; needed only when a bag holds them more than once.
    references
        Camera -> mean red, green, blue of the same scene; None: those known for the contract's name.
    watch
        Is called with place, episode, and the records at which checks found something; for the picture sheet.

    Returns
    -------
    Survey
        A source that cannot be read on is a finding; the others are read all the same.

    """
    totals, tally, broken = Totals(contract), Tally(), []
    sources = list(map(Path, sources))
    for path in sources:
        report, number = {}, 0
        try:
            for episode in read_source(path, contract, check=False, namespace=namespace, report=report):
                where = f'{path}: episode {number}'
                number += 1
                seen = Seen(episode)
                steps = _check_episode(where, episode, contract, seen, tally)
                if steps is not None:
                    totals.add(episode, seen)
                    if watch is not None:
                        watch(where, episode, steps)
        except ContractError as error:
            broken.append(_of('contract', str(path), _without(path, error)))
        except DataError as error:
            broken.append(_of('unreadable', str(path), _without(path, error)))
        if any(report.get(key) for key in _TRANSPORT):
            broken.append(_of('transport', str(path), ', '.join(
                f'{report[key]} {key}' for key in _TRANSPORT if report.get(key))))
    findings = broken + tally.findings()
    place = ', '.join(map(str, sources))
    for code in TOTAL_CHECKS if totals.episodes else ():
        more = (references,) if code.check is checks.colour_order else ()
        findings += [_of(code.name, place, text) for text in code.check(totals, contract, *more)]
    return Survey(totals, sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def _check_episode(where: str, episode: Episode, contract: Contract, seen: Seen, tally: Tally) -> list[int] | None:
    """Return the records at which something was found; None when the episode is too wrong for other checks."""
    steps = []
    for code in EPISODE_CHECKS:
        for mark in code.check(episode, contract, seen):
            tally.add(code, where, mark)
            steps.append(mark.step)
        if steps and code.check is checks.contract_mismatch:
            return None
    return steps


def _of(code: str, where: str, text: str) -> Finding:
    return Finding(CODES[code].severity, code, where, text)


def _without(path: Path, error: Exception) -> str:
    """Return the error's text without the path that stands beside it already."""
    return str(error).removeprefix(f'{path}: ')
