# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m fosp_core.doctor.reference`: writes the table of codes into docs/how-to/inspect.md. A test compares."""

from pathlib import Path

from fosp_core.doctor import checks  # noqa: F401 - registers the codes
from fosp_core.doctor.findings import CODES, SEVERITIES
from fosp_core.io import atomic_write_bytes

BEGIN, END = '<!-- codes: begin -->\n', '<!-- codes: end -->\n'
PAGE = Path(__file__).resolve().parent.parent.parent / 'docs' / 'how-to' / 'inspect.md'


def codes_table() -> str:
    """Return the table of all codes, the worst first, as Markdown."""
    rows = sorted(CODES.values(), key=lambda code: SEVERITIES.index(code.severity))
    return '| code | severity | means | what to do |\n|---|---|---|---|\n' + ''.join(
        f'| `{c.name}` | {c.severity} | {c.meaning} | {c.remedy} |\n' for c in rows)


def with_table(page: str) -> str:
    """Return the page with a fresh table between its marks."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + codes_table() + END + rest.split(END)[1]


if __name__ == '__main__':
    atomic_write_bytes(PAGE, with_table(PAGE.read_text()).encode())
