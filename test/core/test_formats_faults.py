# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Damaged data sets of other projects: one DataError that names file and key, and nothing half-written."""

import json
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fosp_core import cli
from fosp_core.errors import ContractError, DataError
from fosp_core.formats import detect, hdf5, hdf5_trial

H5 = {'hdf5': 'data.hdf5', 'minari': 'data/main_data.hdf5'}
PARQUET = 'data/chunk-000/file-000.parquet'


@pytest.fixture(scope='module')
def whole(tmp_path_factory, tiny, make_episodes):
    """One good data set of each format."""
    root = tmp_path_factory.mktemp('whole')
    for name in detect.FORMATS:
        detect.write(root / name, tiny, make_episodes([9, 4, 6], contract=tiny), name)
    return root


@pytest.fixture
def copy(whole, tmp_path):
    """Return a function that copies one of them to be damaged."""
    def make(name):
        shutil.copytree(whole / name, tmp_path / name)
        return tmp_path / name
    return make


def refused(path, contract, *words):
    with pytest.raises((DataError, ContractError)) as error:
        list(detect.read(path, contract))
    text = str(error.value)
    assert '\n' not in text and len(text) < 600
    for word in words:
        assert word in text, text
    return text


def keys_of(file):
    found = []
    file.visititems(lambda key, item: found.append(key) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize('name', H5)
def test_truncated_hdf5(copy, tiny, name):
    path = copy(name)
    file = path / H5[name]
    data = file.read_bytes()
    for size in (0, 7, 500, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        refused(path, tiny, str(file), 'truncated')


@pytest.mark.parametrize('name', H5)
def test_each_missing_key_is_named(copy, tiny, name):
    path = copy(name)
    with h5py.File(path / H5[name]) as file:
        keys = keys_of(file)
    assert len(keys) > 15
    kept = (path / H5[name]).read_bytes()
    for key in keys:
        with h5py.File(path / H5[name], 'a') as file:
            del file[key]
        refused(path, tiny, str(path / H5[name]), key.removeprefix('episode_0/').removeprefix('episode_1/')
                .removeprefix('episode_2/'))
        (path / H5[name]).write_bytes(kept)


@pytest.mark.parametrize('name', H5)
def test_each_wrong_length_is_named(copy, tiny, name):
    path = copy(name)
    kept = (path / H5[name]).read_bytes()
    with h5py.File(path / H5[name]) as file:
        keys = [k for k in keys_of(file) if not k.endswith('meta')]
    for key in keys:
        with h5py.File(path / H5[name], 'a') as file:
            values = file[key][:-1]
            del file[key]
            file[key] = values
        # This one decides how long the others must be, so any other may be named then.
        words = (key.split('/', 1)[-1] if name == 'minari' else key,)
        if key.endswith('actions' if name == 'hdf5' else 'rewards'):
            words = ()
        refused(path, tiny, str(path / H5[name]), *words)
        (path / H5[name]).write_bytes(kept)


@pytest.mark.parametrize('name', H5)
def test_keys_of_another_kind(copy, tiny, name):
    path = copy(name)
    kept = (path / H5[name]).read_bytes()
    with h5py.File(path / H5[name]) as file:
        keys = keys_of(file)
    for key in keys:
        # One text of variable length, which takes a process to try it; the others are of fixed length.
        text = 'text' if key == keys[0] else np.bytes_('text')
        for value in (np.float32(3), np.zeros((2, 2, 2)), text, np.array([b'a', b'b'])):
            with h5py.File(path / H5[name], 'a') as file:
                del file[key]
                file[key] = value
            refused(path, tiny, str(path / H5[name]))
            (path / H5[name]).write_bytes(kept)
        with h5py.File(path / H5[name], 'a') as file:
            del file[key]
            file.create_group(key)
        refused(path, tiny, str(path / H5[name]))
        (path / H5[name]).write_bytes(kept)


def test_a_length_beyond_the_file_is_not_read(copy, tiny):
    """Damaged lengths made the reader fill terabytes with zeros."""
    for name, keys in (('hdf5', ('actions', 'terminals')), ('minari', ('episode_0/rewards', 'episode_0/actions'))):
        path = copy(name)
        for key in keys:
            with h5py.File(path / H5[name], 'a') as file:
                shape = file[key].shape[1:]
                del file[key]
                file.create_dataset(key, (10 ** 13, *shape), chunks=(10, *shape))
        refused(path, tiny, str(path / H5[name]), 'is more than the file can hold')


@pytest.mark.parametrize('name', H5)
def test_a_changed_byte_is_found_by_its_sum(copy, tiny, name):
    path = copy(name)
    file = path / H5[name]
    whole = file.read_bytes()
    with h5py.File(file) as found:
        keys = [k for k in keys_of(found) if found[k].size]
        chunks = {k: found[k].id.get_chunk_info(0) for k in keys}
        headers = {k: h5py.h5o.get_info(found[k].id).addr for k in keys}
    assert len(keys) > 12
    for key in keys:
        for place in (chunks[key].byte_offset + chunks[key].size // 2, headers[key] + 9):
            data = bytearray(whole)
            data[place] ^= 1
            file.write_bytes(data)
            refused(path, tiny, str(file))
    data = bytearray(whole)
    data[whole.index(b'fosp_final_action' if name == 'minari' else b'fosp_contract_hash') + 40] ^= 1
    file.write_bytes(data)
    refused(path, tiny, str(file))


def foreign_strings(path, key):
    """Replace a data set by strings of variable length, as others do; return a byte that makes HDF5 hang when 0."""
    with h5py.File(path, 'a') as file:
        texts = file[key][:]
        del file[key]
        file.create_dataset(key, data=[t.decode() for t in texts], dtype=h5py.string_dtype())
    data = path.read_bytes()
    place = data.index(b'GCOL') + 16        # the heap's first object: number, 6 bytes, size (8 bytes), contents
    while size := int.from_bytes(data[place + 8:place + 16], 'little'):
        place += 16 + -(-size // 8) * 8
    assert data[place]      # an empty string; with the number 0, of free space, the library goes on by 0 bytes
    return place


@pytest.mark.timeout(120)
def test_strings_on_which_hdf5_does_not_return(copy, tiny, monkeypatch):
    """One byte of the heap, and the reader was never seen again."""
    path = copy('hdf5')
    file = path / H5['hdf5']
    assert all(b'GCOL' not in (copy(name) if name != 'hdf5' else path).joinpath(H5[name]).read_bytes() for name in H5)
    before = [e.meta for e in detect.read(path, tiny)]
    assert before[0]
    place = foreign_strings(file, 'infos/meta')
    assert [e.meta for e in detect.read(path, tiny)] == before
    data = bytearray(file.read_bytes())
    data[place] = 0
    file.write_bytes(data)
    monkeypatch.setattr(hdf5, 'TRIAL_S', 2)
    refused(path, tiny, str(file), 'key infos/meta: damaged: the HDF5 library does not return')


def test_files_on_which_hdf5_crashes_or_reads_for_ever(copy, tiny, monkeypatch, tmp_path):
    path = copy('hdf5')
    file = path / H5['hdf5']
    foreign_strings(file, 'infos/meta')
    trial = tmp_path / 'trial.py'
    monkeypatch.setattr(hdf5_trial, '__file__', str(trial))
    trial.write_text('import os\nprint("key x", flush=True)\nos.kill(os.getpid(), 11)\n')
    refused(path, tiny, str(file), 'key x: damaged: the HDF5 library ends by SIGSEGV')
    trial.write_text('import sys\nprint("no such\\nlist", file=sys.stderr)\nsys.exit(1)\n')
    refused(path, tiny, str(file), 'cannot be read (truncated or damaged?): list')
    monkeypatch.setattr(hdf5, 'START_S', 0)
    monkeypatch.setattr(hdf5, 'TRIAL_S', 0.3)
    trial.write_text('import time\ntime.sleep(60)\n')
    refused(path, tiny, str(file), 'are not read within 1 s')


def test_shuffled_transitions(copy, tiny):
    path = copy('hdf5')
    with h5py.File(path / 'data.hdf5', 'a') as file:
        file['observations'][4] = 7
    refused(path, tiny, 'episode 0', 'next_observations is not the observation that follows at transition 3')


def test_ends_that_are_missing(copy, tiny):
    path = copy('hdf5')
    with h5py.File(path / 'data.hdf5', 'a') as file:
        file['terminals'][:] = file['timeouts'][:] = False
    refused(path, tiny, 'next_observations is not the observation that follows at transition 7')


@pytest.mark.parametrize('name', H5)
def test_values_that_no_training_bears(copy, tiny, name):
    path = copy(name)
    prefix = '' if name == 'hdf5' else 'episode_0/'
    with h5py.File(path / H5[name], 'a') as file:
        file[f'{prefix}rewards'][3] = np.nan
    refused(path, tiny, 'episode 0: key reward is not finite at step 4')
    assert len(list(detect.read(path, tiny, check=False))) == 3      # the doctor looks at all of it


@pytest.mark.parametrize(('change', 'words'), [
    ({'data_format': 'arrow'}, ["key data_format is 'arrow'"]), ({'total_episodes': 4}, ['episode_3 is missing']),
    ({'total_episodes': 0}, ['no episode']), ({'total_episodes': 'x'}, ['total_episodes']),
    ({'action_space': None}, ['key action_space']),
    ({'action_space': '{"low": [-1, -1], "high": [1, 1]}'}, ['key action_space has 2 entries, expected 3'])])
def test_metadata_of_minari(copy, tiny, change, words):
    path = copy('minari')
    file = path / 'data' / 'metadata.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(path, tiny, str(path), *words)
    file.write_text(file.read_text()[:-20])
    refused(path, tiny, str(file), 'not the metadata')
    file.unlink()
    refused(path, tiny, str(file), 'No such file')


def test_parquet_that_is_truncated_or_gone(copy, tiny):
    path = copy('lerobot')
    for file in sorted(p for p in path.rglob('*') if p.is_file()):
        if file.name in ('stats.json', 'tasks.parquet'):
            continue        # not read
        kept = file.read_bytes()
        for size in (0, 3, len(kept) // 2, len(kept) - 1):
            file.write_bytes(kept[:size])
            refused(path, tiny, str(file))
        file.unlink()
        if file.name == 'info.json':
            assert detect.format_of(path) is None
        elif file.name == 'fosp.json':
            list(detect.read(path, tiny))      # data of others
        else:
            refused(path, tiny, str(path))
        file.write_bytes(kept)


def test_columns_of_lerobot(copy, tiny):
    path = copy('lerobot')
    table = pq.read_table(path / PARQUET)
    unused = ('next.reward', 'next.cost', 'next.done', 'timestamp', 'index', 'task_index')
    needed = [n for n in table.column_names if n not in unused]
    for key in needed:
        index = table.column_names.index(key)
        pq.write_table(table.drop_columns([key]), path / PARQUET)
        refused(path, tiny, str(path / PARQUET), key)
        for wrong in (pa.array(['x'] * 19), pa.array([None] * 19, pa.float32()), pa.array([[1.0]] * 18 + [[]])):
            pq.write_table(table.set_column(index, key, wrong), path / PARQUET)
            refused(path, tiny, str(path))


def test_rows_of_lerobot(copy, tiny):
    path = copy('lerobot')
    table = pq.read_table(path / PARQUET)
    pq.write_table(table.slice(0, 18), path / PARQUET)
    refused(path, tiny, 'episode 2: 5 records, expected 6 by meta/episodes')
    pq.write_table(table.slice(0, 13), path / PARQUET)
    refused(path, tiny, '2 episodes in data/, expected 3')
    pq.write_table(pa.concat_tables([table.slice(9), table.slice(0, 9)]), path / PARQUET)
    refused(path, tiny, 'key episode_index is 1, expected 0')
    pq.write_table(pa.concat_tables([table.slice(1, 1), table.slice(0, 1), table.slice(2)]), path / PARQUET)
    refused(path, tiny, 'episode 0: key frame_index does not count from 0 by one')


@pytest.mark.parametrize(('change', 'words'), [
    ({'codebase_version': 'v1.6'}, ["key codebase_version is 'v1.6', expected v3.0 or v2.1"]),
    ({'features': []}, ['key features']),
    ({'total_episodes': None}, ['key total_episodes']), ({'features': {}}, ['is no feature'])])
def test_info_of_lerobot(copy, tiny, change, words):
    path = copy('lerobot')
    file = path / 'meta' / 'info.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(path, tiny, str(file), *words)


def test_videos_are_refused_by_name(copy, tiny):
    path = copy('lerobot')
    file = path / 'meta' / 'info.json'
    data = json.loads(file.read_text())
    data['features']['observation.images.wrist']['dtype'] = 'video'
    file.write_text(json.dumps(data))
    refused(path, tiny, str(file), 'key observation.images.wrist is stored as video, expected image')


def test_terminal_steps_inside_have_no_place_in_dsrl(tmp_path, tiny, make_episode):
    episode = make_episode(6, contract=tiny)
    episode.is_terminal[2] = True
    with pytest.raises(DataError, match='episode 0: is_terminal is set without is_last at step 2'):
        detect.write(tmp_path / 'x', tiny, [episode], 'hdf5')
    assert not list(tmp_path.iterdir())


def test_commands_say_it_in_one_line_and_leave_nothing(copy, tmp_path, capsys):
    for argv in (['import', str(tmp_path / 'none'), '--out', str(tmp_path / 'y')],
                 ['import', str(tmp_path), '--out', str(tmp_path / 'y')],
                 ['import', str(copy('minari')), '--format', 'lerobot', '--out', str(tmp_path / 'y')],
                 ['export', str(tmp_path / 'none'), '--format', 'hdf5', '--out', str(tmp_path / 'y')]):
        assert cli.main(argv) == 2
        out, err = capsys.readouterr()
        assert out == '' and err.startswith('error: ') and err.count('\n') == 1
        assert sorted(p.name for p in tmp_path.iterdir()) in ([], ['minari'])


@pytest.mark.parametrize('name', detect.FORMATS)
def test_forty_damaged_files_give_episodes_or_one_line(copy, tiny, name):
    """Bytes changed anywhere."""
    path, rng, refusals = copy(name), np.random.default_rng(7), 0
    files = sorted(p for p in path.rglob('*') if p.is_file())
    for _ in range(40):
        file = files[rng.integers(len(files))]
        kept = file.read_bytes()
        data = np.frombuffer(kept, np.uint8).copy()
        data[rng.integers(len(data), size=rng.choice([1, 8, 64]))] = rng.integers(256)
        file.write_bytes(data.tobytes())
        try:
            list(detect.read(path, tiny))
        except (DataError, ContractError) as error:
            refusals += 1
            assert '\n' not in str(error) and str(path) in str(error)
        file.write_bytes(kept)
    assert refusals > 5
