# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The `fosp` command: a table of subcommands whose modules are imported only when they are asked for.

Each module offers `add_arguments(parser)` and `run(args) -> int`. Exit codes: 0 done, 1 the command ran and says no
(a failed check), 2 the input or the usage is wrong (one line on standard error), 130 interrupted.
"""

import argparse
import errno
import importlib
import os
import sys

from fosp_core.errors import FospError

# name -> (module, one line for `fosp --help`). A module here is not imported until its command is run.
COMMANDS = {
    'collect': ('fosp_sim.collect', 'run scripted demonstrators in the simulator and record a bag'),
    'rollout': ('fosp_sim.rollout', 'record what a model does in the simulator, as episodes of a robot'),
    'pretrain': ('fosp_core.train.pretrain', 'learn world model, policy and reachability from bags'),
    'refit': ('fosp_core.train.refit_cli', "the reachability estimate learns from the policy's own violations"),
    'finetune': ('fosp_core.train.finetune_cli', "few gradient steps on a robot's episodes, gates, a new bundle"),
    'evaluate': ('fosp_sim.evaluate', 'run a model bundle in the simulator and report SR and CV'),
    'film': ('fosp_sim.film', 'one layout behind the filter, as a film with the risk drawn in'),
    'report': ('fosp_core.report.cli', 'a page about a model: rates, films, reliability, predictions, learning curves'),
    'study': ('fosp_core.study.cli', 'train, adapt and evaluate many models by a plan; resumable'),
    'up': ('fosp_ros.up', 'start the node graph without ros2 launch'),
    'demo': ('fosp_ros.demo', 'standard episodes, a changed scene, fine-tuning, a report'),
    'record': ('fosp_ros.record', 'record the topics of a live graph, with labels, into a bag'),
    'check-arm': ('fosp_ros.check_arm', 'does the arm driver follow, and halt when the commands end?'),
    'play': ('fosp_ros.play', "publish a bag's replay records to a running trainer"),
    'bench': ('fosp_core.bench', 'measure latency and throughput'),
    'calibrate': ('fosp_core.deploy.calibrate_cli', 'recompute the levels of a bundle on held-out bags'),
    'bundle': ('fosp_core.deploy.bundle_cli', 'verify a model bundle; evaluations into its card; change its settings'),
    'pack': ('fosp_core.data.pack_cli', 'bags to one flat folder that opens at once'),
    'audit': ('fosp_core.audit.cli', 'what the safety filter did, and why it stopped'),
    'import': ('fosp_core.formats.import_cli', 'HDF5, Minari and LeRobot data sets to a packed folder or a bag'),
    'export': ('fosp_core.formats.export_cli', 'bags and data sets to HDF5 (DSRL), Minari or LeRobot'),
    'inspect': ('fosp_core.doctor.command', 'what is wrong with a bag or data set: table, pictures, JSON'),
    'bag-info': ('fosp_core.data.bag_info', 'topics, steps, episodes, SR, CV and losses of a bag'),
}

# The environment, not the program, is at fault: one line instead of a traceback.
_ENVIRONMENT = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def version() -> str:
    """Version of the installed package, or of the source checkout around this file."""
    from importlib import metadata
    try:
        return metadata.version('fosp_ros')
    except metadata.PackageNotFoundError:
        import re
        from pathlib import Path
        manifest = Path(__file__).resolve().parent.parent / 'package.xml'
        found = re.search(r'<version>([^<]+)</version>', manifest.read_text()) if manifest.is_file() else None
        return found.group(1) if found else 'unknown'


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = '\n'.join(f'  {name:<{width}}  {text}' for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog='fosp', formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Safe offline-to-online reinforcement learning for a robot arm, from rosbags to a ROS 2 graph.',
        epilog=f'commands:\n{lines}\n\n`fosp COMMAND --help` tells more about one of them.')
    parser.add_argument('--version', action='store_true', help='print the version and exit')
    parser.add_argument('command', nargs='?', metavar='COMMAND', help='one of the commands below')
    return parser


def _dispatch(name: str, argv: list[str]) -> int:
    module_name, text = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The learner's computer need not have the simulator, nor the robot's computer the trainer's libraries.
        raise FospError(f'{name}: Python module {error.name} is not installed here') from None
    parser = argparse.ArgumentParser(prog=f'fosp {name}', description=text[0].upper() + text[1:] + '.')
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(argv)) or 0)


def _fail(text: str) -> int:
    print(f'error: {" ".join(text.split())}', file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # What follows the command belongs to the command, `--help` included.
    split = next((i + 1 for i, word in enumerate(argv) if not word.startswith('-')), len(argv))
    parser = _parser()
    args = parser.parse_args(argv[:split])
    try:
        if args.version:
            print(f'fosp {version()}')
            return 0
        if args.command is None:
            parser.print_help(sys.stderr)
            return 2
        if args.command not in COMMANDS:
            return _fail(f'unknown command {args.command!r}, expected one of {", ".join(COMMANDS)}')
        return _dispatch(args.command, argv[split:])
    except FospError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `fosp ... | head`: the reader has what it wanted; without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        where = f'{error.filename}: ' if error.filename else ''
        return _fail(f'{where}{error.strerror}')


if __name__ == '__main__':
    sys.exit(main())
