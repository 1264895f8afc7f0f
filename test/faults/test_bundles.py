# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle that is not fit is refused when the process starts: one line, exit code 2, and not one command was sent."""

import json
import shutil

import pytest
from filter_cell import recalibrated
from stand import NODE, Child

from fosp_core.contract import Contract
from fosp_core.deploy.bundle import FILES, Bundle, write_bundle


def corrupt(model, folder):
    shutil.copytree(model, folder / 'b')
    graph = folder / 'b' / 'filter.onnx'
    raw = bytearray(graph.read_bytes())
    raw[len(raw) // 2] ^= 0x01
    graph.write_bytes(raw)
    return folder / 'b'


def uncalibrated(model, folder):
    return recalibrated(model, folder / 'b', {'schema': 1}).path


def foreign(model, folder):
    """Sound in itself, made for a contract of another control rate."""
    bundle = Bundle.open(model)
    data = {**bundle.contract.to_dict(), 'rate_hz': 20.0}
    files = {name: bundle.read(name) for name in FILES} | {'contract.yaml': json.dumps(data).encode()}
    return write_bundle(folder / 'b', files, {**bundle.manifest, 'contract_hash': Contract.from_dict(data).hash}).path


def absent(model, folder):
    return folder / 'none'


FAULTS = {'corrupt': (corrupt, 'filter.onnx'), 'uncalibrated': (uncalibrated, 'not calibrated'),
          'foreign contract': (foreign, 'made for contract'), 'absent': (absent, 'no such bundle')}


@pytest.fixture(scope='module')
def refused(model, tmp_path_factory):
    """All four processes at once: they share nothing but the time they take."""
    children = {}
    for name, (make, _) in FAULTS.items():
        folder = tmp_path_factory.mktemp('bundle')
        children[name] = Child([*NODE, '--ros-args', '-r', '__ns:=/refused', '-p', f'model:={make(model, folder)}'],
                               folder / 'log')
    yield children
    for child in children.values():
        child.end()


@pytest.mark.parametrize('name', FAULTS)
def test_an_unfit_bundle_ends_the_process_with_one_line(refused, name):
    child = refused[name]
    assert child.process.wait(30) == 2, child.text
    lines = [line for line in child.text.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and FAULTS[name][1] in lines[0] and 'Traceback' not in child.text, child.text
