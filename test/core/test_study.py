# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A study's plan and its resumable run, on made-up jobs; the real thing is in test/sim."""

import dataclasses
import json
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from fosp_core.cli import main
from fosp_core.errors import FospError
from fosp_core.evaluate.statistics import summary_row
from fosp_core.paths import share_dir
from fosp_core.study import runner
from fosp_core.study.cli import chosen, plan_file
from fosp_core.study.plan import Job, Plan

PLAN = {'data': {'mix': {'episodes': 9, 'seed': 0}},
        'models': {'a': {'data': ['mix'], 'seeds': [0, 1]}, 'b': {'bundle': 'models/safereach'}},
        'adapt': {'models': ['a'], 'tasks': ['unseen1'], 'methods': ['fosp', 'direct'], 'offline': ['mix']},
        'evaluate': {'tasks': ['standard', 'unseen1'], 'episodes': 3, 'filter': ['on', 'off']}}


def changed(**sections):
    return json.loads(json.dumps({**PLAN, **sections}))


def test_the_jobs_of_a_plan(tmp_path):
    jobs = Plan(PLAN).jobs(tmp_path)
    names = [j.name for j in jobs]
    # 1 data; per seed of a: 1 model, 4 evaluations, 1 rollout, 2 x (1 tune + 2 evaluations); of b: 4 evaluations
    assert len(names) == len(set(names)) == 1 + 2 * (1 + 4 + 1 + 2 * 3) + 4
    assert len({j.makes for j in jobs}) == len(jobs)
    for i, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:i]), job.name
    tune = next(j for j in jobs if j.name == 'tune/a-s1/unseen1/direct')
    assert tune.needs == ('model/a-s1', 'rollout/a-s1/unseen1', 'data/mix')
    assert tune.argv[:3] == ('finetune', f'{tmp_path}/models/a-s1/bundle/study', f'{tmp_path}/rollouts/a-s1/unseen1')
    seeds = [j.argv[j.argv.index('--seed') + 1] for j in jobs if j.name.startswith('rollout')]
    assert seeds == ['100000', '110000'], 'two models must not meet the same layouts'


def test_one_world_model_of_a_seed_for_all_methods(tmp_path):
    own = {'data': ['mix'], 'world_model': 'w', 'seeds': [0, 1]}
    plan = changed(world_models={'w': {'data': ['mix'], 'set': ['train.steps=2']}, 'unused': {'data': ['mix']}},
                   models={'a': {**own, 'tune': ['own']}, 'c': own, 'd': {'data': ['mix'], 'world_model': 'models/w'}})
    jobs = {j.name: j for j in Plan(plan).jobs(tmp_path)}
    assert [n for n in jobs if n.startswith('world')] == ['world_model/w-s0', 'world_model/w-s1']
    world = jobs['world_model/w-s1']
    assert world.makes == tmp_path / 'world_models' / 'w-s1' / 'bundle' / 'study' and world.needs == ('data/mix',)
    assert world.argv[:2] == ('pretrain', f'{tmp_path}/data/mix') and world.argv[-2:] == ('--set', 'train.steps=2')
    for name in ('a', 'c'):
        model = jobs[f'model/{name}-s1']
        assert model.needs == ('data/mix', world.name) and model.reads == (world.makes,)
        assert model.argv[-2:] == ('--world-model', str(world.makes))
    assert jobs['model/d-s0'].needs == ('data/mix',) and jobs['model/d-s0'].argv[-1] == 'models/w'
    assert [n for n in jobs if n.startswith('tune')] == ['tune/a-s0/unseen1/own', 'tune/a-s1/unseen1/own']


@pytest.mark.parametrize(('plan', 'words'), [
    ([], 'expected keys title, data'),
    ({'models': {}}, 'key evaluate is missing'),
    (changed(more=1), "unknown key 'more'"),
    (changed(data={'mix': {'episodes': 9}}), 'data.mix: key seed is missing'),
    (changed(data={'mix': {'episodes': '9', 'seed': 0}}), "data.mix: key episodes is '9', expected int"),
    (changed(data={'../mix': {'episodes': 9, 'seed': 0}}), "name '../mix', expected a word"),
    (changed(models={'a': {}}), 'models.a: expected either bundle or data'),
    (changed(models={'a': {'data': ['other']}}), "models.a.data: 'other' is not among data"),
    (changed(models={'a': {'data': ['mix']}, 'b': {'bundle': 'x', 'tune': ['own']}}), 'models.b.tune: adapt does not'),
    (changed(world_models={'w': {}}), 'world_models.w: key data is missing'),
    (changed(world_models={'w': {'data': ['other']}}), "world_models.w.data: 'other' is not among data"),
    (changed(adapt={'tasks': ['unseen9'], 'methods': ['fosp']}), "'unseen9' is not among evaluate.tasks"),
    (changed(adapt={'tasks': ['unseen1'], 'methods': ['fosp'], 'offline': ['x']}), "offline: 'x' is not among mix"),
    (changed(evaluate={'tasks': ['standard'], 'episodes': 3, 'filter': ['perhaps']}), "evaluate.filter has 'perhaps'"),
    (changed(models={'a': {'bundle': 'models/a', 'filter': [['off']]}}), r"models.a.filter has \['off'\]"),
])
def test_a_bad_plan_names_the_key(plan, words):
    with pytest.raises(FospError, match=words.replace('(', r'\(')):
        Plan(plan)


def test_the_shipped_plans_are_plans(tmp_path, capsys):
    for name in ('shipped', 'beyond', 'methods', 'full'):
        assert Plan.load(plan_file(name)).jobs(tmp_path)
    assert main(['study', 'shipped', '--list', '--out', str(tmp_path / 'none')]) == 0
    assert 'to do  fosp rollout' in capsys.readouterr().out and not (tmp_path / 'none').exists()
    assert main(['study', 'absent']) == 2
    (tmp_path / 'bad.yaml').write_text('models: [')
    assert main(['study', str(tmp_path / 'bad.yaml')]) == 2


def test_a_filter_switch_without_quotes_is_meant_all_the_same():
    plan = yaml.safe_load(yaml.safe_dump(changed()).replace("'on'", 'on').replace("'off'", 'off'))
    plan['models']['b']['filter'] = [False]      # in the place of evaluate's
    named = [j.name for j in Plan(plan).jobs(Path('out')) if j.name.startswith('evaluate')]
    assert named[:2] == ['evaluate/a-s0/standard-on', 'evaluate/a-s0/standard-off']
    assert [n for n in named if '/b/' in n] == ['evaluate/b/standard-off', 'evaluate/b/unseen1-off']


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Jobs that append their name to a file and make theirs; `fail`, `refuse` as third word: exit code 1."""
    (tmp_path / 'fake_cli.py').write_text(
        'import sys\nfrom pathlib import Path\nname, makes, *how = sys.argv[1:]\n'
        'with open(Path(__file__).with_name("calls"), "a") as f:\n    f.write(name + "\\n")\n'
        'if how == ["fail"]:\n    sys.exit("error: no such luck")\n'
        'if how == ["refuse"]:\n    Path(makes + ".json").write_text(\'{"refused": "it ranks nothing"}\')\n'
        '    sys.exit(1)\n'
        'Path(makes).parent.mkdir(parents=True, exist_ok=True)\n'
        'Path(makes).write_text("{}")\n')
    real = runner.subprocess.Popen
    monkeypatch.setattr(runner.subprocess, 'Popen', lambda argv, **more: real(
        [sys.executable, str(tmp_path / 'fake_cli.py'), *argv[3:]], **more))

    def job(name, *how, needs=()):
        return Job(name, (name, str(tmp_path / 'out' / name), *how), tmp_path / 'out' / name, needs)

    def calls():
        return (tmp_path / 'calls').read_text().split()
    return job, calls


def test_what_is_there_is_not_made_again(tmp_path, commands):
    job, calls = commands
    jobs = [job('x/one'), job('two', 'fail'), job('three', needs=('two',)), job('four', needs=('x/one',))]
    seen = []
    outcome = runner.run_jobs(jobs, tmp_path / 'out', 2, lambda j, reason: seen.append((j.name, reason)))
    assert sorted(outcome.done) == ['four', 'x/one'] and outcome.waiting == ['three']
    assert outcome.failed == {'two': 'exit code 1: no such luck'} == {n: r for n, r in seen if r}
    jobs[1] = job('two')     # the cause is gone
    outcome = runner.run_jobs(jobs, tmp_path / 'out')
    assert not outcome.failed and not outcome.waiting and sorted(outcome.done) == ['four', 'three', 'two', 'x/one']
    assert sorted(calls()) == ['four', 'three', 'two', 'two', 'x/one']


def test_two_processes_share_a_folder(tmp_path, commands):
    """What another one holds is waited for and then taken as done; what it left undone is made."""
    job, calls = commands
    jobs = [job('one'), job('two', needs=('one',)), job('three'), job('four')]
    records, found = runner.Records(tmp_path / 'out'), []
    held = {name: records.lock(j) for name, j in (('one', jobs[0]), ('four', jobs[3]))}
    assert records.lock(jobs[0]) is None
    worker = threading.Thread(target=lambda: found.append(runner.run_jobs(jobs, tmp_path / 'out', 2)), daemon=True)
    worker.start()
    deadline = time.monotonic() + 20.0
    while not (tmp_path / 'out' / 'three').exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert calls() == ['three'] and worker.is_alive(), 'two needs what is not there yet'
    (tmp_path / 'out' / 'one').write_text('{}')     # as the other process does
    for hold in held.values():
        hold.close()
    worker.join(20.0)
    assert sorted(found[0].done) == ['four', 'one', 'three', 'two'] and not found[0].waiting
    assert sorted(calls()) == ['four', 'three', 'two']


def test_what_failed_here_and_succeeded_elsewhere_is_done(tmp_path, commands):
    job, _ = commands
    jobs = [job('one', 'fail'), job('two', needs=('one',)), job('three', 'refuse'), job('four', needs=('three',))]
    jobs[2] = dataclasses.replace(jobs[2], about={'json': tmp_path / 'out' / 'three.json'})
    hold = runner.Records(tmp_path / 'out').lock(jobs[2])

    def elsewhere(j, reason):
        if j.name == 'one':
            (tmp_path / 'out' / 'one').write_text('{}')
            (tmp_path / 'out' / 'two').write_text('{}')
            (tmp_path / 'out' / 'three.json').write_text('{"refused": "no"}')
            runner.Records(tmp_path / 'out').write(jobs[2], 1, 1.0, {})
            hold.close()
    outcome = runner.run_jobs(jobs, tmp_path / 'out', 1, elsewhere)
    assert not outcome.failed and not outcome.waiting and outcome.refused == {'three': 'no'}


def test_a_job_goes_on_holding_its_lock_when_the_study_is_killed(tmp_path, monkeypatch):
    sleeper = Job('one', ('x',), tmp_path / 'out' / 'one')
    real = runner.subprocess.Popen
    monkeypatch.setattr(runner.subprocess, 'Popen', lambda argv, **more: real(['sleep', '60'], **more))
    records = runner.Records(tmp_path / 'out')
    hold = records.lock(sleeper)
    process, _ = runner._start(sleeper, records, 1, hold)
    try:
        hold.close()        # as the end of the process does
        assert records.lock(sleeper) is None
    finally:
        process.kill()
        process.wait()
    assert records.lock(sleeper) is not None


def test_a_refusal_is_a_result_and_leaves_nothing_to_measure(tmp_path, commands):
    job, calls = commands
    one = dataclasses.replace(job('one', 'refuse'), about={'json': tmp_path / 'out' / 'one.json'})
    jobs = [one, job('two', needs=('one',)), job('three', needs=('two',)), job('four')]
    for _ in range(2):      # and not again
        outcome = runner.run_jobs(jobs, tmp_path / 'out')
        assert outcome.refused == {'one': 'it ranks nothing'} and not outcome.failed and not outcome.waiting
        assert outcome.done == ['four'] and sorted(calls()) == ['four', 'one']
    jobs[0] = dataclasses.replace(one, argv=(*one.argv[:2], 'fail'))
    outcome = runner.run_jobs(jobs, tmp_path / 'out')
    assert outcome.failed and not outcome.refused, 'the refusal was of another command'


def test_a_run_of_some_jobs_shows_all_rows_that_are_there(tmp_path, monkeypatch, capsys):
    (tmp_path / 'plan.yaml').write_text(yaml.safe_dump(PLAN))
    monkeypatch.setattr(runner, 'run_jobs', lambda jobs, out, *more: runner.Outcome([j.name for j in jobs]))
    for job in Plan(PLAN).jobs(tmp_path / 'out'):
        if job.name in ('evaluate/a-s0/standard-on', 'evaluate/b/standard-on'):
            job.makes.parent.mkdir(parents=True)
            result = {**summary_row('standard', 'model', [1] * 3, [0] * 3), 'return': 1.0, 'steps': 9.0,
                      'outcomes': {'seed': [0, 1, 2], 'success': [1] * 3, 'violation': [0] * 3}}
            job.makes.write_text(json.dumps({'rows': [result]}))
    assert main(['study', str(tmp_path / 'plan.yaml'), '--out', str(tmp_path / 'out'), '--only', 'evaluate/b/']) == 0
    found = json.loads((tmp_path / 'out' / 'study.json').read_text())
    assert [r['model'] for r in found['rows']] == ['a', 'b'] and (found['jobs'], found['done']) == (29, 2)
    assert found['open'] == 29 - 4 - 1
    assert 'Not complete: 24 of 29 jobs' in (tmp_path / 'out' / 'study.html').read_text()
    capsys.readouterr()


def test_a_result_of_another_command_is_not_taken_for_this_one(tmp_path, commands):
    job, calls = commands
    runner.run_jobs([job('one')], tmp_path / 'out')
    with pytest.raises(FospError, match='one: was made by `fosp one .*the plan now asks for `fosp one .* more`'):
        runner.run_jobs([job('one', 'more')], tmp_path / 'out')
    # Killed between the result and its record: the result is whole.
    (tmp_path / 'out' / 'record' / 'one.json').unlink()
    assert runner.run_jobs([job('one')], tmp_path / 'out').done == ['one'] and calls() == ['one']


def manifest(folder, **changes):
    """A bundle that differs from another one by its manifest."""
    file = folder / 'manifest.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}, indent=1))


@pytest.fixture
def model(tmp_path):
    from fosp_core.deploy.bundle import Bundle
    shipped = Bundle.open(share_dir() / 'models' / 'safereach')
    return Path(shutil.copytree(shipped.path, tmp_path / 'models' / shipped.version))


def test_a_resumed_study_does_not_mix_two_models(tmp_path, commands, model, monkeypatch):
    """The command is the same, but the folder that it names holds another model than when the study began."""
    job, calls = commands
    jobs = [dataclasses.replace(job(name), reads=(model.parent,)) for name in ('one', 'two')]
    assert runner.run_jobs(jobs[:1], tmp_path / 'out').done == ['one']
    assert runner.Records(tmp_path / 'out').done(jobs[0])
    def killed(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, '_judge', killed)
        runner.run_jobs(jobs, tmp_path / 'out')
    manifest(model, seed=77)
    with pytest.raises(FospError, match=f'one: was made with model [0-9a-f]{{12}}, {model.parent} is now'):
        runner.run_jobs(jobs, tmp_path / 'out')
    # Killed between the result and the end of its record: what it began with is known.
    with pytest.raises(FospError, match='two: was made with model'):
        runner.run_jobs(jobs[1:], tmp_path / 'out')
    assert calls() == ['one', 'two']


def test_a_record_of_before_it_named_the_model_is_judged_by_its_result(tmp_path, commands, model):
    job, _ = commands
    makes = tmp_path / 'out' / 'one'
    one = dataclasses.replace(job('one'), reads=(model,), about={'json': makes})
    runner.run_jobs([one], tmp_path / 'out')
    path = tmp_path / 'out' / 'record' / 'one.json'
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != 'bundles'}))
    assert runner.Records(tmp_path / 'out').done(one)
    makes.write_text(json.dumps({'model': {'sha256': 'ab' * 32}}))
    with pytest.raises(FospError, match='one: was made with model abababababab'):
        runner.Records(tmp_path / 'out').done(one)


def test_a_model_that_changes_under_a_running_study_ends_it(tmp_path, commands, model):
    job, calls = commands
    jobs = [dataclasses.replace(job(name), reads=(model,)) for name in ('one', 'two')]

    def replaced(job, reason):
        manifest(model, seed=78)
    with pytest.raises(FospError, match=f'{model}: changed from model .* while the study was running'):
        runner.run_jobs(jobs, tmp_path / 'out', finished=replaced)
    assert calls() == ['one']


def test_a_shipped_plan_finds_the_shipped_model_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / 'models' / 'mine').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ('shipped', 'methods'):
        read = {path for job in Plan.load(plan_file(name)).jobs(Path('out')) for path in job.reads}
        shipped = share_dir() / 'models' / 'safereach'
        assert shipped in read and {p for p in read if not p.is_relative_to('out')} == {shipped}
        assert all(set(map(str, job.reads)) <= set(job.argv) for job in Plan.load(plan_file(name)).jobs(Path('out')))
    own = Plan(changed(models={'a': PLAN['models']['a'], 'b': {'bundle': 'models/mine'}})).jobs(Path('out'))
    assert Path('models/mine') in {path for job in own for path in job.reads}


def test_only_some_and_what_they_need():
    jobs = [Job('a', (), Path('a')), Job('b', (), Path('b')), Job('c', (), Path('c'), ('a',)),
            Job('d', (), Path('d'), ('c',))]
    assert [j.name for j in chosen(jobs, 'd')] == ['a', 'c', 'd']
    with pytest.raises(FospError, match='no job of that name'):
        chosen(jobs, 'z')
