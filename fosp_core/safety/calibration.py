# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Split-conformal levels for the learned risk and for surprise. Pure numpy; anyone may import it."""

import math
from typing import Any

from fosp_core.errors import BundleError

SCHEMA = 1


def check_calibration(calibration: dict[str, Any], where: str) -> None:
    """Raise BundleError, naming the key, unless both gates of `calibration.json` can be used to guard a robot."""
    if calibration.get('schema') != SCHEMA:
        raise BundleError(f'{where}: not calibrated: key schema is {calibration.get("schema")!r}, expected {SCHEMA}')
    for gate, levels in (('reachability', ('level',)), ('surprise', ('level_slow', 'level_stop'))):
        values = calibration.get(gate)
        if not isinstance(values, dict):
            raise BundleError(f'{where}: not calibrated: key {gate} is missing')
        for key in (*levels, 'alpha'):
            if not _finite(values.get(key)):
                raise BundleError(f'{where}: not calibrated: key {gate}.{key} is {values.get(key)!r}, '
                                  'expected a finite number')
        if not 0.0 < values['alpha'] < 1.0:
            raise BundleError(f'{where}: key {gate}.alpha is {values["alpha"]}, expected between 0 and 1')
        if type(values.get('n')) is not int or values['n'] < 1:
            raise BundleError(f'{where}: not calibrated: key {gate}.n is {values.get("n")!r}, expected at least 1')
    if not 0.0 <= calibration['reachability']['level'] <= 1.0:
        raise BundleError(f'{where}: key reachability.level is {calibration["reachability"]["level"]}, '
                          'expected 0 to 1')
    if calibration['surprise']['level_slow'] > calibration['surprise']['level_stop']:
        raise BundleError(f'{where}: key surprise.level_slow is above surprise.level_stop')
    if not isinstance(calibration.get('data_hash'), str) or not calibration['data_hash']:
        raise BundleError(f'{where}: not calibrated: key data_hash is missing')


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
