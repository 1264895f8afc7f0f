# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of `fosp_core/safety` (`make mutation`): is there a test that notices each small change?

mutmut works in a copy of the checkout under --out, with `.ci/mutmut.cfg` as its setup.cfg; what was done there before
is kept (functions that changed are done again), `--again` tries the survivors with the tests of now, `--fresh` begins
anew. Prints the survivors as differences, and which of them docs/explanation/mutation.md does not explain. Exit code 1
when fewer than --least are killed or one is not explained.
"""

import argparse
import difflib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ('fosp_core', 'docs', 'config', 'test')
SURVIVED, UNTESTED = 0, (None, 5, 33)     # exit codes in mutmut's results; the rest is killed
EXPLAINED = ROOT / 'docs' / 'explanation' / 'mutation.md'
PATTERN = re.compile(r'(\s*)def (\S*__mutmut_(?:orig|\d+))\(')


def functions(source: str) -> dict[str, list[str]]:
    """Return the lines of each mutated function, and of its original, without its name."""
    found, name, depth = {}, None, 0
    for line in source.splitlines():
        start = PATTERN.match(line)
        if start:
            depth, name = len(start[1]), start[2]
            found[name] = []
        elif name and line.strip() and len(line) - len(line.lstrip()) <= depth and not line.lstrip().startswith(')'):
            name = None
        if name:
            found[name].append(line.replace(name, 'F').strip())
    return found


def survivors(folder: Path) -> tuple[Counter, list[str]]:
    """Return the count of each exit code, and a text per survivor."""
    codes, texts = Counter(), []
    for meta in sorted(folder.glob('mutants/fosp_core/safety/*.meta')):
        results = json.loads(meta.read_text())['exit_code_by_key']
        codes.update(results.values())
        known = functions(meta.with_suffix('').read_text())
        for key, code in results.items():
            if code == SURVIVED:
                name = key.rsplit('.', 1)[1]
                before, after = known[name.rsplit('__mutmut_', 1)[0] + '__mutmut_orig'], known[name]
                lines = [f'  {line}' for line in difflib.unified_diff(before, after, n=0, lineterm='')
                         if not line.startswith(('---', '+++', '@@'))]
                # Without mutmut's number, which another change of the function moves.
                name = re.sub(r'x_|xǁ|ǁ', '.', key.removeprefix('fosp_core.safety.').rsplit('__mutmut_', 1)[0])
                texts.append('\n'.join([re.sub(r'\.+', '.', name), *lines]))
    return codes, texts


def forget_survivors(folder: Path) -> None:
    """Let mutmut try them again."""
    for meta in folder.glob('mutants/fosp_core/safety/*.meta'):
        results = json.loads(meta.read_text())
        codes = results['exit_code_by_key']
        results['exit_code_by_key'] = {key: None if code == SURVIVED else code for key, code in codes.items()}
        meta.write_text(json.dumps(results))


def main() -> int:
    """Copy, run mutmut, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'out' / 'mutation')
    parser.add_argument('--least', type=float, default=0.9, help='share that must be killed (default: 0.9)')
    parser.add_argument('--jobs', type=int, default=1, help='mutants at a time (default: 1)')
    parser.add_argument('--again', action='store_true', help='try what survived an earlier call once more')
    parser.add_argument('--fresh', action='store_true', help='forget what an earlier call found')
    parser.add_argument('--report', action='store_true', help='report what an earlier call found, run nothing')
    args = parser.parse_args()
    if not args.report:
        if args.fresh:
            shutil.rmtree(args.out, ignore_errors=True)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.again:
            forget_survivors(args.out)
        for name in COPIED:
            shutil.rmtree(args.out / name, ignore_errors=True)
            shutil.copytree(ROOT / name, args.out / name, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / '.ci' / 'mutmut.cfg', args.out / 'setup.cfg')
        subprocess.run([sys.executable, '-m', 'mutmut', 'run', '--max-children', str(args.jobs)], cwd=args.out,
                       check=False)
    codes, texts = survivors(args.out)
    total, untested = codes.total(), sum(codes[code] for code in UNTESTED)
    killed = total - codes[SURVIVED] - untested
    explained = EXPLAINED.read_text() if EXPLAINED.exists() else ''
    strange = [text for text in texts if text not in explained]
    print('\n'.join(['', *(f'{text}{"    <- not explained" * (text in strange)}' for text in texts)]))
    print(f'{killed} of {total} mutants killed, {codes[SURVIVED]} survived, {untested} not tested: '
          f'{100 * killed / max(total, 1):.1f} %; {len(strange)} not explained in {EXPLAINED.relative_to(ROOT)}')
    return 0 if total and killed >= args.least * total and not strange else 1


if __name__ == '__main__':
    sys.exit(main())
