# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The plan of a study, `config/study_*.yaml`: data, models, fine-tunes and evaluations, as jobs with commands.

Every job is one `fosp` command that makes one file or folder, whole or not at all. So what is there is done, and any
row of the study's tables can be made again by the command beside it.
"""

import dataclasses
from pathlib import Path

import yaml

from fosp_core.deploy.bundle import check_word
from fosp_core.errors import FospError


@dataclasses.dataclass(frozen=True)
class Job:
    """One command: `argv` after `fosp`, what it makes, the jobs that come before it, and the bundles that it reads."""

    name: str
    argv: tuple[str, ...]
    makes: Path
    needs: tuple[str, ...] = ()
    reads: tuple[Path, ...] = ()
    about: dict = dataclasses.field(default_factory=dict, compare=False)


OWN = 'own'     # fine-tuning method: that of the model

_DATA = {'task': str, 'episodes': int, 'mix': str, 'seed': int}
_WORLD = {'method': str, 'preset': str, 'data': list, 'set': list, 'holdout': float}
_MODEL = {**_WORLD, 'bundle': str, 'seeds': list, 'world_model': str, 'tune': list, 'filter': list}
_ADAPT = {'models': list, 'tasks': list, 'methods': list, 'episodes': int, 'steps': int, 'seed': int, 'offline': list,
          'set': list}
_EVALUATE = {'tasks': list, 'episodes': int, 'seed': int, 'filter': list}
_TOP = {'title': str, 'data': dict, 'world_models': dict, 'models': dict, 'adapt': dict, 'evaluate': dict}


def _checked(data, kinds: dict[str, type], where: str, needed: tuple[str, ...] = ()) -> dict:
    """Return the mapping when it has known keys of the right types; FospError naming the key otherwise."""
    if not isinstance(data, dict):
        raise FospError(f'{where}: expected keys {", ".join(kinds)}')
    for key, value in data.items():
        if key not in kinds:
            raise FospError(f'{where}: unknown key {key!r}, expected {", ".join(kinds)}')
        kind = (int, float) if kinds[key] is float else kinds[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise FospError(f'{where}: key {key} is {value!r}, expected {kinds[key].__name__}')
        if kinds[key] is list and not value and key != 'set':
            raise FospError(f'{where}: key {key} is empty')
    for key in needed:
        if key not in data:
            raise FospError(f'{where}: key {key} is missing')
    return data


class Plan:
    """A checked plan; `jobs(out)` is its work, in an order in which every job comes after what it needs."""

    def __init__(self, data, where: str = 'plan'):
        data = _checked(data, _TOP, where, ('models', 'evaluate'))
        self.title = data.get('title', 'Study')
        self.data = {k: _checked(v, _DATA, f'{where}: data.{k}', ('episodes', 'seed'))
                     for k, v in data.get('data', {}).items()}
        self.worlds = {k: _checked(v, _WORLD, f'{where}: world_models.{k}', ('data',))
                       for k, v in data.get('world_models', {}).items()}
        self.models = {k: _checked(v, _MODEL, f'{where}: models.{k}') for k, v in data['models'].items()}
        self.evaluate = _checked(data['evaluate'], _EVALUATE, f'{where}: evaluate', ('tasks', 'episodes'))
        self.adapt = _checked(data['adapt'], _ADAPT, f'{where}: adapt', ('tasks', 'methods')) \
            if 'adapt' in data else None
        self._check(where)

    @classmethod
    def load(cls, path: Path | str) -> 'Plan':
        """Read a YAML file; FospError naming file and key."""
        try:
            return cls(yaml.safe_load(Path(path).read_text()), str(path))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise FospError(f'{path}: {" ".join(str(error).split())}') from None

    def _check(self, where: str) -> None:
        for name in (*self.data, *self.worlds, *self.models, *self.evaluate['tasks'],
                     *(self.adapt['tasks'] if self.adapt else ())):
            check_word(f'{where}: name', name)      # they become parts of paths
        for key, section in (('evaluate', self.evaluate), *((f'models.{k}', m) for k, m in self.models.items())):
            for bad in (f for f in _switches(section) if f not in ('on', 'off')):
                raise FospError(f'{where}: {key}.filter has {bad!r}, expected on or off')
        for name, model in self.models.items():
            if ('bundle' in model) == ('data' in model):
                raise FospError(f'{where}: models.{name}: expected either bundle or data')
            if 'tune' in model and not (self.adapt and name in self.adapt.get('models', [name])):
                raise FospError(f'{where}: models.{name}.tune: adapt does not fine-tune this model')
        for name, model in (*((f'models.{k}', v) for k, v in self.models.items()),
                            *((f'world_models.{k}', v) for k, v in self.worlds.items())):
            for source in model.get('data', []):
                if source not in self.data:
                    raise FospError(f'{where}: {name}.data: {source!r} is not among data')
        for key, known in (('offline', self.data), ('models', self.models)) if self.adapt else ():
            for name in self.adapt.get(key, []):
                if name not in known:
                    raise FospError(f'{where}: adapt.{key}: {name!r} is not among {", ".join(known)}')
        missing = [t for t in self.adapt['tasks'] if t not in self.evaluate['tasks']] if self.adapt else []
        if missing:     # there would be no "before" to compare with
            raise FospError(f'{where}: adapt.tasks: {missing[0]!r} is not among evaluate.tasks')

    def jobs(self, out: Path) -> list[Job]:
        """Return the jobs; all that they make lies in `out`."""
        jobs = [self._collect(out, name) for name in self.data]
        pairs = [(name, model, seed) for name, model in self.models.items() for seed in model.get('seeds', [0])]
        jobs += [self._pretrain(out, 'world_models', world, self.worlds[world], seed) for world, seed in
                 dict.fromkeys((m['world_model'], s) for _, m, s in pairs if m.get('world_model') in self.worlds)]
        for name, model, seed in pairs:
            jobs += self._of_model(out, name, model, seed)
        return jobs

    def _collect(self, out: Path, name: str) -> Job:
        data, makes = self.data[name], out / 'data' / name
        argv = ['collect', '--task', data.get('task', 'safereach'), '--episodes', data['episodes'], '--seed',
                data['seed'], *(('--mix', data['mix']) if 'mix' in data else ()), '--out', makes]
        return Job(f'data/{name}', _words(argv), makes)

    def _pretrain(self, out: Path, folder: str, name: str, model: dict, seed: int) -> Job:
        """A model of `folder` (models, world_models); its world model: a bundle's, or the plan's of this seed."""
        run, needs, reads = out / folder / f'{name}-s{seed}', [f'data/{d}' for d in model['data']], ()
        if (world := model.get('world_model')) in self.worlds:
            needs.append(f'world_model/{world}-s{seed}')
            reads = (out / 'world_models' / f'{world}-s{seed}' / 'bundle' / 'study',)
        elif world:
            reads = (found(world),)
        argv = ['pretrain', *(out / 'data' / d for d in model['data']), '--preset', model.get('preset', 'small'),
                '--method', model.get('method', 'fosp'), '--seed', seed, '--version', 'study', '--out', run,
                *(('--holdout', model['holdout']) if 'holdout' in model else ()),
                *(w for path in reads for w in ('--world-model', path)), *_sets(model)]
        return Job(f'{folder[:-1]}/{name}-s{seed}', _words(argv), run / 'bundle' / 'study', tuple(needs), reads)

    def _of_model(self, out: Path, name: str, model: dict, seed: int) -> list[Job]:
        label, jobs, needs = name if 'bundle' in model else f'{name}-s{seed}', [], ()
        bundle = found(model.get('bundle', ''))
        if 'bundle' not in model:
            jobs.append(self._pretrain(out, 'models', name, model, seed))
            bundle, needs = jobs[0].makes, (jobs[0].name,)
        about = {'model': name, 'seed': seed, 'method': None}
        jobs += self._evaluations(out, label, bundle, self.evaluate['tasks'], needs, about)
        if self.adapt and name in self.adapt.get('models', [name]):
            for task in self.adapt['tasks']:
                methods = model.get('tune', self.adapt['methods'])
                jobs += self._adaptations(out, label, bundle, task, methods, needs, about)
        return jobs

    def _adaptations(self, out: Path, label: str, bundle: Path, task: str, methods: list, needs: tuple,
                     about: dict) -> list[Job]:
        adapt = self.adapt
        seed = adapt.get('seed', 100_000) + 10_000 * about['seed']
        bag = out / 'rollouts' / label / task
        jobs = [Job(f'rollout/{label}/{task}', _words(
            ['rollout', '--model', bundle, '--task', task, '--episodes', adapt.get('episodes', 20), '--seed', seed,
             '--filter', 'on', '--out', bag, '--json', bag.with_suffix('.json')]), bag, needs, (bundle,),
            {**about, 'task': task, 'kind': 'rollout', 'json': bag.with_suffix('.json')})]
        offline = [w for d in adapt.get('offline', []) for w in ('--offline', out / 'data' / d)]
        for method in methods:
            folder = out / 'tuned' / label / task / method
            name = f'tune/{label}/{task}/{method}'
            jobs.append(Job(name, _words(
                ['finetune', bundle, bag, *offline, '--steps', adapt.get('steps', 40), '--seed', about['seed'],
                 *(('--method', method) if method != OWN else ()), *_sets(adapt), '--version', f'{task}-{method}',
                 '--ungated', '--out', folder,
                 '--json', folder.with_suffix('.json')]), folder,
                (*needs, f'rollout/{label}/{task}', *(f'data/{d}' for d in adapt.get('offline', []))), (bundle,),
                {**about, 'task': task, 'method': method, 'kind': 'tune', 'json': folder.with_suffix('.json')}))
            jobs += self._evaluations(out, f'{label}/{task}-{method}', folder, [task], (name,),
                                      {**about, 'method': method})
        return jobs

    def _evaluations(self, out: Path, label: str, bundle: Path, tasks: list, needs: tuple, about: dict) -> list[Job]:
        jobs = []
        for task in tasks:
            for switch in _switches(self.models[about['model']]) or _switches(self.evaluate) or ('off', 'on'):
                makes = out / 'evaluations' / label / f'{task}-{switch}.json'
                argv = ['evaluate', '--model', bundle, '--task', task, '--episodes', self.evaluate['episodes'],
                        '--seed', self.evaluate.get('seed', 0), '--filter', switch, '--no-corners', '--json', makes]
                jobs.append(Job(f'evaluate/{label}/{task}-{switch}', _words(argv), makes, needs, (bundle,),
                                {**about, 'task': task, 'filter': switch, 'kind': 'evaluate', 'json': makes}))
        return jobs


def found(path: str) -> Path:
    """Return the path of a bundle that a plan names: as it is, or in the share folder when it is only there."""
    from fosp_core.paths import share_dir
    shipped = share_dir() / path
    return shipped if path and not Path(path).exists() and shipped.exists() else Path(path)


def _switches(section: dict) -> list[str]:
    """Return a section's `filter`, whose on and off YAML may have taken for truth values."""
    return [{True: 'on', False: 'off'}.get(f, f) if isinstance(f, bool) else f for f in section.get('filter', [])]


def _sets(section: dict) -> list[str]:
    return [word for override in section.get('set', []) for word in ('--set', override)]


def _words(argv: list) -> tuple[str, ...]:
    return tuple(map(str, argv))
