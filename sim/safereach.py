# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SafeReach: a simulated Panda reaches a goal without touching obstacles. A Gymnasium environment whose step has the
six values of Safety-Gymnasium. Imports mujoco; knows nothing of the learner.
"""

from typing import ClassVar

import gymnasium
import numpy as np

from fosp_core.contract import Contract
from fosp_core.errors import FospError
from fosp_core.paths import config_file
from fosp_sim import geometry, scene
from fosp_sim.render import OffscreenRenderer, choose_gl

TASKS = scene.TASKS
MAX_STEPS = 80
SUCCESS_M = 0.045
IK_EVERY = 2                    # substeps per inverse-kinematics update (20 ms)
DAMPING = 0.03
POSITION_GAIN = 12.0            # 1/s, towards the position that the command asks for
ROTATION_GAIN = 8.0             # 1/s, holds the gripper down
NULL_GAIN = 4.0                 # 1/s, holds the arm in its vertical plane
GRIPPER_DOWN = np.diag([1.0, -1.0, -1.0])


def parse_task(name: str) -> str:
    """Map 'safereach', 'safereach/unseen3' or 'unseen3' to one of TASKS; raise FospError otherwise."""
    task = name.removeprefix('safereach').removeprefix('/') or 'standard'
    if task not in TASKS:
        raise FospError(f'task {name!r} is unknown, expected safereach or one of {", ".join(TASKS)}')
    return task


class SafeReachEnv(gymnasium.Env):
    """One arm, one goal, some obstacles; 10 decisions a second, at most 80 of them.

    An action (3,) in [-1, 1] is the fingertip's velocity in the base frame, 1 = 0.25 m/s. The observation holds
    `image` uint8 (64, 64, 3) and `ee_pose` float32 (3,), the fingertip in metres. The reward is 1 on the step that
    reaches the goal, which terminates; the cost is 1 on each step in which any part of the arm touches an obstacle.

    Parameters
    ----------
    task
        One of TASKS.
    seed
        Seed of the first reset without a seed of its own; resets without one then count up from it.
    render
        False leaves `image` black and needs no OpenGL (for tests of the dynamics).

    """

    metadata: ClassVar[dict] = {'render_modes': ['rgb_array'], 'render_fps': 10}
    render_mode = 'rgb_array'

    def __init__(self, task: str = 'standard', seed: int | None = None, render: bool = True):
        self.task = parse_task(task)
        self.contract = Contract.load(config_file('contract_safereach.yaml'))
        camera = self.contract.cameras[0]
        self._size = (camera.height, camera.width)
        self._with_pictures = render
        if render:
            choose_gl()
        import mujoco
        self._mujoco = mujoco
        self._renderers: dict[tuple[int, int], OffscreenRenderer] = {}
        self._next_seed = 0 if seed is None else int(seed)
        self._speed = np.array(self.contract.action.high)
        self.layout: scene.Layout | None = None
        self.observation_space = gymnasium.spaces.Dict({
            'image': gymnasium.spaces.Box(0, 255, (*self._size, 3), np.uint8),
            'ee_pose': gymnasium.spaces.Box(-2.0, 2.0, (3,), np.float32)})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Draw a new layout; return (observation, info). `options={'layout': Layout}` sets it instead."""
        if seed is None:
            seed = self._next_seed
        self._next_seed = seed + 1
        super().reset(seed=seed)
        self.seed = int(seed)
        # A generator of our own: two tasks with the same seed must not share their random stream.
        rng = np.random.default_rng([self.seed, TASKS.index(self.task)])
        self.layout = (options or {}).get('layout') or scene.sample_layout(self.task, rng)
        mujoco = self._mujoco
        self.model = mujoco.MjModel.from_xml_string(scene.build_xml(self.layout, self._size[1], self._size[0]))
        self.data = mujoco.MjData(self.model)
        self._tip = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, 'tip')
        self._arm_geoms = np.flatnonzero(self.model.geom_contype == 1)
        self._obstacle_geoms = np.flatnonzero(self.model.geom_conaffinity == 1)
        self._moving = [(int(self.model.body(f'moving{i}').mocapid[0]), o)
                        for i, o in enumerate(self.layout.obstacles) if o.period]
        self._move(0.0)
        self.data.qpos[:] = geometry.inverse(self.layout.start)
        mujoco.mj_forward(self.model, self.data)
        self._jacobian = np.zeros((6, self.model.nv))
        self._steps, self._path = 0, 0.0
        self._success, self._violation, self._touched = False, False, ''
        self._min_clearance = self.clearance()
        return self._observation(), self._info()

    def step(self, action):
        """Apply `action` (3,) for 0.1 s; return (observation, reward, cost, terminated, truncated, info)."""
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        if action.shape != (3,) or not np.isfinite(action).all():
            raise ValueError(f'action {action} must hold 3 finite numbers')
        low, high = np.array(scene.WORKSPACE_LOW), np.array(scene.WORKSPACE_HIGH)
        begin = self.tip
        target = np.clip(begin + action * self._speed * 0.1, low, high)
        touched = False
        for substep in range(scene.SUBSTEPS):
            if substep % IK_EVERY == 0:
                done = (substep + IK_EVERY) / scene.SUBSTEPS
                velocity = (target - begin) / 0.1
                self._servo(velocity, begin + (target - begin) * (done - IK_EVERY / scene.SUBSTEPS))
            if self._moving:
                self._move(0.1 * (self._steps + (substep + 1) / scene.SUBSTEPS))
            self._mujoco.mj_step(self.model, self.data)
            if self.data.ncon and not touched:      # by the collision bits every contact is arm against obstacle
                touched, self._touched = True, self._touched or self._describe(self.data.contact[0])
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_comPos(self.model, self.data)
        self._steps += 1
        self._path += float(np.linalg.norm(self.tip - begin))
        self._success = bool(np.linalg.norm(self.tip - np.array(self.layout.goal)) < SUCCESS_M)
        self._violation = self._violation or touched
        self._min_clearance = min(self._min_clearance, 0.0 if touched else self.clearance())
        truncated = self._steps >= MAX_STEPS and not self._success
        return self._observation(), float(self._success), float(touched), self._success, truncated, self._info()

    def _describe(self, contact) -> str:
        """Return which part of the arm met which face of which obstacle."""
        part, obstacle = sorted(contact.geom, key=lambda g: g in self._obstacle_geoms)
        name = self.model.geom(part).name or self.model.body(self.model.geom_bodyid[part]).name
        shape = self.layout.obstacles[int(self.model.geom(obstacle).name.removeprefix('obstacle'))].shape
        return f'{name}, {"top" if abs(contact.frame[2]) > 0.7 else "side"} of a {shape}'

    def _move(self, seconds: float) -> None:
        """Put the moving obstacles where they are so long after the reset."""
        for index, obstacle in self._moving:
            self.data.mocap_pos[index, :2] = obstacle.at(seconds)

    def _servo(self, velocity: np.ndarray, reference: np.ndarray) -> None:
        """Set joint speeds by damped least squares: move at `velocity` (3,), hold the gripper down."""
        mujoco, data = self._mujoco, self.data
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_comPos(self.model, data)
        mujoco.mj_jacSite(self.model, data, self._jacobian[:3], self._jacobian[3:], self._tip)
        rotation = data.site_xmat[self._tip].reshape(3, 3)
        error = 0.5 * np.cross(rotation.T, GRIPPER_DOWN.T).sum(0)
        twist = np.concatenate([velocity + POSITION_GAIN * (reference - data.site_xpos[self._tip]),
                                ROTATION_GAIN * error])
        j = self._jacobian
        pull = np.zeros(7)
        pull[2], pull[4] = -NULL_GAIN * data.qpos[2], -NULL_GAIN * data.qpos[4]
        gram = j @ j.T
        gram.flat[::7] += DAMPING ** 2
        speed = pull + j.T @ np.linalg.solve(gram, twist - j @ pull)
        over = np.max(np.abs(speed) / geometry.JOINT_SPEED)
        data.ctrl[:] = speed / max(over, 1.0)

    @property
    def tip(self) -> np.ndarray:
        """Fingertip position (3,), metres, base frame."""
        return self.data.site_xpos[self._tip].copy()

    def clearance(self) -> float:
        """Signed distance in metres between the arm and the nearest obstacle."""
        best = 1.0
        for obstacle in self._obstacle_geoms:
            for part in self._arm_geoms:
                best = min(best, self._mujoco.mj_geomDistance(self.model, self.data, part, obstacle, best, None))
        return float(best)

    def ee_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Return fingertip position (3,) in metres and quaternion (4,) as x, y, z, w, base frame."""
        quaternion = np.zeros(4)
        self._mujoco.mju_mat2Quat(quaternion, self.data.site_xmat[self._tip])
        return self.tip, np.roll(quaternion, -1)

    def joint_state(self) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """Return names, positions (7,) in rad and velocities (7,) in rad/s."""
        return geometry.JOINT_NAMES, self.data.qpos.copy(), self.data.qvel.copy()

    def _observation(self) -> dict[str, np.ndarray]:
        image = self.render() if self._with_pictures else np.zeros((*self._size, 3), np.uint8)
        return {'image': image, 'ee_pose': self.tip.astype(np.float32)}

    def _info(self) -> dict:
        return {'success': self._success, 'violation': self._violation, 'task': self.task, 'seed': self.seed,
                'min_clearance': self._min_clearance, 'goal': np.array(self.layout.goal), 'steps': self._steps,
                'path_m': self._path, 'touched': self._touched}

    def render(self) -> np.ndarray:
        """Return the contract's picture, uint8 (64, 64, 3)."""
        return self.render_frame(self._size[1], self._size[0])

    def render_frame(self, width: int, height: int, camera: str = 'front', segment: bool = False) -> np.ndarray:
        """Return a picture of any size up to 1024 pixels, for films; one GL context is kept per size."""
        if (height, width) not in self._renderers:
            model = self.model
            if (height, width) != self._size:
                xml = scene.build_xml(self.layout, width, height)
                model = self._mujoco.MjModel.from_xml_string(xml)
            self._renderers[height, width] = OffscreenRenderer(model, height, width)
        return self._renderers[height, width].render(self.model, self.data, camera, segment)

    def close(self) -> None:
        """Free every GL context; may be called twice."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
