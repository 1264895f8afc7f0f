# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one description of the graph: its nodes, their parameters and the environment of their processes.

`launch/safereach.launch.py` and `fosp up` both read it, so that they cannot drift apart. Pure Python: no rclpy, no
launch.
"""

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fosp_core import paths
from fosp_core.errors import FospError

PACKAGE = 'fosp_ros'
NAMESPACE = 'fosp'
TASKS = ('standard', 'unseen1', 'unseen2', 'unseen3', 'unseen4', 'unseen5')
GROUND_TASKS = ('SafetyPointGoal1', 'SafetyPointGoal2', 'SafetyPointButton1', 'SafetyPointPush1', 'SafetyCarGoal1',
                'SafetyCarGoal2', *(f'SafetyPointFading{kind}{level}' for kind in ('Easy', 'Hard')
                                    for level in (0, 1, 2)))
GROUND_CONTRACT, GROUND_FILTER = 'contract_safetygym.yaml', 'safety_filter_ground.yaml'
PROFILE = 'fastdds_local.xml'
# One computing thread per process: two torch threads beside one busy process were measured 3 to 45 times slower.
THREADS = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}


# In simulation each run has a latch of its own: that of an earlier run must not hold this one. A robot keeps its own.
RUN = secrets.token_hex(4)


@dataclasses.dataclass(frozen=True)
class NodeSpec:
    """One process with one node. `critical`: its end ends the graph under any starter."""

    name: str
    executable: str
    module: str
    package: str = PACKAGE
    namespace: str = NAMESPACE
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    params_files: tuple[str, ...] = ()
    remappings: tuple[tuple[str, str], ...] = ()
    critical: bool = False

    def ros_arguments(self) -> list[str]:
        """Return `--ros-args …`: name, namespace, remappings, files, then single parameters (the last one wins)."""
        arguments = ['--ros-args', '-r', f'__node:={self.name}', '-r', f'__ns:=/{self.namespace.strip("/")}']
        for source, target in self.remappings:
            arguments += ['-r', f'{source}:={target}']
        for file in self.params_files:
            arguments += ['--params-file', file]
        for key, value in self.params.items():
            arguments += ['-p', f'{key}:={json.dumps(value)}']
        return arguments

    def command(self, python: str) -> list[str]:
        """Return the command line that starts the node as its own process."""
        return [python, '-m', self.module, *self.ros_arguments()]


@dataclasses.dataclass(frozen=True)
class GraphOptions:
    """What a user may change at start; None and '' leave the value to the parameter files."""

    namespace: str = NAMESPACE
    model: str = ''
    params_file: str = ''
    task: str = ''
    sim: bool = True
    camera: str = ''    # a camera node of ours, from CAMERAS; '': the simulation's, or one that the user starts
    arm: str = ''       # from ARMS: topics of an arm driver
    topics: tuple[tuple[str, str], ...] = ()  # (name in the graph, topic outside), stronger than `arm`
    use_sim_time: bool = False
    overrides: tuple[tuple[str, str, Any], ...] = ()  # (node, parameter, value)
    nodes: tuple[str, ...] = ()                       # only these, the others run elsewhere; () for all


CAMERAS = ('realsense',)
TOPICS = ('image', 'ee_pose', 'joint_states', 'command_out', 'label')    # that a driver may call otherwise
# Where an arm's own nodes listen and speak. For MoveIt Servo: its defaults on Jazzy, in a node called servo_node.
# `velocity`: a ros2_control controller of Cartesian velocities, behind an adapter of ours.
ARMS = {'servo': {'command_out': '/servo_node/delta_twist_cmds', 'joint_states': '/joint_states'},
        'velocity': {'joint_states': '/joint_states'}}
ADAPTERS = {'velocity': 'velocity_adapter'}
# name, executable, module, takes the model, only in simulation, critical; a camera or an adapter is started when it is
# asked for
_TABLE = (
    ('sim_bridge', 'fosp_sim_bridge', 'fosp_sim.bridge_node', False, True, False),
    ('realsense', 'fosp_realsense', 'fosp_ros.realsense_node', False, False, False),
    ('velocity_adapter', 'fosp_velocity_adapter', 'fosp_ros.velocity_adapter_node', False, False, True),
    ('learner', 'fosp_learner', 'fosp_ros.learner_node', True, False, False),
    ('safety_filter', 'fosp_safety_filter', 'fosp_ros.safety_filter_node', True, False, True),
    ('trainer', 'fosp_trainer', 'fosp_ros.trainer_node', True, False, False),
)
NODE_NAMES = tuple(row[0] for row in _TABLE)
MODULES = {row[0]: row[2] for row in _TABLE}


def names(text: str) -> tuple[str, ...]:
    """Return the node names of a list with commas; empty for all."""
    return tuple(name.strip() for name in text.split(',') if name.strip())


def build(options: GraphOptions = GraphOptions()) -> list[NodeSpec]:
    """Return the nodes of the graph in the order in which they are started.

    Raises
    ------
    FospError
        For an unknown task, camera, arm, topic or node, or a file that is not there.

    """
    task = options.task.removeprefix('safereach/') if options.task != 'safereach' else 'standard'
    ground = task.removesuffix('-v0') in GROUND_TASKS
    if ground:
        task = task.removesuffix('-v0')
    if task and task not in TASKS and not ground:
        raise FospError(f'task {options.task!r}: expected one of {", ".join((*TASKS, *GROUND_TASKS))}')
    if options.camera and options.camera not in CAMERAS:
        raise FospError(f'camera {options.camera!r}: expected one of {", ".join(CAMERAS)}, or nothing')
    if options.camera and options.sim:
        raise FospError(f'camera {options.camera}: the simulation publishes pictures, too; switch it off (sim:=false, '
                        '--no-sim)')
    if options.arm and options.arm not in ARMS:
        raise FospError(f'arm {options.arm!r}: expected one of {", ".join(ARMS)}, or nothing')
    if options.sim and (options.arm or options.topics):
        raise FospError(f'arm {options.arm or dict(options.topics)}: the simulation is an arm, too; switch it off '
                        '(sim:=false, --no-sim)')
    for source, target in options.topics:
        if not source or not target or ' ' in source + target:
            raise FospError(f'topic {source!r} -> {target!r}: expected two names')
    remappings = tuple({**ARMS.get(options.arm, {}), **dict(options.topics)}.items())
    if options.params_file and not Path(options.params_file).is_file():
        raise FospError(f'{options.params_file}: no such parameter file')
    if options.model and not Path(options.model).is_dir():
        raise FospError(f'{options.model}: no such model folder')
    for node in (*(o[0] for o in options.overrides), *options.nodes):
        if node not in NODE_NAMES:
            raise FospError(f'no node {node!r}; nodes: {", ".join(NODE_NAMES)}')
    specs = []
    for name, executable, module, takes_model, simulated, critical in _TABLE:
        if (simulated and not options.sim) or (name in CAMERAS and name != options.camera) \
                or (name in ADAPTERS.values() and name != ADAPTERS.get(options.arm)) \
                or (options.nodes and name not in options.nodes):
            continue
        # Other cameras and other actions: another contract, and other limits for the filter.
        files = [str(paths.config_file(GROUND_FILTER if ground and name == 'safety_filter' else f'{name}.yaml'))]
        if options.params_file:
            files.append(str(Path(options.params_file).resolve()))
        params: dict[str, Any] = {}
        if options.use_sim_time:
            params['use_sim_time'] = True
        if takes_model and ground:
            params['contract'] = str(paths.config_file(GROUND_CONTRACT))
        if takes_model and options.model:
            params['model'] = str(Path(options.model).resolve())
        if simulated and task:
            params['task'] = task
        if name == 'safety_filter' and options.sim:
            params['latch_file'] = f'latch-run-{RUN}.json'
        params.update({key: value for node, key, value in options.overrides if node == name})
        specs.append(NodeSpec(name, executable, module, namespace=options.namespace, params=params,
                              params_files=tuple(files), remappings=remappings, critical=critical))
    return specs


def environment(local: bool = True, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables to set for every node process; what the user has set in `base` is kept.

    `local`: all nodes run on this machine. Then nothing is sent to the network, and Fast DDS gets a shared-memory
    segment that holds whole pictures.
    """
    base = os.environ if base is None else base
    values = dict(THREADS)
    if local:
        values['ROS_AUTOMATIC_DISCOVERY_RANGE'] = base.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        profile = base.get('FASTRTPS_DEFAULT_PROFILES_FILE') or base.get('FASTDDS_DEFAULT_PROFILES_FILE') \
            or str(paths.config_file(PROFILE))
        # Jazzy's Fast DDS reads the first name only, Kilted's prefers the second.
        values['FASTRTPS_DEFAULT_PROFILES_FILE'] = values['FASTDDS_DEFAULT_PROFILES_FILE'] = profile
    return values


def isolate(work: Path) -> None:
    """Keep this process and the nodes on this machine, in a domain of their own, with logs in the work folder."""
    for key, value in environment(True).items():
        os.environ.setdefault(key, value)
    os.environ['ROS_LOG_DIR'] = str(work / 'log')
    if 'ROS_DOMAIN_ID' not in os.environ:
        # A graph of the user's in the default domain must neither be seen nor disturbed.
        os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 99)


def folders(work: Path) -> tuple[tuple[str, str, Any], ...]:
    """Return the overrides that keep all the graph writes, beside the logs, in one folder."""
    return (('trainer', 'work_dir', str(work / 'trainer')), ('safety_filter', 'audit_dir', str(work / 'audit')),
            ('safety_filter', 'incident_dir', str(work / 'incidents')),
            ('safety_filter', 'latch_file', str(work / 'latch.json')))
