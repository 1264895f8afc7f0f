# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Typed configuration of a training run, read from a YAML preset. Every key has a default; unknown keys are refused.

Values marked (ours) are not in the paper or its code: see docs/explanation/algorithm.md.
"""

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from fosp_core.errors import FospError
from fosp_core.paths import config_file, share_dir


def _choice(default: str, *others: str):
    return dataclasses.field(default=default, metadata={'choices': (default, *others)})


def _number(default, low: float, high: float = float('inf'), open_ends: bool = False):
    return dataclasses.field(default=default, metadata={'range': (low, high, open_ends)})


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes; the defaults are the released `fosp` preset."""

    deter: int = 512
    stoch: int = 48
    classes: int = 48
    hidden: int = 512
    units: int = 512
    layers: int = 2
    cnn_depth: int = 32
    cnn_multipliers: tuple[int, ...] = (1, 2, 4, 8)
    decoder_norm: bool = True
    vector_layers: int = 5
    vector_units: int = 1024
    bins: int = 255
    unimix: float = 0.01
    posterior_scale: float = 1.0     # factor on the posterior's initial logits: less noise at the start (ours)


@dataclasses.dataclass(frozen=True)
class WorldModelConfig:
    """World-model loss and optimiser (algorithm.md 1.4)."""

    lr: float = 1e-4
    eps: float = 1e-8
    clip: float = 1000.0
    kl_dynamic: float = 0.5
    kl_representation: float = 0.1
    free_nats: float = 1.0
    cost_weight: float = 10.0
    vector_scale: float = 1.0
    colour_weight: float = 0.0       # extra weight of saturated pixels: small coloured objects (ours)
    autoencode: float = 0.0          # weight of decoding every third frame straight from the embedding (ours)


@dataclasses.dataclass(frozen=True)
class BehaviourConfig:
    """Imagination, critics, reachability and actor (algorithm.md 2 and 3)."""

    horizon: int = 15
    imagine_starts: int = 0          # 0: every posterior state; else that many, drawn at random (ours)
    discount: float = _number(1.0 - 1.0 / 333.0, 0.0, 1.0)
    lam: float = _number(0.95, 0.0, 1.0)
    lr: float = 3e-5
    eps: float = 1e-5
    clip: float = 100.0
    ema: float = _number(0.02, 0.0, 1.0)
    ema_regulariser: float = 1.0
    reward_expectile: float = _number(0.8, 0.0, 1.0, True)    # IQL convention
    cost_expectile: float = _number(0.2, 0.0, 1.0, True)
    value_loss: str = _choice('twohot_ce', 'squared')
    in_sample: bool = True           # L_Q2 and V on dataset actions; False: imagined actions only
    reach_discount: float = _number(0.99, 0.0, 1.0)
    reach_lr_scale: float = 0.3      # slower than the critics (RESPO's time-scales)
    reach_lam: float = 0.0           # multi-step targets on dataset windows; 0: one step (ours)
    reach_dropout: float = 0.0       # while training (ours)
    reach_imagined: float = 1.0      # weight of the term on imagined steps (ours)
    cost_threshold: float = 0.5      # imagined violation
    actor_objective: str = _choice('in_sample', 'dynamics')  # weighted regression, or through the world model
    weight_form: str = _choice('mixture', 'product', 'uniform')  # uniform: behaviour cloning
    beta_reward: float = 1.0
    beta_cost: float = 1.0
    weight_clip: float = 100.0
    feasible_gate: float = 0.1       # 1[Q^c <= gate] on the feasible branch; negative: no gate
    use_reachability: bool = True    # False: u = 1 everywhere
    feasibility: str = _choice('action', 'state')  # u of the weighted action (ours), or of one drawn from pi (P1)
    entropy: float = 3e-4
    normaliser_decay: float = 0.99


@dataclasses.dataclass(frozen=True)
class ConstraintConfig:
    """Constraint handler: `alm` per gradient step on predicted cost; `pid`, `apid` per episode on measured cost."""

    kind: str = _choice('alm', 'none', 'pid', 'apid')
    cost_limit: float = 0.0
    lambda_init: float = 1e-6
    penalty_init: float = 5e-9
    penalty_growth: float = 1e-5
    penalty_max: float = 1.0
    gain_p: float = 1e-4             # pid, apid
    gain_i: float = 1e-5
    gain_d: float = 1e-5
    pid_ema: float = 0.95            # pid
    pid_delay: int = 10
    adapt_p: float = 0.05            # apid: alpha, beta, gamma
    adapt_i: float = 0.05
    adapt_d: float = 0.05
    gain_bound: float = 10.0
    window: int = 10


@dataclasses.dataclass(frozen=True)
class ExpansionConfig:
    """Policy expansion (algorithm.md 3.1)."""

    enabled: bool = True
    inverse_temperature: float = 5.0
    cost_coefficient: float = 0.1
    reach_gate: float = 0.1          # negative: no gate (ours)
    init: str = _choice('copy', 'fresh')
    online_weight: str = _choice('linear', 'exp', 'none')  # linear: P1; none: no term on imagined actions
    online_lr_scale: float = 0.1     # of every learning rate: fresh optimisers move each weight by lr per step (ours)
    online_in_sample: float = 1.0    # weight of the dataset actor term while fine-tuning (ours); 0: P1's loss alone


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Marvel's value pre-alignment before the online steps (algorithm.md 4.1); every value is ours."""

    steps: int = _number(0, 0)       # 0: warm start without it
    batch: int = 64
    length: int = 9
    episodes: int = _number(200, 1)  # at most so many offline episodes are encoded for it, evenly spread
    lr: float = 3e-4
    ema: float = _number(0.02, 0.0, 1.0)
    alpha_reward: float = 1e-3       # entropy in the targets; larger for reward than for cost, as Marvel intends
    alpha_cost: float = 2e-4
    min_rho: float = _number(0.0, -1.0, 1.0)  # refuse when Spearman's rho of Q^r or Q^c after it is below
    max_drop: float = _number(0.1, 0.0, 2.0)  # ... or has fallen by more than this


@dataclasses.dataclass(frozen=True)
class GatesConfig:
    """What a fine-tuned model must show before it is published (docs/explanation/gates.md); every value is ours."""

    level: float = _number(0.05, 0.0, 0.5, True)            # of each one-sided test
    risk_margin: float = _number(0.02, -1.0, 1.0)           # rise of the mean risk that is still none
    warned_margin: float = _number(0.2, -1.0, 1.0)          # fall of the share of records warned of, before violations
    estimate_margin: float = _number(0.25, -1.0, 1.0)       # part of itself that the mean estimate may fall by, else
    online_holdout: float = _number(0.2, 0.0, 0.5)          # share of the robot's episodes kept from training
    episodes: int = _number(40, 2)                          # at most so many of each source are looked at


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Batches, seeds, logging."""

    batch: int = 16
    length: int = 64
    steps: int = 10000               # world model and behaviour together
    final_lr: float = 1.0            # of every learning rate at the end of these steps, along a cosine (ours)
    behaviour_steps: int = 0         # then behaviour alone, on the states of the frozen world model (ours)
    behaviour_batch: int = 64
    behaviour_length: int = 9
    behaviour_final_lr: float = 1.0  # of every learning rate at the end of that phase, along a cosine (ours)
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    online_fraction: float = 0.5
    precision: str = 'float32'       # float32 | bfloat16 (products of the forward passes; weights stay float32)
    bf16_on_cpu: bool = False        # bfloat16 is hopelessly slow on most CPUs, and refused there
    compile: bool = False            # torch.compile of networks and recurrent steps
    cuda_graph: bool = False         # the whole gradient step as one CUDA graph


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole run."""

    name: str = 'fosp'
    method: str = 'fosp'             # the overlay config/method_<name>.yaml that was applied
    replaced: dict = dataclasses.field(default_factory=dict)     # what that overlay took the place of
    contract: str = 'safereach'      # what the preset was made for, config/contract_<contract>.yaml: for benchmarks
    network: NetworkConfig = NetworkConfig()
    world_model: WorldModelConfig = WorldModelConfig()
    behaviour: BehaviourConfig = BehaviourConfig()
    constraint: ConstraintConfig = ConstraintConfig()
    expansion: ExpansionConfig = ExpansionConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    gates: GatesConfig = GatesConfig()
    train: TrainConfig = TrainConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as stored beside the weights."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = 'config') -> 'Config':
        """Build from nested plain data; raise FospError naming an unknown or ill-typed key."""
        return _build(cls, data, where)

    @classmethod
    def load(cls, preset_or_path: str | Path, overrides: list[str] | None = None,
             method: str | None = None) -> 'Config':
        """Read `config/preset_<name>.yaml` or a path, lay a method over it, then apply `section.key=value` overrides.

        Raises FospError naming file and key.
        """
        text = str(preset_or_path)
        path = Path(text) if text.endswith(('.yaml', '.yml')) else config_file(f'preset_{text}.yaml')
        data = _read(path)
        if method is not None:  # every key, so that what the method replaces is known
            data = cls.from_dict(data, str(path)).to_dict()
        return cls.from_dict(_overlaid(data, overrides, method), str(path))

    def changed(self, overrides: list[str] | None = None, method: str | None = None) -> 'Config':
        """Return this configuration with a method and `section.key=value` overrides laid over it; as in `load`.

        The method takes the place of an earlier one, of which nothing is left.
        """
        return self.from_dict(_overlaid(self.to_dict(), overrides, method)) if overrides or method else self


def method_names() -> list[str]:
    """Names of the methods: the paper's, Marvel's, the baselines and the ablations, each one file of `config/`."""
    return sorted(p.stem.removeprefix('method_') for p in (share_dir() / 'config').glob('method_*.yaml'))


def _read(path: Path) -> dict:
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise FospError(f'{path}: {error.strerror}') from None
    except yaml.YAMLError as error:
        raise FospError(f'{path}: not YAML: {" ".join(str(error).split())}') from None
    if not isinstance(data, dict):
        raise FospError(f'{path}: expected a mapping, found {data!r}')
    return data


def _overlaid(data: dict, overrides: list[str] | None, method: str | None) -> dict:
    if method is not None:
        if method not in method_names():
            raise FospError(f'method {method!r}, expected one of {", ".join(method_names())}')
        for section, values in data.pop('replaced', {}).items():
            data[section] = {**data[section], **values}
        overlay = _read(config_file(f'method_{method}.yaml'))
        replaced = {section: {k: data[section][k] for k in values} for section, values in overlay.items()}
        for section, values in overlay.items():
            data[section] = {**data[section], **values}
        data |= {'method': method, 'replaced': replaced}
    for override in overrides or []:
        key, separator, value = override.partition('=')
        if not separator:
            raise FospError(f'--set {override}: expected section.key=value')
        node = data
        *sections, leaf = key.split('.')
        if not sections and leaf in ('method', 'replaced'):    # the name alone would change nothing
            raise FospError(f'--set {override}: a method is chosen with --method')
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise FospError(f'--set {override}: {section} is no section')
        try:
            node[leaf] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise FospError(f'--set {override}: {value!r} is not YAML') from None
    return data


def _build(cls, data, where: str):
    if not isinstance(data, dict):
        raise FospError(f'{where}: expected a mapping, found {data!r}')
    hints = get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in hints:
            raise FospError(f'{where}: unknown key {key}; known: {", ".join(hints)}')
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            values[key] = _build(kind, value, f'{where}: {key}')
        elif kind in (int, float, str, bool):
            # YAML reads 1e-4 as text: accept whatever converts without loss of kind.
            try:
                if kind is bool and not isinstance(value, bool):
                    raise ValueError
                if kind is int and (isinstance(value, bool) or int(value) != float(value)):
                    raise ValueError
                values[key] = kind(value)
            except (TypeError, ValueError, OverflowError):
                raise FospError(f'{where}: key {key} is {value!r}, expected {kind.__name__}') from None
        elif kind is dict:
            if not isinstance(value, dict):
                raise FospError(f'{where}: key {key} is {value!r}, expected a mapping')
            values[key] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value):
            values[key] = tuple(value)
        else:
            raise FospError(f'{where}: key {key} is {value!r}, expected a list of whole numbers')
    for field in dataclasses.fields(cls):
        value = values.get(field.name, field.default)
        choices, limits = field.metadata.get('choices'), field.metadata.get('range')
        if choices and value not in choices:
            raise FospError(f'{where}: key {field.name} is {value!r}, expected one of {", ".join(choices)}')
        if limits:
            low, high, open_ends = limits
            if not (low < value < high if open_ends else low <= value <= high):
                raise FospError(f'{where}: key {field.name} is {value!r}, expected {"more than " if open_ends else ""}'
                                f'{low:g} to {"less than " if open_ends else ""}{high:g}')
    return cls(**values)
