# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Typed configuration of a training run, read from a YAML preset. Every key has a default; unknown keys are refused.

Values marked (ours) are not in the paper or its code: see docs/explanation/algorithm.md.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from fosp_core.errors import FospError
from fosp_core.paths import config_file, share_dir


def _choice(default: str, *others: str):
    return dataclasses.field(default=default, metadata={'choices': (default, *others)})


def _number(default, interval: str, entries: int | None = None):
    """Field of one number, or of `entries` of them, in `interval` as mathematics writes it: '[0, 1)' lacks 1."""
    return dataclasses.field(default=default, metadata={'interval': interval, 'entries': entries})


_WIDTH = '[1, 65536]'        # what can be built at all; beyond it no machine's memory would do
_COUNT = '[1, 1000000]'
_RATE = '[0, 1]'
_ANY = '(-inf, inf)'
_POSITIVE = '(0, inf)'
_NOT_NEGATIVE = '[0, inf)'


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes; the defaults are the released `fosp` preset."""

    deter: int = _number(512, _WIDTH)
    stoch: int = _number(48, '[1, 1024]')
    classes: int = _number(48, '[2, 1024]')
    hidden: int = _number(512, _WIDTH)
    units: int = _number(512, _WIDTH)
    layers: int = _number(2, '[1, 32]')
    cnn_depth: int = _number(32, '[1, 1024]')
    cnn_multipliers: tuple[int, ...] = _number((1, 2, 4, 8), '[1, 64]', 4)
    decoder_norm: bool = True
    vector_layers: int = _number(5, '[1, 32]')
    vector_units: int = _number(1024, _WIDTH)
    bins: int = _number(255, '[2, 65536]')
    unimix: float = _number(0.01, '(0, 1)')
    # factor on the posterior's initial logits: less noise at the start (ours)
    posterior_scale: float = _number(1.0, _NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class WorldModelConfig:
    """World-model loss and optimiser (algorithm.md 1.4)."""

    lr: float = _number(1e-4, _RATE)
    eps: float = _number(1e-8, '(0, 1]')
    clip: float = _number(1000.0, _POSITIVE)
    kl_dynamic: float = _number(0.5, _NOT_NEGATIVE)
    kl_representation: float = _number(0.1, _NOT_NEGATIVE)
    free_nats: float = _number(1.0, _NOT_NEGATIVE)
    cost_weight: float = _number(10.0, _NOT_NEGATIVE)
    vector_scale: float = _number(1.0, _NOT_NEGATIVE)
    # extra weight of saturated pixels: small coloured objects (ours)
    colour_weight: float = _number(0.0, _NOT_NEGATIVE)
    # weight of decoding every third frame straight from the embedding (ours)
    autoencode: float = _number(0.0, _NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class BehaviourConfig:
    """Imagination, critics, reachability and actor (algorithm.md 2 and 3)."""

    horizon: int = _number(15, '[1, 1000]')
    imagine_starts: int = _number(0, '[0, 1000000]')  # 0: every posterior state; else that many, drawn at random (ours)
    discount: float = _number(1.0 - 1.0 / 333.0, '(0, 1]')
    lam: float = _number(0.95, '[0, 1]')
    lr: float = _number(3e-5, _RATE)
    eps: float = _number(1e-5, '(0, 1]')
    clip: float = _number(100.0, _POSITIVE)
    ema: float = _number(0.02, '[0, 1]')
    ema_regulariser: float = _number(1.0, _NOT_NEGATIVE)
    reward_expectile: float = _number(0.8, '(0, 1)')  # IQL convention
    cost_expectile: float = _number(0.2, '(0, 1)')
    value_loss: str = _choice('twohot_ce', 'squared')
    in_sample: bool = True           # L_Q2 and V on dataset actions; False: imagined actions only
    reach_discount: float = _number(0.99, '[0, 1]')
    reach_lr_scale: float = _number(0.3, _NOT_NEGATIVE)  # slower than the critics (RESPO's time-scales)
    reach_lam: float = _number(0.0, '[0, 1]')  # multi-step targets on dataset windows; 0: one step (ours)
    reach_dropout: float = _number(0.0, '[0, 1)')  # while training (ours)
    reach_imagined: float = _number(1.0, _NOT_NEGATIVE)  # weight of the term on imagined steps (ours)
    cost_threshold: float = _number(0.5, _POSITIVE)  # imagined violation
    actor_objective: str = _choice('in_sample', 'dynamics')  # weighted regression, or through the world model
    weight_form: str = _choice('mixture', 'product', 'uniform')  # uniform: behaviour cloning
    beta_reward: float = _number(1.0, _NOT_NEGATIVE)
    beta_cost: float = _number(1.0, _NOT_NEGATIVE)
    weight_clip: float = _number(100.0, _POSITIVE)
    feasible_gate: float = _number(0.1, _ANY)  # 1[Q^c <= gate] on the feasible branch; negative: no gate
    use_reachability: bool = True    # False: u = 1 everywhere
    feasibility: str = _choice('action', 'state')  # u of the weighted action (ours), or of one drawn from pi (P1)
    entropy: float = _number(3e-4, _NOT_NEGATIVE)
    normaliser_decay: float = _number(0.99, '[0, 1)')


@dataclasses.dataclass(frozen=True)
class ConstraintConfig:
    """Constraint handler: `alm` per gradient step on predicted cost; `pid`, `apid` per episode on measured cost."""

    kind: str = _choice('alm', 'none', 'pid', 'apid')
    cost_limit: float = _number(0.0, _NOT_NEGATIVE)
    lambda_init: float = _number(1e-6, _NOT_NEGATIVE)
    penalty_init: float = _number(5e-9, _POSITIVE)
    penalty_growth: float = _number(1e-5, _NOT_NEGATIVE)
    penalty_max: float = _number(1.0, _POSITIVE)
    gain_p: float = _number(1e-4, _NOT_NEGATIVE)  # pid, apid
    gain_i: float = _number(1e-5, _NOT_NEGATIVE)
    gain_d: float = _number(1e-5, _NOT_NEGATIVE)
    pid_ema: float = _number(0.95, '[0, 1)')  # pid
    pid_delay: int = _number(10, _COUNT)
    adapt_p: float = _number(0.05, '[0, 1]')  # apid: alpha, beta, gamma
    adapt_i: float = _number(0.05, '[0, 1]')
    adapt_d: float = _number(0.05, '[0, 1]')
    gain_bound: float = _number(10.0, '[1, inf)')
    window: int = _number(10, _COUNT)


@dataclasses.dataclass(frozen=True)
class ExpansionConfig:
    """Policy expansion (algorithm.md 3.1)."""

    enabled: bool = True
    inverse_temperature: float = _number(5.0, _NOT_NEGATIVE)
    cost_coefficient: float = _number(0.1, _NOT_NEGATIVE)
    reach_gate: float = _number(0.1, _ANY)  # negative: no gate (ours)
    init: str = _choice('copy', 'fresh')
    online_weight: str = _choice('linear', 'exp', 'none')  # linear: P1; none: no term on imagined actions
    # of every learning rate: fresh optimisers move each weight by lr per step (ours)
    online_lr_scale: float = _number(0.1, _NOT_NEGATIVE)
    # weight of the dataset actor term beside the one on imagined actions (ours); 0: P1's loss alone
    online_in_sample: float = _number(0.0, _NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Marvel's value pre-alignment before the online steps (algorithm.md 4.1); every value is ours."""

    steps: int = _number(0, '[0, 1000000000]')  # 0: warm start without it
    batch: int = _number(64, _COUNT)
    length: int = _number(9, '[2, 1000000]')
    episodes: int = _number(200, _COUNT)  # at most so many offline episodes are encoded for it, evenly spread
    lr: float = _number(3e-4, _RATE)
    ema: float = _number(0.02, '[0, 1]')
    # entropy in the targets; larger for reward than for cost, as Marvel intends
    alpha_reward: float = _number(1e-3, _NOT_NEGATIVE)
    alpha_cost: float = _number(2e-4, _NOT_NEGATIVE)
    min_rho: float = _number(0.0, '[-1, 1]')  # refuse when Spearman's rho of Q^r or Q^c after it is below
    max_drop: float = _number(0.1, '[0, 2]')  # ... or has fallen by more than this


@dataclasses.dataclass(frozen=True)
class GatesConfig:
    """What a fine-tuned model must show before it is published (docs/explanation/gates.md); every value is ours."""

    level: float = _number(0.05, '(0, 0.5)')  # of each one-sided test
    risk_margin: float = _number(0.02, '[-1, 1]')  # rise of the mean risk that is still none
    warned_margin: float = _number(0.2, '[-1, 1]')  # fall of the share of records warned of, before violations
    estimate_margin: float = _number(0.25, '[-1, 1]')  # part of itself that the mean estimate may fall by, else
    online_holdout: float = _number(0.2, '[0, 0.5]')  # share of the robot's episodes kept from training
    episodes: int = _number(40, '[2, 1000000]')  # at most so many of each source are looked at


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Batches, seeds, logging."""

    batch: int = _number(16, _COUNT)
    length: int = _number(64, '[2, 1000000]')
    steps: int = _number(10000, '[0, 1000000000]')  # of the world model, and with `joint` of all the rest
    final_lr: float = _number(1.0, '[0, 1]')  # of every learning rate at the end of these steps, along a cosine (ours)
    # then behaviour alone, on the states of the frozen world model (ours)
    behaviour_steps: int = _number(0, '[0, 1000000000]')
    behaviour_batch: int = _number(64, _COUNT)
    behaviour_length: int = _number(9, '[2, 1000000]')
    # of every learning rate at the end of that phase, along a cosine (ours)
    behaviour_final_lr: float = _number(1.0, '[0, 1]')
    # actor's and critics' learning rate in that phase, as a factor of theirs (ours)
    behaviour_lr_scale: float = _number(1.0, _NOT_NEGATIVE)
    # whether `steps` train all; else the world model alone, and the rest learns in the behaviour steps (ours)
    joint: bool = True
    mirror: bool = True              # half of the data as a mirror shows it, where the contract names one (ours)
    # behaviour steps after which the latents are drawn from the posterior anew; 0: they stay at its mode (ours)
    behaviour_redraw: int = _number(0, '[0, 1000000000]')
    seed: int = _number(0, '[0, 4294967295]')
    log_every: int = _number(50, '[1, 1000000000]')
    save_every: int = _number(500, '[1, 1000000000]')
    online_fraction: float = _number(0.5, '[0, 1]')  # of each batch of a fine-tune (ours)
    # windows of a fine-tune's gradient step (ours): 40 steps of 16 see too little of a scene with something new in it
    online_batch: int = _number(48, _COUNT)
    # float32 | bfloat16_products (on a CPU: factors of products are rounded, tensors stay float32) | bfloat16 (products
    # of the forward passes; weights stay float32)
    precision: str = 'float32'
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
    except (yaml.YAMLError, ValueError) as error:   # ValueError: no UTF-8, or what looks like a date and is none
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
        except (yaml.YAMLError, ValueError):     # ValueError: what looks like a date and is none
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
                if isinstance(value, bool) and kind in (int, float) or kind is str and not isinstance(value, str | int):
                    raise ValueError
                if kind is int and int(value) != float(value):
                    raise ValueError
                values[key] = kind(value)
            except (TypeError, ValueError, OverflowError):
                raise FospError(f'{where}: key {key} is {value!r}, expected {kind.__name__}') from None
        elif kind is dict:
            if not isinstance(value, dict):
                raise FospError(f'{where}: key {key} is {value!r}, expected a mapping')
            values[key] = value
        elif isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
            values[key] = tuple(value)
        else:
            raise FospError(f'{where}: key {key} is {value!r}, expected a list of whole numbers')
    for field in dataclasses.fields(cls):
        value = values.get(field.name, field.default)
        choices, interval, entries = (field.metadata.get(k) for k in ('choices', 'interval', 'entries'))
        if choices and value not in choices:
            raise FospError(f'{where}: key {field.name} is {value!r}, expected one of {", ".join(choices)}')
        if entries and len(value) != entries:
            raise FospError(f'{where}: key {field.name} has {len(value)} entries, expected {entries}')
        if interval and not all(_within(v, interval) for v in (value if entries else (value,))):
            raise FospError(f'{where}: key {field.name} is {value!r}, expected {_in_words(interval)}')
    return cls(**values)


def _within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(','))
    return ((low <= value if interval[0] == '[' else low < value)      # NaN is in no interval
            and (value <= high if interval[-1] == ']' else value < high))


def _in_words(interval: str) -> str:
    low, high = map(float, interval[1:-1].split(','))
    above = ('at least ' if high == math.inf else '') if interval[0] == '[' else 'more than '
    if high == math.inf:
        return 'a finite number' if low == -math.inf else f'{above}{low:g}'
    return f'{above}{low:g} to {"" if interval[-1] == "]" else "less than "}{high:.12g}'
