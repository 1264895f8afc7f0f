# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An arm that is commanded by a list of numbers: a list of another length is no command, however good its beginning."""

import json

import numpy as np
import pytest
from filter_cell import Cell
from sensor_msgs.msg import JointState
from stand import Stand

from fosp_core.contract import Contract
from fosp_core.deploy.bundle import FILES, Bundle, write_bundle


class ListCell(Cell):
    """The cell whose command is a JointState with three velocities."""

    COMMAND = JointState

    def read(self, message):
        return np.array(message.velocity)

    def write(self, message):
        message.velocity = [float(v) for v in self.command]


@pytest.fixture(scope='module')
def listed(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('lists')
    bundle = Bundle.open(model)
    data = {**bundle.contract.to_dict(), 'mirror': []}
    data['action'] |= {'type': 'sensor_msgs/msg/JointState', 'fields': [f'velocity[{k}]' for k in range(3)]}
    contract = folder / 'contract.yaml'
    contract.write_text(json.dumps(data))
    files = {name: bundle.read(name) for name in FILES} | {'contract.yaml': contract.read_bytes()}
    own = write_bundle(folder / 'b', files, {**bundle.manifest, 'contract_hash': Contract.load(contract).hash})
    stand = Stand(own.path, folder, 'lists', cell=ListCell, contract=contract)
    yield stand
    stand.child.end()
    stand.close()


@pytest.mark.parametrize('command', [[0.1, 0.0, 0.0, 0.0], [0.1, 0.0], []], ids=['too long', 'too short', 'empty'])
def test_a_command_list_of_another_length_is_rejected_whole(listed, command):
    def change(cell):
        cell.patrol, cell.command = False, command
    listed.rejected(f'command of {len(command)} numbers', 'command_invalid', change, 'command')
    listed.cell.heal()
    assert listed.judge() > 0
