"""What the scripts on mirror jobs have in common: disks of known content, a job from its start to its end, peers."""

import os
import shutil
import subprocess
import time

import iotests
from iotests import MIB, QmpTestCase, make_file, not_run, sock_path, start_nbd_server, test_path
from load import BLOCK, Load
from patience import limit

SIZE = 8 * MIB
# The load leaves the rest as it was.
LOAD_BLOCKS = 512


def need(*programs):
    """Ends the script when a program it needs is not there."""
    for program in programs:
        if shutil.which(program) is None:
            not_run(f'{program} is not installed')


def pattern(size=SIZE):
    """Content that differs from block to block, with holes."""
    parts = []
    for at in range(size // 65536):
        parts.append(bytes(65536) if at % 5 == 3 else bytes([at % 251 + 1]) * 65536)
    return b''.join(parts)


def write_image(name, data):
    path = test_path(name)
    with open(path, 'wb') as file:
        for at in range(0, len(data), 65536):
            piece = data[at:at + 65536]
            if piece.count(0) != len(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(data))
    return path


def read_file(path):
    with open(path, 'rb') as file:
        return file.read()


def qemu_img(*args):
    subprocess.run(['qemu-img', *args], check=True, stdout=subprocess.DEVNULL)


def content_of(path, file_format):
    """The content of an image nobody has open, as bytes."""
    if file_format == 'raw':
        return read_file(path)
    copy = path + '.raw'
    qemu_img('convert', '-U', '-f', file_format, '-O', 'raw', path, copy)
    data = read_file(copy)
    os.unlink(copy)
    return data


def listens(path):
    """Whether somebody takes connections there. Servers complain of connections that are only tried."""
    accepts = '00010000'
    with open('/proc/net/unix', encoding='utf-8') as sockets:
        return any(line.split()[3] == accepts and line.split()[-1] == path for line in sockets)


class QemuNbd:
    """A server of one image, `$SOCK_DIR/NAME`, in a process of its own."""

    def __init__(self, path, file_format, name='peer'):
        self.socket = sock_path(name)
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.process = subprocess.Popen(['qemu-nbd', '-f', file_format, '-t', '-k', self.socket, '-x', 'disk', path],
                                        stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + limit(10)
        # The socket is there before the server listens on it.
        while not listens(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError('qemu-nbd does not start')
            time.sleep(0.01)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait(limit(10))

    def options(self, node_name):
        return {'driver': 'nbd', 'node-name': node_name, 'export': 'disk',
                'server': {'type': 'unix', 'path': self.socket}}


class MirrorTestCase(QmpTestCase):
    """A source `s` (raw, exported as `disk`) and what a test does with it."""

    source_options = {}

    def setUp(self):
        super().setUp()
        self.original = pattern()
        self.source = write_image('source.img', self.original)
        self.add_raw('s', self.source, **self.source_options)
        self.socket = start_nbd_server(self.daemon)
        self.daemon.command('block-export-add', type='nbd', id='e', node_name='s', writable=True, name='disk')

    def tearDown(self):
        super().tearDown()
        for name in os.listdir(iotests.TEST_DIR):
            if name.endswith(('.img', '.qcow2', '.raw')):
                os.unlink(test_path(name))

    def add_raw(self, name, path, **more):
        self.assert_ok('blockdev-add', {'driver': 'raw', 'node-name': name,
                                        'file': {'driver': 'file', 'filename': path}, **more})

    def add_target(self, file_format='raw'):
        """A target `t` of the source's size with other content; returns its path."""
        if file_format == 'raw':
            path = make_file('target.img', SIZE, pattern=0xEE)
            self.add_raw('t', path)
            return path
        path = test_path('target.qcow2')
        qemu_img('create', '-q', '-f', 'qcow2', path, str(SIZE))
        self.assert_ok('blockdev-add', {'driver': 'qcow2', 'node-name': 't',
                                        'file': {'driver': 'file', 'filename': path}})
        return path

    def load(self, seed=1):
        return Load(self.socket, 'disk', seed=seed, blocks=(0, LOAD_BLOCKS))

    def mirror(self, **more):
        arguments = {'job-id': 'j', 'device': 's', 'target': 't', 'sync': 'full',
                     **{name.replace('_', '-'): value for name, value in more.items()}}
        self.assert_ok('blockdev-mirror', arguments)

    def wait(self, name):
        """The event's data."""
        event = self.daemon.event_wait(name, 60)
        self.assertIsNotNone(event, f'no {name}; jobs: {self.jobs()}')
        return event['data']

    def jobs(self):
        return self.daemon.command('query-block-jobs')

    def ready(self):
        self.assertEqual(self.wait('BLOCK_JOB_READY')['type'], 'mirror')

    def ended(self, error=None):
        """The job has ended by itself, well or with an error."""
        data = self.wait('BLOCK_JOB_COMPLETED')
        self.assertEqual(data.get('error'), error)
        self.gone()

    def cancelled(self):
        self.wait('BLOCK_JOB_CANCELLED')
        self.gone()

    def gone(self):
        """Nothing of the job is left. It disappears right after its last event."""
        deadline = time.monotonic() + limit(10)
        while self.jobs() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(self.jobs(), [])
        self.assertNotIn('mirror_top', [node['drv'] for node in self.nodes()])
        for node in self.nodes():
            self.assertEqual(node.get('dirty-bitmaps', []), [])

    def nodes(self):
        return self.daemon.command('query-named-block-nodes')

    def complete(self):
        self.assert_ok('block-job-complete', device='j')
        self.ended()

    def exported_node(self):
        return self.daemon.command('query-block-exports')[0]['node-name']

    def stop_export(self):
        self.assert_ok('block-export-del', id='e', mode='hard')
        self.assertIsNotNone(self.daemon.event_wait('BLOCK_EXPORT_DELETED', 30))

    def expected(self, load):
        """What a disk holds that had the source's content before the load."""
        data = bytearray(self.original)
        for offset, block in load.content().items():
            data[offset:offset + BLOCK] = block
        return bytes(data)

    def assert_same(self, found, expected):
        """Compares contents, and tells where they differ first."""
        if found == expected:
            return
        self.assertEqual(len(found), len(expected))
        at = next(i for i in range(0, len(found), 512) if found[i:i + 512] != expected[i:i + 512])
        self.fail(f'content differs at {at}: {found[at:at + 16].hex()} is not {expected[at:at + 16].hex()}')
