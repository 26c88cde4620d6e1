"""Load for tests of changes under load: a process that reads and writes an export over NBD, and checks what it reads.

    with Load(socket, 'disk') as load:
        ...                       # whatever is done to the daemon meanwhile
    load.check(self)              # no wrong byte, no failed request; writes have happened
    expected = load.content()     # {offset: bytes} of what was written

Each block of the export that the load may touch is written with a counter that only grows, so a lost or stale write
shows at the next read. Started as a program it is the process itself: SOCKET EXPORT SEED FIRST LAST.
"""

import json
import random
import select
import struct
import subprocess
import sys
import time

from nbdclient import CMD_FLUSH, CMD_READ, CMD_WRITE, CMD_WRITE_ZEROES, NbdClient, NbdError
from patience import limit

BLOCK = 4096
DEFAULT_BLOCKS = 256


def block_of(index, counter):
    """Content of a block after its write number `counter`; 0: never written, or zeroes."""
    return struct.pack('>IIQ', index, counter, counter * 0x9E3779B97F4A7C15 % 2 ** 64) * (BLOCK // 16) \
        if counter else bytes(BLOCK)


class ClientProcess:
    """A client under way as a process of its own: `script` with these arguments, until its stdin is closed."""

    def __init__(self, script, *args):
        self.result = None
        self.process = subprocess.Popen([sys.executable, script, *map(str, args)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # It says so when its first write has been answered.
        line = self.process.stdout.readline()
        if line != 'running\n':
            raise RuntimeError(f'the client did not start: {line}')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends the process and returns the result it prints."""
        if self.result is None:
            output, _ = self.process.communicate(timeout=limit(60))
            self.result = json.loads(output)
        return self.result


class Load(ClientProcess):
    """
    A process under way. `blocks`: (first, last + 1) in units of 4 KiB, what it may read and write.
    Its result: {'requests', 'writes', 'errors', 'slowest_ms', 'counters'}.
    """

    def __init__(self, socket, export='', seed=1, blocks=(0, DEFAULT_BLOCKS)):
        self.blocks = blocks
        super().__init__(__file__, socket, export, seed, *blocks)

    def check(self, case):
        """Fails the test case when a request failed or a read returned something else than was written."""
        result = self.stop()
        case.assertEqual(result['errors'], [])
        case.assertGreater(result['writes'], 0)

    def content(self):
        """What the blocks hold, as {offset in bytes: content}; after stop."""
        counters = self.stop()['counters']
        return {(self.blocks[0] + at) * BLOCK: block_of(self.blocks[0] + at, counter)
                for at, counter in enumerate(counters) if counter is not None}


def run(path, export, seed, first, last):
    """The process: requests one after another until stdin is closed or something is wrong; prints the result."""
    client = NbdClient(path, export, timeout=60)
    rng = random.Random(seed)
    # None: not looked at yet, so whatever is there counts as right.
    counters = [None] * (last - first)
    errors, requests, writes, slowest = [], 0, 0, 0.0
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        at = rng.randrange(last - first)
        offset = (first + at) * BLOCK
        kind = rng.random() if writes else 0.0
        started = time.monotonic()
        try:
            if kind < 0.45:
                number += 1
                client.request(CMD_WRITE, offset, BLOCK, block_of(first + at, number))
                counters[at] = number
                writes += 1
                if writes == 1:
                    print('running', flush=True)
            elif kind < 0.5:
                client.request(CMD_WRITE_ZEROES, offset, BLOCK)
                counters[at] = 0
                writes += 1
            elif kind < 0.52:
                client.request(CMD_FLUSH)
            else:
                data = client.request(CMD_READ, offset, BLOCK)
                if counters[at] is not None and data != block_of(first + at, counters[at]):
                    found = struct.unpack('>II', data[:8])
                    errors.append(f'block {first + at}: write {counters[at]} expected, found {found}')
                    break
        except (NbdError, OSError) as error:
            errors.append(f'request at {offset}: {error}')
            break
        requests += 1
        slowest = max(slowest, time.monotonic() - started)
    if not errors:
        client.disconnect()
    print(json.dumps({'requests': requests, 'writes': writes, 'errors': errors,
                      'slowest_ms': round(slowest * 1000, 1), 'counters': counters}))


if __name__ == '__main__':
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
