"""What the scripts of this folder are made of: a daemon under test, a QMP client, filters and logging.

Python 3.9 or newer, standard library only. The daemon is the program $QBLOCKD names; any program that takes the
options of qemu-storage-daemon will do. The NBD client is in nbdclient.py.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import unittest

from patience import limit

DAEMON = os.environ.get('QBLOCKD', 'qemu-storage-daemon')
TEST_DIR = os.environ.get('TEST_DIR', os.getcwd())
SOCK_DIR = os.environ.get('SOCK_DIR', TEST_DIR)
MIB = 1024 * 1024


def test_path(name):
    """A path in this script's scratch folder."""
    return os.path.join(TEST_DIR, name)


def sock_path(name):
    """A path for a socket: short enough for an address."""
    return os.path.join(SOCK_DIR, name)


def make_file(name, size=MIB, pattern=None):
    """Makes an image in the scratch folder, sparse or filled with one byte, and returns its path."""
    path = test_path(name)
    with open(path, 'wb') as file:
        if pattern is not None:
            file.write(bytes([pattern]) * size)
        file.truncate(size)
    return path


def not_run(reason):
    """Ends the script: it cannot run on this machine."""
    print(reason)
    sys.exit(77)


# ---- filters -----------------------------------------------------------------------------------------------------


def filter_text(text):
    """Replaces what differs from run to run, folders and generated node names; shortens runs of one character.

    The order of members in a `json:` file name means nothing: they are sorted.
    """
    if text.startswith('json:{'):
        text = 'json:' + json.dumps(json.loads(text[5:]), sort_keys=True)
    text = text.replace(TEST_DIR, 'TEST_DIR').replace(SOCK_DIR, 'SOCK_DIR')
    text = re.sub(r', held by process \d+ \([^)]*\)', '', text)
    text = re.sub(r'([a-z])\1{79,}', lambda run: f'{run.group(1)}{{{len(run.group())}}}', text)
    return re.sub(r'#block\d+', 'NODE_NAME', text)


def filter_qmp(value, key=''):
    """The same for a parsed message; also time stamps, versions and what the file system decides."""
    if isinstance(value, str):
        return filter_text(value)
    if isinstance(value, list):
        return [filter_qmp(item) for item in value]
    if isinstance(value, dict):
        if 'qemu' in value and 'package' in value:
            return 'VERSION'
        return {name: filter_qmp(item, name) for name, item in value.items()}
    if key in ('seconds', 'microseconds', 'actual-size') or key.endswith('_time_ns'):
        return key.upper()
    return value


def log(value, indent=None):
    """Prints text as it is, anything else as filtered JSON with sorted keys."""
    if isinstance(value, str):
        print(filter_text(value), flush=True)
    else:
        print(json.dumps(filter_qmp(value), sort_keys=True, indent=indent), flush=True)


# ---- QMP ---------------------------------------------------------------------------------------------------------


class QmpError(Exception):
    """A command failed; str() is the error's description."""


class QmpClient:
    """One QMP connection over a UNIX socket. Messages are kept in order; events are set aside until asked for."""

    def __init__(self, path, timeout=10):
        self.socket = socket.socket(socket.AF_UNIX)
        self.timeout = limit(timeout)
        self.socket.settimeout(self.timeout)
        self.socket.connect(path)
        self.buffer = b''
        self.events = []

    def close(self):
        self.socket.close()

    def send_raw(self, data):
        """Sends bytes or text as they are."""
        self.socket.sendall(data if isinstance(data, bytes) else data.encode())

    def receive(self):
        """The next message; None when the daemon has closed the connection."""
        while b'\n' not in self.buffer:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b''
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b'\n', 1)
        return json.loads(line)

    def reply(self):
        """The next reply; events before it are set aside."""
        while True:
            message = self.receive()
            if message is None or 'event' not in message:
                return message
            self.events.append(message)

    def negotiate(self, *capabilities):
        """Reads the greeting, negotiates, and returns the greeting."""
        greeting = self.receive()
        arguments = {'enable': list(capabilities)} if capabilities else None
        self.command('qmp_capabilities', arguments)
        return greeting

    def qmp(self, command, arguments=None, **more):
        """Runs a command and returns the whole reply. In keyword arguments `_` stands for `-`."""
        request = {'execute': command}
        merged = {**(arguments or {}), **{name.replace('_', '-'): value for name, value in more.items()}}
        if merged or arguments is not None:
            request['arguments'] = merged
        self.send_raw(json.dumps(request) + '\n')
        return self.reply()

    def command(self, command, arguments=None, **more):
        """Runs a command and returns what it returns; raises QmpError when it fails."""
        reply = self.qmp(command, arguments, **more)
        if reply is None:
            raise QmpError('connection closed')
        if 'error' in reply:
            raise QmpError(reply['error']['desc'])
        return reply['return']

    def qmp_log(self, command, arguments=None, indent=None, **more):
        """The same as qmp, and prints the request and the reply."""
        merged = {**(arguments or {}), **{name.replace('_', '-'): value for name, value in more.items()}}
        log({'execute': command, **({'arguments': merged} if merged or arguments is not None else {})})
        reply = self.qmp(command, arguments, **more)
        for event in self.events:
            log(event)
        self.events = []
        log(reply, indent)
        return reply

    def event_wait(self, name, timeout=10):
        """The next event of this name, from those set aside or still to come.

        None when the connection has closed. Raises when nothing comes for so long; None for waits of less than two
        seconds, which show that something does not come.
        """
        deadline = time.monotonic() + limit(timeout)
        while True:
            for event in self.events:
                if event['event'] == name:
                    self.events.remove(event)
                    return event
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise socket.timeout
                self.socket.settimeout(left)
                message = self.receive()
            except socket.timeout:
                if timeout < 2:
                    return None
                raise AssertionError(f'no event {name} in {limit(timeout):.0f} s') from None
            finally:
                self.socket.settimeout(self.timeout)
            if message is None:
                return None
            # What comes is progress: other events mean that the daemon is at work.
            if timeout >= 2:
                deadline = time.monotonic() + limit(timeout)
            self.events.append(message)


# ---- the daemon --------------------------------------------------------------------------------------------------


class Daemon:
    """The daemon under test: started with a QMP monitor and the given arguments, stopped at the end of the block."""

    count = 0

    def __init__(self, *args):
        Daemon.count += 1
        self.qmp_path = sock_path(f'qmp{Daemon.count}')
        # Written when every option has been executed; the socket is there before the monitor on it.
        pid_file = sock_path(f'pid{Daemon.count}')
        monitor = ['--chardev', f'socket,id=qmp,path={self.qmp_path},server=on,wait=off', '--monitor', 'qmp',
                   '--pidfile', pid_file]
        self.errors = open(test_path(f'daemon{Daemon.count}.err'), 'w+', encoding='utf-8')
        self.process = subprocess.Popen([DAEMON, *monitor, *args], stdin=subprocess.DEVNULL, stdout=self.errors,
                                        stderr=self.errors)
        try:
            self.wait_for(pid_file)
            self.client = QmpClient(self.qmp_path)
            self.greeting = self.client.negotiate()
        except BaseException:
            self.process.kill()
            raise

    def wait_for(self, path, timeout=20):
        """Waits until a file is there."""
        deadline = time.monotonic() + limit(timeout)
        while not os.path.exists(path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f'daemon does not start: {self.stderr()}')
            time.sleep(0.005)

    def connect(self):
        """Another QMP connection. The original serves it only when the first one has been closed."""
        return QmpClient(self.qmp_path)

    def qmp(self, command, arguments=None, **more):
        return self.client.qmp(command, arguments, **more)

    def command(self, command, arguments=None, **more):
        return self.client.command(command, arguments, **more)

    def qmp_log(self, command, arguments=None, indent=None, **more):
        return self.client.qmp_log(command, arguments, indent, **more)

    def event_wait(self, name, timeout=10):
        return self.client.event_wait(name, timeout)

    def stderr(self):
        """What the daemon has written so far."""
        self.errors.flush()
        self.errors.seek(0)
        return self.errors.read()

    def alive(self):
        return self.process.poll() is None

    def shutdown(self):
        """Ends the daemon by `quit`, or by force, and prints how it ended unless it ended well."""
        if self.alive():
            try:
                self.client.qmp('quit')
            except OSError:
                self.process.terminate()
        self.client.close()
        try:
            status = self.process.wait(limit(10))
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if status != 0:
            log(f'daemon ended with status {status}: {self.stderr()}')
        self.errors.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()


def start_nbd_server(daemon, name='nbd', **options):
    """Starts the daemon's NBD server on a UNIX socket and returns the socket's path."""
    path = sock_path(name)
    daemon.command('nbd-server-start', addr={'type': 'unix', 'data': {'path': path}}, **options)
    return path


# ---- class-based scripts -----------------------------------------------------------------------------------------


class QmpTestCase(unittest.TestCase):
    """A test case with a daemon of its own in `self.daemon`."""

    daemon_args = ()

    def setUp(self):
        self.daemon = Daemon(*self.daemon_args)

    def tearDown(self):
        self.daemon.shutdown()

    def assert_error(self, description, command, arguments=None, **more):
        """The command fails with this description."""
        reply = self.daemon.qmp(command, arguments, **more)
        self.assertIn('error', reply, f'{command} succeeded')
        self.assertEqual(filter_text(reply['error']['desc']), description)

    def assert_ok(self, command, arguments=None, **more):
        """The command succeeds; returns what it returns."""
        reply = self.daemon.qmp(command, arguments, **more)
        self.assertIn('return', reply, reply)
        return reply['return']


def main():
    """Runs the test cases of the script; prints one line for each, and nothing that varies."""
    loader = unittest.defaultTestLoader
    suite = loader.loadTestsFromModule(sys.modules['__main__'])
    failed = False
    for case in iterate(suite):
        result = unittest.TestResult()
        case.run(result)
        bad = result.errors + result.failures
        failed = failed or bool(bad)
        verdict = 'skipped' if result.skipped else 'FAILED' if bad else 'ok'
        print(f'{type(case).__name__}.{case._testMethodName} ... {verdict}', flush=True)
        for _, trace in bad:
            print(filter_text(trace), flush=True)
    sys.exit(1 if failed else 0)


def iterate(suite):
    """The test cases of nested suites, in order."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from iterate(item)
        else:
            yield item
