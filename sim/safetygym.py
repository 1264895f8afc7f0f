# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tasks of Safety-Gymnasium as decisions of four raw steps, with two cameras: a Gymnasium environment whose step has
the six values of Safety-Gymnasium. Imports mujoco and, through the adapter, safety_gymnasium; nothing of the learner.
"""

import dataclasses
from typing import ClassVar

import gymnasium
import numpy as np

from fosp_core.contract import Contract
from fosp_core.errors import FospError
from fosp_core.paths import config_file
from fosp_sim import gymnasium_adapter as adapter
from fosp_sim.render import OffscreenRenderer, choose_gl

FADING = tuple(f'SafetyPointFading{kind}{level}' for kind in ('Easy', 'Hard') for level in (0, 1, 2))
TASKS = ('SafetyPointGoal1', 'SafetyPointGoal2', 'SafetyPointButton1', 'SafetyPointPush1', 'SafetyCarGoal1',
         'SafetyCarGoal2', *FADING)
CONTRACT = 'contract_safetygym.yaml'
REPEAT = 4                      # raw steps of a decision, as in the preset of the FOSP authors
MAX_GEOMS = 500
FILM_CAMERA = 'fixedfar'


def is_task(name: str) -> bool:
    """Return whether `name` is one of TASKS, with or without its `-v0`."""
    return name.removesuffix('-v0') in TASKS


def parse_task(name: str) -> str:
    """Map `SafetyPointGoal1-v0` or `SafetyPointGoal1` to one of TASKS; raise FospError otherwise."""
    task = name.removesuffix('-v0')
    if task not in TASKS:
        raise FospError(f'task {name!r} is unknown, expected one of {", ".join(TASKS)}')
    return task


@dataclasses.dataclass(frozen=True)
class Ground:
    """What a privileged controller may know; metres, seconds and radians in the world frame.

    position, velocity, target: (2,); heading and turn rate of the robot; `avoid` (n, 3): x, y and the radius within
    which the robot's centre costs; `box`: (2,) of the thing to push, or None.
    """

    robot: str
    position: np.ndarray
    velocity: np.ndarray
    heading: float
    turn_rate: float
    target: np.ndarray
    avoid: np.ndarray
    box: np.ndarray | None = None
    box_half: float = 0.0


class SafetyGymEnv(gymnasium.Env):
    """One task of Safety-Gymnasium: at most 250 decisions, goals re-drawn on reaching, costs summed over the repeats.

    An action (2,) in [-1, 1] is (drive ahead, turn left). The Point takes it as it is: force, and speed of turning. The
    Car's two wheels get drive + turn and drive - turn, clipped, which reaches every pair of wheel commands. The
    observation holds `vision` and `vision_back`, uint8 (64, 64, 3). Reward: metres of approach, and 1 for each goal.
    Cost: the raw steps of the decision, 0 to 4, in which a constraint was violated; `info['costs']` has each component.
    `terminated` (no place for a new goal: rare) is apart from `truncated` (the end of the time).

    Parameters
    ----------
    task
        One of TASKS; may be set later, for the next reset.
    seed
        Seed of the first reset without a seed of its own; resets without one then count up from it.
    render
        False leaves the pictures black and needs no OpenGL.

    """

    metadata: ClassVar[dict] = {'render_modes': ['rgb_array'], 'render_fps': 10}
    render_mode = 'rgb_array'

    def __init__(self, task: str = 'SafetyPointGoal1', seed: int | None = None, render: bool = True):
        adapter.require()
        self.contract = Contract.load(config_file(CONTRACT))
        self._sizes = {c.name: (c.height, c.width) for c in self.contract.cameras}
        self._with_pictures = render
        if render:
            choose_gl()
        self._renderers: dict[tuple[int, int], OffscreenRenderer] = {}
        self._next_seed = 0 if seed is None else int(seed)
        self._builder = None
        self._task = ''
        self.task = task
        self.observation_space = gymnasium.spaces.Dict({
            name: gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8) for name, size in self._sizes.items()})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    @property
    def task(self) -> str:
        """The task, without `-v0`."""
        return self._task

    @task.setter
    def task(self, name: str) -> None:
        task = parse_task(name)
        if task != self._task:
            self.close()        # a GL context keeps the textures and meshes of the model that it was made with
            self._task, self._builder = task, None

    @property
    def robot(self) -> str:
        """`Point` or `Car`."""
        return 'Car' if self._task.startswith('SafetyCar') else 'Point'

    @property
    def model(self):
        """The compiled world of this episode."""
        return self._builder.task.model

    @property
    def data(self):
        """Its state."""
        return self._builder.task.data

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Draw a new layout; return (observation, info)."""
        if seed is None:
            seed = self._next_seed
        self._next_seed = seed + 1
        super().reset(seed=seed)
        self.seed = int(seed)
        if self._builder is None:
            self._builder = adapter.make_builder(f'{self._task}-v0', self.robot)
        self._builder.reset(seed=self.seed)
        self._steps = self._raw = self._goals = 0
        self._violation = False
        return self._observation(), self._info({})

    def step(self, action):
        """Apply `action` (2,) for four raw steps; return (observation, reward, cost, terminated, truncated, info)."""
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f'action {action} must hold 2 finite numbers')
        if self.robot == 'Car':
            action = np.clip([action[0] + action[1], action[0] - action[1]], -1.0, 1.0)
        reward_sum = cost_sum = 0.0
        costs: dict[str, float] = {}
        for _ in range(REPEAT):
            reward, cost, terminated, truncated, info = self._raw_step(action)
            reward_sum, cost_sum, self._raw = reward_sum + reward, cost_sum + cost, self._raw + 1
            self._goals += bool(info.get('goal_met'))
            for name, value in info.items():
                if name.startswith('cost_') and name != 'cost_sum':
                    costs[name] = costs.get(name, 0.0) + float(value)
            if terminated or truncated:
                break
        self._steps += 1
        self._violation = self._violation or cost_sum > 0
        return self._observation(), reward_sum, cost_sum, terminated, truncated and not terminated, self._info(costs)

    def _raw_step(self, action: np.ndarray) -> tuple[float, float, bool, bool, dict]:
        try:
            _, reward, cost, terminated, truncated, info = self._builder.step(action)
        except UnboundLocalError:
            # After a physics error the package returns a cost that it has not computed. The episode ends here.
            if not self._builder.truncated:
                raise
            return 0.0, 1.0, False, True, {'cost_exception': 1.0}
        return float(reward), float(cost), bool(terminated), bool(truncated), info

    def ground(self) -> Ground:
        """Return what a privileged controller may know."""
        inner = self._builder.task
        agent, matrix = inner.agent, inner.agent.mat
        ahead = matrix[:2, 0] if self.robot == 'Point' else -matrix[:2, 1]      # the car looks along its -y
        angular = self.data.body('agent').cvel[2]
        # Things that cost on touch are circles, and so is the robot (0.1 m; the car with its bumpers 0.18).
        body = 0.12 if self.robot == 'Point' else 0.18
        avoid = [(*p[:2], inner.hazards.size) for p in inner.hazards.pos] if hasattr(inner, 'hazards') else []
        if hasattr(inner, 'vases') and inner.vases.is_constrained:
            avoid += [(*p[:2], 1.3 * inner.vases.size + body) for p in inner.vases.pos]
        if hasattr(inner, 'pillars'):
            avoid += [(*p[:2], inner.pillars.size + body) for p in inner.pillars.pos]
        if hasattr(inner, 'gremlins'):
            # They run in circles: where each is, and where it is going.
            reach = 1.3 * inner.gremlins.size + body
            for i, p in enumerate(inner.gremlins.pos):
                velocity = self.data.body(f'gremlin{i}obj').cvel[3:5]
                avoid += [(*(p[:2] + ahead_s * velocity), reach) for ahead_s in (0.0, 0.3, 0.6)]
        if hasattr(inner, 'buttons'):
            avoid += [(*p[:2], inner.buttons.size + body) for i, p in enumerate(inner.buttons.pos)
                      if i != inner.buttons.goal_button]
        box = inner.push_box if hasattr(inner, 'push_box') else None
        return Ground(self.robot, agent.pos[:2], agent.vel[:2], float(np.arctan2(ahead[1], ahead[0])), float(angular),
                      inner.goal.pos[:2], np.array(avoid).reshape(-1, 3), None if box is None else box.pos[:2],
                      0.0 if box is None else float(box.size))

    def _observation(self) -> dict[str, np.ndarray]:
        return {name: self.render_frame(size[1], size[0], name) if self._with_pictures
                else np.zeros((*size, 3), np.uint8) for name, size in self._sizes.items()}

    def _info(self, costs: dict[str, float]) -> dict:
        return {'success': self._goals > 0, 'violation': self._violation, 'task': self._task, 'seed': self.seed,
                'steps': self._steps, 'raw_steps': self._raw, 'goals': self._goals, 'costs': costs}

    def render(self) -> np.ndarray:
        """Return the picture of the front camera, uint8 (64, 64, 3)."""
        name, (height, width) = next(iter(self._sizes.items()))
        return self.render_frame(width, height, name)

    def render_frame(self, width: int, height: int, camera: str = FILM_CAMERA) -> np.ndarray:
        """Return a picture of any size, for films; one GL context is kept per size."""
        if (height, width) not in self._renderers:
            view = self.model.vis.global_
            small, view.offwidth, view.offheight = (view.offwidth, view.offheight), width, height
            try:
                self._renderers[height, width] = OffscreenRenderer(self.model, height, width, MAX_GEOMS, True)
            finally:
                view.offwidth, view.offheight = small
        return self._renderers[height, width].render(self.model, self.data, camera)

    def close(self) -> None:
        """Free every GL context; may be called twice."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
