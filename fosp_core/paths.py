# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where the package's configuration, launch files and models lie: a source checkout or an installed share folder."""

import os
import sys
from pathlib import Path

from fosp_core.errors import FospError

PACKAGE = 'fosp_ros'


def share_dir() -> Path:
    """Return the folder that holds `config/`, `launch/` and `models/`.

    In order: `FOSP_SHARE`, the source checkout around this file, each prefix of `AMENT_PREFIX_PATH`, `sys.prefix`.

    Raises
    ------
    FospError
        When none of them holds `config/`.

    """
    candidates = []
    if os.environ.get('FOSP_SHARE'):
        candidates.append(Path(os.environ['FOSP_SHARE']))
    candidates.append(Path(__file__).resolve().parent.parent)
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    candidates += [Path(p) / 'share' / PACKAGE for p in [*prefixes, sys.prefix]]
    for candidate in candidates:
        if (candidate / 'config' / 'contract_safereach.yaml').is_file():
            return candidate
    raise FospError(f'{PACKAGE}: no folder with config/contract_safereach.yaml among '
                    f'{", ".join(map(str, candidates))}; set FOSP_SHARE to the installed share folder')


def config_file(name: str) -> Path:
    """Return the path of `config/<name>`; raise FospError when it is absent."""
    path = share_dir() / 'config' / name
    if not path.is_file():
        raise FospError(f'{path}: no such configuration file')
    return path
