# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pretraining in several processes that `torchrun` started: how they meet, agree, and end together."""

import atexit
import contextlib
import datetime
import hashlib
import json
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

from fosp_core.config import Config
from fosp_core.errors import FospError, TrainingError
from fosp_core.nn import parallel
from fosp_core.train.execution import as_device

_FAILURES = 'failures'
_TIMEOUT = datetime.timedelta(minutes=30)   # one process reads its bags, or exports, while the others wait


@contextlib.contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the processes of `torchrun`, or be alone without it; yield this process's torch device.

    When one process fails, it alone says why, in its one line; the others end quietly with exit code 2.

    Raises
    ------
    TrainingError
        When the processes do not meet, or when another one vanished without a word.

    """
    if int(os.environ.get('WORLD_SIZE', '1')) == 1:
        as_device(device)
        yield device
        return
    leaving = {'code': 2}
    atexit.register(_leave, leaving)
    store = _meet()
    rank, size = parallel.rank(), parallel.size()
    try:
        as_device(device)
        if device == 'cuda':
            device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
            torch.cuda.set_device(device)
        yield device
    except parallel.PeerLostError as error:
        # Whoever fails says so before it closes its connections: no word means that it was killed.
        if not _first(store):
            raise SystemExit(2) from None
        raise TrainingError(f'process {rank} of {size}: {error}; the last checkpoint is intact') from None
    except FospError as error:
        if not _first(store):
            raise SystemExit(2) from None
        raise type(error)(f'process {rank} of {size}: {error}') from None
    except KeyboardInterrupt:
        leaving['code'] = 130
        if not _first(store):
            raise SystemExit(130) from None
        raise
    except BaseException:
        leaving['code'] = 1
        _first(store)
        raise
    finally:
        parallel.leave()
    dist.destroy_process_group()
    leaving['code'] = 0


def _leave(leaving: dict) -> None:
    """End the process before the interpreter is taken down.

    Native threads may still hold tensors: one that drops them while the interpreter ends is unwound by it, and takes
    the process with it (SIGABRT, "terminate called without an active exception"), after all its work was done.
    """
    with contextlib.suppress(OSError, ValueError):    # a reader that has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(leaving['code'])


def _meet() -> dist.Store:
    backend = 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo'
    try:
        store, rank, size = next(dist.rendezvous('env://', timeout=_TIMEOUT))
        dist.init_process_group(backend, store=dist.PrefixStore('group', store), rank=rank, world_size=size,
                                timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f'the processes of torchrun do not meet: {" ".join(str(error).split())}') from None
    parallel.join(rank, size)
    return store


def _first(store: dist.Store) -> bool:
    """Note a failure; return whether it is the first one."""
    try:
        return store.add(_FAILURES, 1) == 1
    except RuntimeError:    # the store went with the process that held it, and that one has spoken
        return False


def check_shares(config: Config) -> None:
    """Raise TrainingError when a batch cannot be shared equally."""
    train = config.train
    for key, count in (('train.batch', train.batch), ('train.behaviour_batch', train.behaviour_batch),
                       ('behaviour.imagine_starts', config.behaviour.imagine_starts)):
        if count % parallel.size():
            raise TrainingError(f'{key} {count}: expected a multiple of the {parallel.size()} processes')


def check_agreement(learner, data: str) -> None:
    """Raise TrainingError unless every process has the same data, configuration, step and weights."""
    if parallel.size() == 1:
        return
    weights = hashlib.sha256()
    for tensor in learner.agent.state_dict().values():
        weights.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    here = {'data': data, 'configuration': json.dumps(learner.config.to_dict(), sort_keys=True),
            'step': str(learner.step), 'weights': weights.hexdigest()}
    for name, text in here.items():
        digest = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
        everywhere = parallel.gather(digest).view(parallel.size(), -1)
        for other in range(1, parallel.size()):
            if not torch.equal(everywhere[0], everywhere[other]):
                raise TrainingError(f'step {learner.step}: {name} of process {other} not as in process 0; all need the '
                                    f'same command line, files and versions')
