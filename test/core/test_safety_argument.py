# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""docs/safety.md keeps its word: each reason is in the argument and in a test, each test it names is there and runs."""

import re
from pathlib import Path

import pytest

from fosp_core.safety.reasons import Reason

ROOT = Path(__file__).resolve().parents[2]
ARGUMENT = (ROOT / 'docs' / 'safety.md').read_text().split('## Hazard, rule, test')[1].split('## Times')[0]
ROWS = [[cell.strip() for cell in line.strip('|').split('|')] for line in ARGUMENT.splitlines()
        if line.startswith('|') and not line.startswith(('|---', '| hazard', '| fault'))]
THIS = Path(__file__).name
PROOFS = [*sorted((ROOT / 'test' / 'faults').glob('*.py')), *sorted(p for p in (ROOT / 'test' / 'core').glob(
    'test_safety_*.py') if p.name not in (THIS, 'test_safety_reasons.py'))]


@pytest.mark.parametrize('reason', Reason, ids=lambda reason: reason.word)
def test_every_reason_is_provoked_by_a_test(reason):
    name = re.compile(rf'Reason\.{reason.name}\b|\'{reason.word}\'')
    assert [path.name for path in PROOFS if name.search(path.read_text())], \
        f'no test in test/faults or test/core/test_safety_*.py provokes {reason.word}'


@pytest.mark.parametrize('reason', Reason, ids=lambda reason: reason.word)
def test_every_reason_that_stops_holds_or_alters_has_its_hazard(reason):
    if reason in (Reason.PASS, Reason.STARTING, Reason.RELEASING):
        return      # no hazard: the proposal passes, or nothing was proved yet
    named = {word for row in ROWS for cell in row for word in re.findall(r'`([a-z_*]+)`', cell)}
    assert reason.word in named or any(word.endswith('*') and reason.word.startswith(word[:-1]) for word in named)


def test_every_row_names_a_test_that_is_there():
    sources = [path.read_text() for path in ROOT.glob('test/**/test_*.py')]
    assert len(ROWS) > 50
    for row in ROWS:
        names = [name for cell in row for name in re.findall(r'`(test_\w+)`', cell)]
        assert names, f'docs/safety.md: no test in {row}'
        for name in names:
            assert any(f'def {name}(' in text for text in sources), name


def test_every_fault_of_the_suite_is_in_the_table_and_none_else():
    """The table of faults names each test of test/faults, and at least 25 faults."""
    defined = {name for path in (ROOT / 'test' / 'faults').glob('test_*.py')
               for name in re.findall(r'^def (test_\w+)\(', path.read_text(), re.M)}
    table = ARGUMENT.split('## Faults')[1]
    named = set(re.findall(r'`(test_\w+)`', table))
    assert named == defined, named ^ defined
    assert len([row for row in table.splitlines() if row.startswith('|')]) - 2 >= 25
