# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Start the SafeReach graph: `ros2 launch fosp_ros safereach.launch.py --show-args`.

The nodes come from `fosp_ros.graph`, the same table that `fosp up` reads. With `sim:=false` the camera and the arm are
yours; the learner, the safety filter and the trainer are started as in the simulation.
"""

# ruff: noqa: I001 - `launch` is ROS's, not the folder of this file
import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from fosp_ros import graph

ARGUMENTS = (
    ('namespace', graph.NAMESPACE, 'Namespace of all nodes.'),
    ('model', '', 'Folder of the model bundle; empty: the one that the package ships.'),
    ('params_file', '', 'Parameter file laid over config/*.yaml; empty: none.'),
    ('task', '', f'Task of the simulation ({", ".join((*graph.TASKS, *graph.GROUND_TASKS))}); empty: as in the '
                 'parameter file.'),
    ('sim', 'true', 'Simulated arm and camera. With false you start the camera and the arm.'),
    ('nodes', '', f'Only these nodes, with commas, of {", ".join(graph.NODE_NAMES)}; the others run elsewhere.'),
    ('camera', '', f'With sim:=false, a camera node of ours ({", ".join(graph.CAMERAS)}); empty: you start yours.'),
    ('arm', '', f'With sim:=false, the topics of an arm driver ({", ".join(graph.ARMS)}); empty: those of the graph.'),
    *((f'{name}_topic', '', f'With sim:=false, where `{name}` lies; empty: as `arm` says.') for name in graph.TOPICS),
    ('use_sim_time', 'false', 'Take data stamps from /clock. Watchdogs stay on the monotonic clock.'),
    ('local', 'true', 'All nodes on this machine: loopback discovery and the local Fast DDS profile.'),
)


def _is_true(context, name: str) -> bool:
    value = LaunchConfiguration(name).perform(context).lower()
    if value not in ('true', 'false', '1', '0'):
        raise ValueError(f'launch argument {name}: {value!r} is not true or false')
    return value in ('true', '1')


def _nodes(context):
    def text(name):
        return LaunchConfiguration(name).perform(context)
    options = graph.GraphOptions(namespace=text('namespace'), model=text('model'), params_file=text('params_file'),
                                 task=text('task'), sim=_is_true(context, 'sim'), camera=text('camera'),
                                 arm=text('arm'), topics=tuple((name, text(f'{name}_topic')) for name in graph.TOPICS
                                                               if text(f'{name}_topic')),
                                 use_sim_time=_is_true(context, 'use_sim_time'),
                                 nodes=graph.names(text('nodes')))
    environment = graph.environment(_is_true(context, 'local'))
    actions = [SetEnvironmentVariable(key, value) for key, value in environment.items()]
    # `ros2 launch` orphans its nodes on SIGTERM: they look for this process and end themselves.
    actions.append(SetEnvironmentVariable('FOSP_PARENT_PID', str(os.getpid())))
    for spec in graph.build(options):
        parameters = [*spec.params_files] + ([dict(spec.params)] if spec.params else [])
        # None, not an empty list: launch raises on an empty one when the process ends.
        ending = [Shutdown(reason=f'{spec.name} ended: nothing may move without it')] if spec.critical else None
        actions.append(Node(package=spec.package, executable=spec.executable, name=spec.name,
                            namespace=spec.namespace, parameters=parameters,
                            remappings=list(spec.remappings), output='screen', emulate_tty=True, on_exit=ending))
    return actions


def generate_launch_description() -> LaunchDescription:
    """Return the launch description; every argument has a description."""
    declared = [DeclareLaunchArgument(name, default_value=default, description=text)
                for name, default, text in ARGUMENTS]
    return LaunchDescription([*declared, OpaqueFunction(function=_nodes)])
