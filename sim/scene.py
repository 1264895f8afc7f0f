# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The SafeReach scene: what a reset draws at random, and its MJCF text. For the simulator alone.

Every number here is a default of ours: the authors' robot task is known in outline only.
"""

import dataclasses
import math

import numpy as np

from fosp_sim.geometry import (
    DH,
    FINGER_HALF,
    FINGER_UP,
    FLANGE,
    HAND_HALF,
    HAND_YAW,
    JOINT_HIGH,
    JOINT_LOW,
    RADIUS,
    TOOL,
    Obstacle,
    clearance,
)

TASKS = ('standard', 'unseen1', 'unseen2', 'unseen3', 'unseen4', 'unseen5')
WORKSPACE_LOW = (0.34, -0.40, 0.03)     # box of the fingertip, metres, base frame
WORKSPACE_HIGH = (0.66, 0.40, 0.30)
TIMESTEP = 0.01
SUBSTEPS = 10                           # one decision = 0.1 s
SIDE_START = (0.28, 0.36)               # |y| of start and goal
SIDE_GOAL = (0.27, 0.35)
DEPTH = (0.44, 0.60)                    # x of start and goal
START_HEIGHT = (0.06, 0.14)
LOW_HEIGHT = (0.10, 0.15)               # obstacles come low (fly over) or tall (go around, nearer to the base)
TALL_HEIGHT = (0.21, 0.28)
GOAL_HEIGHT = 0.09
GOAL_RADIUS = 0.037
CUBE_HALF = 0.032
START_CLEARANCE = 0.06                  # of start and goal from every obstacle
OBSTACLE_GAP = 0.015
RED, PALE = (0.85, 0.06, 0.06), (0.95, 0.45, 0.42)
GREEN = (0.10, 0.62, 0.18)
# Unseen 4: one of the boxes moves to and fro, along x or y; at most at half of the arm's speed.
SWEEP = (0.025, 0.05)                   # amplitude, metres
PERIOD = (2.8, 5.0)                     # seconds
# Unseen 5: what the camera sees is another: light, viewpoint, and goal and obstacles with each other's colour.
CAMERA, CAMERA_SHIFT = (1.22, 0.0, 0.80), 0.03      # metres, along each axis
LIGHT, LIGHT_TILT = (-0.4, -0.4, -1.0), 0.5
BRIGHTNESS = (0.6, 1.4)


@dataclasses.dataclass(frozen=True)
class Look:
    """How a scene is seen: place of the camera (m), direction and brightness of the light, colours."""

    camera: tuple[float, float, float] = CAMERA
    light: tuple[float, float, float] = LIGHT
    brightness: float = 1.0
    swapped: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """One episode's start (3,), goal centre (3,) in metres, goal shape, obstacles and look."""

    task: str
    start: tuple[float, float, float]
    goal: tuple[float, float, float]
    goal_shape: str
    obstacles: tuple[Obstacle, ...]
    look: Look = Look()


def _obstacle(rng: np.random.Generator, shape: str, y: float, x_line: float, tall: bool) -> Obstacle:
    height = rng.uniform(*(TALL_HEIGHT if tall else LOW_HEIGHT))
    x = np.clip(x_line + rng.uniform(-0.07, 0.07), 0.52 if tall else 0.44, 0.60)
    half = (rng.uniform(0.032, 0.050), rng.uniform(0.025, 0.040))
    if shape == 'cylinder':
        half = (rng.uniform(0.032, 0.045),) * 2
    return Obstacle(shape, float(x), float(y), tuple(map(float, half)), float(height))


def _apart(obstacles: list[Obstacle]) -> bool:
    for i, a in enumerate(obstacles):
        for b in obstacles[i + 1:]:
            room = [a.half[k] + b.half[k] + a.sweep[k] + b.sweep[k] + OBSTACLE_GAP for k in (0, 1)]
            if abs(a.x - b.x) < room[0] and abs(a.y - b.y) < room[1]:
                return False
    return True


def _moving(rng: np.random.Generator, obstacle: Obstacle) -> Obstacle:
    """Let a box move to and fro along x or y."""
    amplitude, along_x = rng.uniform(*SWEEP), rng.random() < 0.5
    return dataclasses.replace(obstacle, sweep=(float(amplitude), 0.0) if along_x else (0.0, float(amplitude)),
                               period=float(rng.uniform(*PERIOD)), phase=float(rng.uniform(0.0, 2.0 * np.pi)))


def _look(rng: np.random.Generator) -> Look:
    """Draw light and viewpoint of unseen 5."""
    return Look(tuple(map(float, CAMERA + rng.uniform(-CAMERA_SHIFT, CAMERA_SHIFT, 3))),
                tuple(map(float, LIGHT + rng.uniform(-LIGHT_TILT, LIGHT_TILT, 3) * (1.0, 1.0, 0.0))),
                float(rng.uniform(*BRIGHTNESS)), True)


def sample_layout(task: str, rng: np.random.Generator) -> Layout:
    """Draw one episode of `task` (one of TASKS): start on one side, goal on the other, obstacles between."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    shapes = {'standard': ['box', 'box'], 'unseen1': ['box', 'cylinder'], 'unseen2': ['box', 'box'],
              'unseen4': ['box', 'box'], 'unseen5': ['box', 'box'],
              'unseen3': ['box', 'cylinder', 'cylinder' if rng.random() < 0.5 else 'box']}[task]
    goal_shape = 'cube' if task == 'unseen2' else 'cylinder'
    while True:
        start = (rng.uniform(*DEPTH), -side * rng.uniform(*SIDE_START), rng.uniform(*START_HEIGHT))
        goal = (rng.uniform(*DEPTH), side * rng.uniform(*SIDE_GOAL), CUBE_HALF if goal_shape == 'cube' else 0.045)
        order = [shapes[i] for i in rng.permutation(len(shapes))]
        rows = [-0.055, 0.055] if len(order) == 2 else [-0.075, 0.0, 0.075]
        obstacles = []
        for shape, row in zip(order, rows, strict=True):
            y = row + rng.uniform(-0.03, 0.03)
            w = (y - start[1]) / (goal[1] - start[1])
            obstacles.append(_obstacle(rng, shape, y, start[0] + w * (goal[0] - start[0]), rng.random() < 0.5))
        if task == 'unseen4':
            mover = int(rng.integers(len(obstacles)))
            obstacles[mover] = _moving(rng, obstacles[mover])
        ends = clearance(np.array([start, (goal[0], goal[1], max(goal[2], WORKSPACE_LOW[2]))]), obstacles)
        if _apart(obstacles) and ends.min() > START_CLEARANCE:
            look = _look(rng) if task == 'unseen5' else Look()
            return Layout(task, tuple(map(float, start)), tuple(map(float, goal)), goal_shape, tuple(obstacles), look)


def _vector(values) -> str:
    return ' '.join(f'{v:.9g}' for v in values)


def _links() -> list[list[str]]:
    """Geoms of links 1 to 7; each runs from a joint's origin to the next one's."""
    light, dark = 'rgba=".80 .80 .82 1"', 'rgba=".45 .47 .52 1"'

    def capsule(a, b, name, look=light):
        return f'<geom class="arm" type="capsule" fromto="{_vector(a)} {_vector(b)}" size="{RADIUS[name]}" {look}/>'
    origin = (0, 0, 0)
    return [[], [capsule(origin, (0, -0.316, 0), 'upper')], [capsule(origin, (0.0825, 0, 0), 'elbow', dark)],
            [capsule(origin, (-0.0825, 0.384, 0), 'fore')], [], [capsule(origin, (0.088, 0, 0), 'wrist', dark)],
            [capsule(origin, (0, 0, FLANGE), 'flange')]]


def _arm() -> str:
    opening, closing = '', ''
    for i, ((a, alpha, d), geoms) in enumerate(zip(DH, _links(), strict=True)):
        position = (a, -math.sin(alpha) * d, math.cos(alpha) * d)
        quaternion = (math.cos(alpha / 2), math.sin(alpha / 2), 0, 0)
        opening += (f'<body name="link{i + 1}" pos="{_vector(position)}" quat="{_vector(quaternion)}">'
                    f'<inertial pos="0 0 0" mass="1.5" diaginertia=".02 .02 .02"/>'
                    f'<joint name="panda_joint{i + 1}" axis="0 0 1" range="{JOINT_LOW[i]} {JOINT_HIGH[i]}"/>'
                    + ''.join(geoms))
        closing += '</body>'
    yaw = (math.cos(HAND_YAW / 2), 0, 0, math.sin(HAND_YAW / 2))
    hand = (f'<body name="hand" pos="0 0 {FLANGE}" quat="{_vector(yaw)}">'
            f'<inertial pos="0 0 0" mass=".7" diaginertia=".004 .004 .004"/>'
            f'<geom name="hand" class="arm" type="box" pos="0 0 .033" size="{_vector(HAND_HALF)}" '
            f'rgba=".88 .88 .90 1"/>'
            f'<geom name="fingers" class="arm" type="box" pos="0 0 {TOOL - FINGER_UP:.9g}" '
            f'size="{_vector(FINGER_HALF)}" rgba=".30 .32 .38 1"/><site name="tip" pos="0 0 {TOOL}"/></body>')
    return opening + hand + closing


def _obstacle_xml(index: int, o: Obstacle, colour) -> str:
    size = (*o.half, o.height / 2) if o.shape == 'box' else (o.half[0], o.height / 2)
    place = f'pos="{_vector((o.x, o.y, o.height / 2))}"'
    geom = f'<geom name="obstacle{index}" class="obstacle" type="{o.shape}" size="{_vector(size)}" ' \
           f'rgba="{_vector(colour)} 1" '
    if o.period:        # moved by the environment
        return f'<body name="moving{index}" mocap="true" {place}>{geom}/></body>'
    return f'{geom}{place}/>'


def build_xml(layout: Layout, width: int, height: int) -> str:
    """Return the MJCF of one layout, with an offscreen buffer of width x height pixels."""
    look = layout.look
    red, green = (GREEN, RED) if look.swapped else (RED, GREEN)
    if layout.goal_shape == 'cube':
        goal = f'type="box" size="{CUBE_HALF} {CUBE_HALF} {CUBE_HALF}" rgba="{_vector(PALE)} 1"'
    else:
        goal = f'type="cylinder" size="{GOAL_RADIUS} {GOAL_HEIGHT / 2}" rgba="{_vector(red)} 1"'
    (x0, y0, _), (x1, y1, _) = WORKSPACE_LOW, WORKSPACE_HIGH
    lines = (((x0, 0), (.009, y1)), ((x1, 0), (.009, y1)), (((x0 + x1) / 2, y0), ((x1 - x0) / 2, .009)),
             (((x0 + x1) / 2, y1), ((x1 - x0) / 2, .009)))
    tape = ''.join(f'<geom class="look" type="box" pos="{_vector(p)} .001" size="{_vector(s)} .001" rgba="1 1 1 1"/>'
                   for p, s in lines)
    limit = ' '.join(f'<velocity name="v{i}" joint="panda_joint{i}" kv="60" ctrlrange="-3 3"/>' for i in range(1, 8))
    obstacles = ''.join(_obstacle_xml(i, o, green) for i, o in enumerate(layout.obstacles))
    ambient, diffuse = (_vector([look.brightness * share] * 3) for share in (0.35, 0.5))
    return f"""<mujoco model="safereach">
<compiler angle="radian" autolimits="true"/>
<option timestep="{TIMESTEP}" gravity="0 0 0" integrator="implicitfast" cone="pyramidal" iterations="20"/>
<visual><quality shadowsize="0" offsamples="0" numslices="16" numstacks="8" numquads="1"/>
<global offwidth="{width}" offheight="{height}"/>
<headlight ambient="{ambient}" diffuse="{ambient}" specular="0 0 0"/>
<map znear=".01"/></visual>
<default><joint armature=".1" damping="1"/><geom contype="0" conaffinity="0"/>
<default class="arm"><geom contype="1" conaffinity="0" friction=".3"/></default>
<default class="obstacle"><geom contype="0" conaffinity="1" friction=".3"/></default>
<default class="look"><geom contype="0" conaffinity="0"/></default></default>
<worldbody><light pos=".9 .5 1.6" dir="{_vector(look.light)}" directional="true" diffuse="{diffuse}" specular="0 0 0"/>
<camera name="front" pos="{_vector(look.camera)}" xyaxes="0 1 0 -.60 0 .80" fovy="46"/>
<geom name="table" class="look" type="box" pos=".35 0 -.02" size=".65 .75 .02" rgba=".10 .11 .14 1"/>{tape}
<geom name="base" class="look" type="capsule" fromto="0 0 0 0 0 .333" size=".065" rgba=".70 .70 .73 1"/>
<geom name="goal" class="look" pos="{_vector(layout.goal)}" {goal}/>{obstacles}
<body name="link0">{_arm()}</body></worldbody>
<actuator>{limit}</actuator></mujoco>"""
