"""What the scripts of network drivers (310 to 319) share: a driver's real server, and what every driver is put through.

The servers are those of the tests (test/peers/network/servers), started from the built tree.
"""

import json
import os
import random
import subprocess

from iotests import MIB, Daemon, filter_text, log, make_file, not_run, start_nbd_server, test_path
from nbdclient import FLAG_FUA, NbdClient, NbdError

SERVE = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'dist/test/peers/network/servers/serve.js')
SIZE = 4 * MIB


class Server:
    """The server of a driver, in a folder of its own."""

    def __init__(self, kind):
        folder = test_path('server')
        os.mkdir(folder)
        # The server's own user has to get at it.
        os.chmod(folder, 0o755)
        self.process = subprocess.Popen(['node', SERVE, kind, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)
        about = self.answer()
        if 'missing' in about:
            not_run(about['missing'])
        self.args, self.is_writable = about['args'], about['isWritable']

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError('the server does not start')
        return json.loads(line)

    def ask(self, *words):
        self.process.stdin.write(' '.join(words) + '\n')
        self.process.stdin.flush()
        return self.answer()

    def make(self, name, content):
        """Puts an image there; options of a node for it."""
        path = test_path('content')
        with open(path, 'wb') as file:
            file.write(content)
        return self.ask('make', name, path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def content():
    """Data, nothing, data; the same each time."""
    source = random.Random(1)
    return bytearray(source.randbytes(2 * MIB) + bytes(MIB) + source.randbytes(MIB))


def said(action, *args, **more):
    """What an attempt ends with."""
    try:
        action(*args, **more)
        return 'done'
    except NbdError as error:
        return str(error)


def reads(client, model):
    log('=== Read')
    for offset, length in ((0, len(model)), (1, 1), (4095, 8194), (2 * MIB - 3, MIB + 6), (len(model) - 1, 1)):
        assert client.read(offset, length) == model[offset:offset + length], (offset, length)
    log(f'  behind the end: {said(client.read, len(model), 512)}')
    log('=== Status')
    extents = client.block_status(0, len(model))['base:allocation']
    at = 0
    for length, flags in extents:
        # Zeroes read as such, wherever they are told.
        assert not flags & 2 or not any(model[at:at + length])
        at += length
    log(f'  told to the end: {at >= len(model) or at > 0}, data at the start: {extents[0][1] == 0}')


def writes(client, model):
    log('=== Write, flush')
    source = random.Random(2)
    for offset, length in ((0, 512), (1000, 3), (65536, 65536), (MIB - 1, MIB + 2), (len(model) - 5, 5)):
        data = source.randbytes(length)
        client.write(offset, data, FLAG_FUA if offset == 1000 else 0)
        model[offset:offset + length] = data
    log(f'  zeroes: {said(client.write_zeroes, 3 * MIB, 256 * 1024)}')
    model[3 * MIB:3 * MIB + 256 * 1024] = bytes(256 * 1024)
    log(f'  discard: {said(client.trim, 3 * MIB, 256 * 1024)}')
    log(f'  flush: {said(client.flush)}')
    log(f'  behind the end: {said(client.write, len(model), bytes(512))}')
    assert client.read(0, len(model)) == model


def size_of(daemon, node):
    (info,) = [info for info in daemon.command('query-named-block-nodes') if info['node-name'] == node]
    return info['image']['virtual-size']


def job(daemon, command, **arguments):
    daemon.command(command, job_id='j', **arguments)
    if command == 'blockdev-mirror':
        daemon.event_wait('BLOCK_JOB_READY', 60)
        daemon.command('block-job-cancel', device='j')
    data = daemon.event_wait('BLOCK_JOB_COMPLETED', 60)['data']
    return data.get('error', 'done')


def add(daemon, node, options):
    daemon.command('blockdev-add', {'node-name': node, **options})


def same(daemon, node, expected):
    """Whether a backup of the node is what it should be."""
    path = make_file('backup', len(expected))
    add(daemon, 'backup', {'driver': 'file', 'filename': path})
    ended = job(daemon, 'blockdev-backup', device=node, target='backup', sync='full')
    daemon.command('blockdev-del', node_name='backup')
    with open(path, 'rb') as file:
        return f'{ended}, the same: {file.read() == expected}'


def resize(daemon):
    log('=== Resize')
    for size in (6 * MIB, 5 * MIB + 512, SIZE):
        reply = daemon.qmp('block_resize', node_name='n', size=size)
        log(f"  to {size}: {filter_text(reply['error']['desc']) if 'error' in reply else 'done'}, {size_of(daemon, 'n')}")


def create(daemon, server):
    place = server.ask('place', 'new')
    log('=== Create')
    if place is None:
        log('  not with this driver')
        return server.make('new', bytes(SIZE)) if server.is_writable else None
    driver = place['driver']
    location = {name: value for name, value in place.items() if name not in ('driver', 'retry-delay')}
    daemon.command('blockdev-create', job_id='c', options={'driver': driver, 'location': location, 'size': SIZE})
    while daemon.command('query-jobs')[0]['status'] != 'concluded':
        pass
    log(f"  {daemon.command('query-jobs')[0].get('error', 'done')}")
    daemon.command('job-dismiss', id='c')
    return place


def exercise(kind):
    """Read, status, write, flush, resize, create, and jobs from it and to it."""
    model = content()
    with Server(kind) as server, Daemon(*server.args) as daemon:
        options = server.make('disk', model)
        log('=== Open')
        reply = daemon.qmp('blockdev-add', {'node-name': 'n', **options})
        if 'error' in reply:
            log(f"  writable: {filter_text(reply['error']['desc'])}")
        writable = 'error' not in reply
        if not writable:
            add(daemon, 'n', {**options, 'read-only': True})
        log(f"  size {size_of(daemon, 'n')}, writable: {writable}")
        path = start_nbd_server(daemon)
        daemon.command('block-export-add', type='nbd', id='e', node_name='n', writable=writable)
        client = NbdClient(path, 'n', contexts=['base:allocation'], timeout=60)
        reads(client, model)
        if writable:
            writes(client, model)
        client.disconnect()
        daemon.command('block-export-del', id='e')
        daemon.event_wait('BLOCK_EXPORT_DELETED')
        resize(daemon)
        log('=== Jobs')
        log(f"  backup from it: {same(daemon, 'n', model)}")
        new = create(daemon, server)
        if new is not None:
            # Once from front to back, as all can be written.
            add(daemon, 't', new)
            ended = job(daemon, 'blockdev-backup', device='n', target='t', sync='full')
            daemon.command('blockdev-del', node_name='t')
            add(daemon, 't', {**new, 'read-only': True})
            log(f"  backup to it: {ended}, {same(daemon, 't', model)}")
            daemon.command('blockdev-del', node_name='t')
        if server.is_writable:
            source = make_file('source', SIZE, 7)
            add(daemon, 's', {'driver': 'file', 'filename': source})
            add(daemon, 't', new)
            log(f"  mirror to it: {job(daemon, 'blockdev-mirror', device='s', target='t', sync='full')}")
            log(f"  {same(daemon, 't', bytes([7]) * SIZE)}")
            daemon.command('blockdev-del', node_name='t')
        daemon.command('nbd-server-stop')
        daemon.command('blockdev-del', node_name='n')
