# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The base of every node and the main loop of every node process. Node modules import it.

`ManagedNode` turns four hooks into lifecycle transitions that report their failures (rclpy swallows exceptions in
transition callbacks) and share one tear-down that tolerates partial state. `spin_node` owns the process: signals, the
death of the parent, the order of destruction, output that nobody reads, and the exit code.
"""

import gc
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable

import rclpy
import yaml
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from fosp_core.errors import FospError
from fosp_ros import shared_memory
from fosp_ros.output import Relay
from fosp_ros.parameters import P, declare

PARENT_VARIABLE = 'FOSP_PARENT_PID'
PARENT_PERIOD_S = 0.5     # how often a process looks whether the one that started it still lives
SHUTDOWN_LIMIT_S = 8.0    # a process that cannot end in this time is ended by force, so that nothing is orphaned
EXIT_REQUESTED, EXIT_FAULT, EXIT_USER_ERROR = 0, 1, 2

COMMON_PARAMETERS = (
    P('autostart', 'bool', True, 'Configure and activate at start. Off: a lifecycle manager does it.', read_only=True),
)


class ManagedNode(LifecycleNode):
    """A lifecycle node with the hooks `set_up`, `start`, `stop` and `tear_down`.

    set_up: verify and create everything (configure); start: act (activate); stop: cease to act (deactivate);
    tear_down: release what `set_up` made, also when it failed half-way. Entities made by `publish_on`, `listen`,
    `serve` and `every` are destroyed by the base. `self.p` holds the parameters of the class's table `PARAMETERS`.
    """

    NAME = 'node'
    PARAMETERS: tuple[P, ...] = ()

    def __init__(self, name: str | None = None, **options):
        super().__init__(name or self.NAME, **options)
        self.p = declare(self, COMMON_PARAMETERS + self.PARAMETERS)
        self.active = False
        self.failure: str | None = None  # why the last transition failed, one line
        self._made: list[tuple[Callable, object]] = []
        self.steady = Clock(clock_type=ClockType.STEADY_TIME)

    # -- hooks --------------------------------------------------------------------------------------------------------
    def set_up(self) -> None:
        """Verify and create; raise FospError when the user has to mend something."""

    def start(self) -> None:
        """Begin to act."""

    def stop(self) -> None:
        """Cease to act; what must be said last is said here."""

    def tear_down(self) -> None:
        """Release what `set_up` made; must tolerate that it was never made."""

    # -- entities that live from configure to cleanup -----------------------------------------------------------------
    def publish_on(self, kind, topic: str, profile):
        """Create a publisher that the base destroys on cleanup."""
        publisher = self.create_publisher(kind, topic, profile)
        self._made.append((self.destroy_publisher, publisher))
        return publisher

    def listen(self, kind, topic: str, callback: Callable, profile, group=None, raw: bool = False):
        """Create a subscription that the base destroys on cleanup."""
        subscription = self.create_subscription(kind, topic, callback, profile, callback_group=group, raw=raw)
        self._made.append((self.destroy_subscription, subscription))
        return subscription

    def serve(self, kind, name: str, callback: Callable, group=None):
        """Create a service that the base destroys on cleanup."""
        service = self.create_service(kind, name, callback, callback_group=group)
        self._made.append((self.destroy_service, service))
        return service

    def every(self, seconds: float, callback: Callable, group=None):
        """Create a timer on the steady clock (simulated time must not stop it); destroyed on cleanup."""
        timer = self.create_timer(seconds, callback, callback_group=group, clock=self.steady)
        self._made.append((self.destroy_timer, timer))
        return timer

    # -- transitions --------------------------------------------------------------------------------------------------
    def bring_up(self) -> bool:
        """Configure and activate; False with `failure` set when either is refused."""
        for trigger in (self.trigger_configure, self.trigger_activate):
            if trigger() != TransitionCallbackReturn.SUCCESS:
                return False
        return True

    def bring_down(self) -> None:
        """Stop and release everything, whatever state the node is in; never raises."""
        if self.active:
            self.active = False
            self._attempt('stop', self.stop)
        self._release()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `set_up`; on any fault release the half-made state and stay unconfigured."""
        if self._attempt('configure', self.set_up):
            return TransitionCallbackReturn.SUCCESS
        self._release()
        return TransitionCallbackReturn.FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `start`; on a fault stay inactive."""
        if self._attempt('activate', self.start):
            self.active = True
            return TransitionCallbackReturn.SUCCESS
        self._attempt('stop', self.stop)
        return TransitionCallbackReturn.FAILURE

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `stop`; a fault in it leads through the error state back to unconfigured."""
        self.active = False
        return TransitionCallbackReturn.SUCCESS if self._attempt('deactivate', self.stop) \
            else TransitionCallbackReturn.ERROR

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop when active, then release everything."""
        self.bring_down()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; SUCCESS leads back to unconfigured."""
        self.active = False
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _attempt(self, what: str, hook: Callable) -> bool:
        try:
            hook()
        except FospError as error:
            self.failure = f'{what}: {error}'
            self.get_logger().error(self.failure)
            return False
        except Exception as error:  # noqa: BLE001 - rclpy would swallow it: say it, then fail the transition
            self.failure = f'{what}: {type(error).__name__}: {error}'
            self.get_logger().error(f'{self.failure}\n{traceback.format_exc()}')
            return False
        return True

    def _release(self) -> None:
        self._attempt('tear down', self.tear_down)
        while self._made:
            destroy, entity = self._made.pop()
            self._attempt('tear down', lambda d=destroy, e=entity: d(e))


class _Ender:
    """Ends the spin on SIGINT, SIGTERM or the death of the parent, and the process if it then hangs.

    The handlers only set an event. A thread waits on the wake-up socket that the interpreter writes to on a signal, so
    that an executor blocked in C is woken at once, and compares the parent every half second.
    """

    def __init__(self, relay: Relay):
        self._relay = relay
        self.event = threading.Event()
        self.reason = ''
        self._executor = None
        self._done = threading.Event()
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._parent = int(os.environ.get(PARENT_VARIABLE) or 0)
        self._direct = self._parent == os.getppid()
        self._old = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        self._old_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name='ender', daemon=True)
        self._thread.start()

    def attach(self, executor) -> None:
        self._executor = executor

    def close(self) -> None:
        self._done.set()
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._write.close()  # wakes the thread
        self._thread.join(2.0)
        self._read.close()

    def _on_signal(self, number, _frame) -> None:
        self.reason = self.reason or signal.Signals(number).name
        self.event.set()

    def _parent_died(self) -> bool:
        if not self._parent:
            return False
        if self._direct:
            return os.getppid() != self._parent
        try:  # started through a shell or a launcher in between: only the existence can be asked for
            os.kill(self._parent, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def _watch(self) -> None:
        waited = 0.0
        while not self._done.is_set():
            ready, _, _ = select.select([self._read], [], [], PARENT_PERIOD_S)
            if self._done.is_set():
                return
            if ready:
                self._read.recv(64)
            elif self._parent_died():
                self.reason = self.reason or f'parent process {self._parent} ended'
                self.event.set()
            if ready or self.event.is_set():
                if self._executor is not None:
                    self._executor.create_task(lambda: None)  # work for an executor that sleeps, so that it returns
                if not ready:
                    waited += PARENT_PERIOD_S
                if waited > SHUTDOWN_LIMIT_S:
                    sys.stderr.write(f'error: process {os.getpid()} did not end within {SHUTDOWN_LIMIT_S:g} s of '
                                     f'{self.reason}; ended by force\n')
                    self._relay.flush()
                    shared_memory.remove(shared_memory.opened_by(os.getpid()), ending=os.getpid())
                    os._exit(EXIT_FAULT)


def _bad_arguments(arguments: list[str], error: Exception) -> str:
    """Return one line that names the parameter file at fault; rcl itself does not."""
    for flag, value in zip(arguments, arguments[1:]):
        if flag == '--params-file':
            try:
                with open(value) as file:
                    yaml.safe_load(file)
            except OSError as fault:
                return f'{value}: {fault.strerror}'
            except (yaml.YAMLError, UnicodeDecodeError) as fault:
                return f'{value}: not YAML: {" ".join(str(fault).split())}'
    return f'ROS arguments {" ".join(arguments[1:])}: {" ".join(str(error).split())}'


def spin_node(node_class: Callable[[], ManagedNode], args: list[str] | None = None, threads: int = 1) -> int:
    """Run one node in this process until a signal or the end of the parent; return the exit code.

    0 after SIGINT, SIGTERM or the parent's end; 2 when the node refuses its parameters or, with `autostart`, its
    configuration (one line on stderr); 1 for a fault of ours (traceback). `threads` > 1 chooses the multi-threaded
    executor: only for nodes with explicit callback groups.
    """
    relay = Relay()     # before anything is logged
    ender = _Ender(relay)
    node = executor = None
    code = EXIT_REQUESTED
    try:
        try:
            rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        except Exception as error:  # noqa: BLE001 - the type differs between distributions
            raise FospError(_bad_arguments(sys.argv if args is None else args, error)) from None
        node = node_class()
        executor = SingleThreadedExecutor() if threads == 1 else MultiThreadedExecutor(threads)
        executor.add_node(node)
        ender.attach(executor)
        if node.p.autostart and not node.bring_up():
            raise FospError(f'node {node.get_name()}: {node.failure}')
        gc.collect()
        gc.freeze()  # what a node holds from here on is no garbage: later collections stay short
        while rclpy.ok() and not ender.event.is_set():
            executor.spin_once()
    except FospError as error:
        sys.stderr.write(f'error: {error}\n')
        code = EXIT_USER_ERROR
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:  # noqa: BLE001 - the last line of defence of the process: report, then end in order
        if rclpy.ok():  # Jazzy may raise RCLError from a spin whose context was shut down: that is a normal end
            traceback.print_exc()
            code = EXIT_FAULT
    finally:
        if ender.reason:
            sys.stderr.write(f'ending: {ender.reason}\n')
        # Nodes before the context: a context that is shut down first leaves the services discoverable.
        if node is not None:
            node.bring_down()
        if executor is not None:
            ender.attach(None)
            executor.shutdown(timeout_sec=2.0)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        ender.close()
        relay.close()
    return code
