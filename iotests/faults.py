"""What the scripts on jobs and faults have in common: every kind of job on the same small images, from start to end.

    base <- mid <- top      qcow2 images, each with data of its own; `t`: a blank target

    self.open(t=[rule])              # opens the images, with blkdebug rules below some
    run = self.run_job('mirror', policy='stop')
    self.close()
    self.check('mirror', run)        # result or source, whatever the job has come to; the images are in order
"""

import json
import os
import shutil
import subprocess
import time

import iotests
from iotests import QmpTestCase, test_path
from mirroring import qemu_img
from patience import limit

CLUSTER = 65536
SIZE = 6 * CLUSTER
CHAIN = ('base', 'mid', 'top')
IMAGES = CHAIN + ('t',)
# Command and arguments, the image that the job writes, and the one of the chain whose content it shows then.
KINDS = {
    'mirror': ('blockdev-mirror', {'device': 'top', 'target': 't', 'sync': 'full', 'buf-size': 2 * CLUSTER},
               't', 'top'),
    'backup': ('blockdev-backup', {'device': 'top', 'target': 't', 'sync': 'full',
                                   'x-perf': {'max-workers': 1, 'max-chunk': CLUSTER}}, 't', 'top'),
    'stream': ('block-stream', {'device': 'top'}, 'top', 'top'),
    # Without a name for the header it is that of the node, blkdebug rules and all.
    'commit': ('block-commit', {'device': 'top', 'top-node': 'mid', 'backing-file': 'base.qcow2'}, 'base', 'mid'),
    'active': ('block-commit', {'device': 'top'}, 'base', 'top'),
}
JOB_FILTERS = ('copy-on-read', 'commit_top', 'mirror_top', 'copy-before-write')


def policy_arguments(kind, policy):
    """The same policy for errors of every side."""
    if policy is None:
        return {}
    if kind in ('mirror', 'backup'):
        return {'on-source-error': policy, 'on-target-error': policy}
    return {'on-error': policy}


def nth(event, number, errno=5, **more):
    """blkdebug options: the number-th request that causes the event fails, or with once=False all from then on."""
    states = [{'event': event, 'state': at, 'new_state': at + 1} for at in range(1, number)]
    return {**({'set-state': states} if states else {}),
            'inject-error': [{'event': event, 'state': number, 'errno': errno, 'once': True, **more}]}


class Run:
    """What became of a job: the errors it told, and how it ended."""

    def __init__(self):
        self.errors = []  # (operation, action)
        self.stops = 0
        self.error = None


class FaultsTestCase(QmpTestCase):
    """The images are made once and copied for each job."""

    content = {}

    def setUp(self):
        self.make_images()
        super().setUp()

    @classmethod
    def make_images(cls):
        """Images and what they show, unless they are there."""
        if cls.content:
            return
        os.makedirs(test_path('new'), exist_ok=True)
        shown = bytearray(SIZE)
        for number, name in enumerate(CHAIN):
            backing = ['-F', 'qcow2', '-b', f'{CHAIN[number - 1]}.qcow2'] if number else []
            path = test_path(f'new/{name}.qcow2')
            qemu_img('create', '-q', '-f', 'qcow2', *backing, path, str(SIZE))
            commands = []
            for at in range(SIZE // CLUSTER):
                # Something of every image alone, on top of each other, and nothing at all.
                if at % (number + 2) == 1 or at == 4 - number:
                    value = number * 80 + at + 1
                    commands += ['-c', f'write -P {value} {at * CLUSTER} {CLUSTER}']
                    shown[at * CLUSTER:(at + 1) * CLUSTER] = bytes([value]) * CLUSTER
            subprocess.run(['qemu-io', *commands, path], check=True, stdout=subprocess.DEVNULL)
            cls.content[name] = bytes(shown)
            with open(test_path(f'new/{name}.raw'), 'wb') as file:
                file.write(shown)
        qemu_img('create', '-q', '-f', 'qcow2', test_path('new/t.qcow2'), str(SIZE))

    def open(self, **debug):
        """Fresh images under their names; `debug`: blkdebug options by image."""
        for name in IMAGES:
            shutil.copyfile(test_path(f'new/{name}.qcow2'), test_path(f'{name}.qcow2'))
        self.add_images(**debug)

    def add_images(self, **debug):
        for number, name in enumerate(IMAGES):
            file = {'driver': 'file', 'filename': test_path(f'{name}.qcow2')}
            if name in debug:
                file = {'driver': 'blkdebug', 'image': file, **debug[name]}
            backing = {'backing': CHAIN[number - 1]} if name in CHAIN[1:] else {}
            self.assert_ok('blockdev-add', {'driver': 'qcow2', 'node-name': name, 'file': file, **backing})

    def close(self):
        """Removes all nodes. One that cannot be flushed goes all the same."""
        for name in ('t', 'top', 'mid', 'base'):
            self.daemon.qmp('blockdev-del', node_name=name)
        self.assertEqual(self.daemon.command('query-named-block-nodes', flat=True), [])
        self.daemon.client.events.clear()

    def start(self, kind, policy=None, **more):
        command, arguments, _, _ = KINDS[kind]
        more = {name.replace('_', '-'): value for name, value in more.items()}
        self.assert_ok(command, {'job-id': 'j', **arguments, **policy_arguments(kind, policy), **more})

    def next_event(self, timeout=30):
        """The next event of any kind."""
        client = self.daemon.client
        deadline = time.monotonic() + limit(timeout)
        while not client.events:
            client.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                message = client.receive()
            except TimeoutError:
                self.fail(f'no event; jobs: {self.jobs()}')
            finally:
                client.socket.settimeout(client.timeout)
            self.assertIsNotNone(message, 'the daemon is gone')
            client.events.append(message)
        return client.events.pop(0)

    def run_job(self, kind, policy=None, **more):
        """Starts a job and sees to it that it ends: resumes it when it stops, completes it when it is ready."""
        self.start(kind, policy, **more)
        run = Run()
        while True:
            event = self.next_event()
            data = event['data']
            if event['event'] == 'BLOCK_JOB_ERROR':
                run.errors.append((data['operation'], data['action']))
                # A policy that ignores errors may go on for ever; the rules of these scripts let it come to an end.
                self.assertLess(len(run.errors), 10000)
            elif event['event'] == 'BLOCK_JOB_READY':
                self.daemon.qmp('block-job-complete', device='j')
            elif event['event'] == 'BLOCK_JOB_COMPLETED':
                run.error = data.get('error')
            elif data.get('status') in ('paused', 'standby') and run.errors and self.is_stopped():
                run.stops += 1
                self.resume(run)
            elif data.get('status') == 'null':
                break
        self.assert_nothing_left()
        return run

    def is_stopped(self):
        """Whether the job rests because of an error. Drained sections pause jobs for a moment, too."""
        return any(job['io-status'] != 'ok' for job in self.jobs())

    def resume(self, _run):
        self.assert_ok('block-job-resume', device='j')

    def jobs(self):
        return self.daemon.command('query-block-jobs')

    def assert_nothing_left(self):
        self.assertEqual(self.daemon.command('query-jobs'), [])
        for node in self.daemon.command('query-named-block-nodes', flat=True):
            self.assertNotIn(node['drv'], JOB_FILTERS)
            self.assertEqual(node.get('dirty-bitmaps', []), [])

    def check_image(self, name, shows, alone=False):
        """The image is not corrupt and shows this content of the chain; `alone`: without backing images."""
        path = test_path(f'{name}.qcow2')
        self.check_metadata(name)
        options = {'driver': 'qcow2', 'file': {'driver': 'file', 'filename': path}}
        if alone:
            options['backing'] = None
        status = subprocess.run(['qemu-img', 'compare', '-q', 'json:' + json.dumps(options),
                                 test_path(f'new/{shows}.raw')], stdout=subprocess.DEVNULL).returncode
        self.assertEqual(status, 0, f'{name} does not show what {shows} did')

    def check_metadata(self, name, leaks=False):
        """No corruption. A failed write may leave clusters that nobody refers to."""
        check = subprocess.run(['qemu-img', 'check', '-q', test_path(f'{name}.qcow2')], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
        self.assertIn(check.returncode, (0, 3) if leaks else (0,), check.stdout)

    def check(self, kind, run):
        """After close: the source is unharmed in any case, and the result right when the job succeeded."""
        _, _, written, shows = KINDS[kind]
        self.check_image('top', 'top')
        if run.error is None:
            self.check_image(written, shows, alone=kind != 'stream' and written != 'base')
            if kind == 'stream':
                self.check_image('top', 'top', alone=True)
        elif written != 'top':
            self.check_metadata(written)


def main():
    iotests.main()
