# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The robot's side of test_two_machines.py: `MODEL FOLDER`. Prints what it saw as JSON, last."""

import importlib.util
import json
import sys
from pathlib import Path

import rclpy

sys.path.insert(0, str(Path(__file__).parents[1]))
import ros_rig


def load(name):
    """Import a test module that lies beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f'{name}.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(model: str, folder: str) -> dict:
    """Run three nodes, three episodes, a fine-tune elsewhere; return what was seen."""
    live = load('test_graph_live')
    rig = ros_rig.Rig()
    operator = rig.add(live.Operator())
    up = live.Up('--network', '--nodes', 'sim_bridge,learner,safety_filter', '--model', model,
                 '--set', 'sim_bridge.episodes=3', '--set', 'sim_bridge.realtime_factor=2.0',
                 '--set', 'sim_bridge.seed=7', '--set', 'sim_bridge.run_on_start=false',
                 '--set', f'safety_filter.audit_dir={folder}/audit',
                 '--set', f'safety_filter.incident_dir={folder}/incidents')
    try:
        # Only steps that are published while the trainer listens can be kept.
        rig.wait_for(lambda: 'trainer' in operator.reports and 'learner' in operator.reports, 60.0, 'both machines')
        rig.wait_for(lambda: all(c.service_is_ready() for c in operator.clients_by.values()), 20.0, 'services')
        # What this node knows of the trainer, the learner may not know yet.
        rig.wait_for(lambda: int(operator.reports['learner'].get('replay_listeners', 0)) >= 1, 20.0, 'a trainer')
        operator.call('sim_bridge/start')
        rig.wait_for(lambda: len(operator.episodes) == 3, 60.0, 'three episodes')
        nodes = sorted(word.removeprefix('__node:=') for process in up.nodes() for word in process.cmdline()
                       if word.startswith('__node:='))
        steps = sum(int(e['steps']) + 1 for e in operator.episodes)
        rig.wait_for(lambda: operator.reports['trainer'].get('episodes') == '3', 5.0, 'three episodes in the trainer')
        trainer = {k: int(operator.reports['trainer'][k]) for k in ('joined', 'unseen', 'lost', 'doubled', 'reordered')}
        answer = operator.call('trainer/fine_tune')
        assert answer.success, answer.message
        ends = ('published', 'failed', 'refused')
        rig.wait_for(lambda: operator.progress and operator.progress[-1][0] in ends, 90.0, 'the job to end')
        phase, values = operator.progress[-1]
        assert phase == 'published', values
        version = values['version']
        operator.call('sim_bridge/start')
        rig.wait_for(lambda: operator.state.get('version') == version, 20.0, 'the new version in the filter')
        rig.wait_for(lambda: operator.reports['learner'].get('version') == version, 20.0, 'and in the learner')
        return {**trainer, 'steps': steps, 'nodes': nodes, 'published': version, 'filter': operator.state['version'],
                'learner': operator.reports['learner']['version']}
    finally:
        up.end()
        rig.close()
        rclpy.try_shutdown()


if __name__ == '__main__':
    print(json.dumps(main(*sys.argv[1:])), flush=True)
