/** Transcripts of the control commands and of the protocol's own errors. */

import { cmd, type Transcript } from '../transcript.ts';

const session: Transcript = {
  name: 'qmp_capabilities',
  negotiate: false,
  steps: [
    cmd('query-version'),
    cmd('nope'),
    cmd('quit', { x: 1 }),
    cmd('qmp_capabilities', { enable: 'oob' }),
    cmd('qmp_capabilities', { enable: ['foo'] }),
    cmd('qmp_capabilities', { enable: [5] }),
    cmd('qmp_capabilities', { foo: 1 }),
    cmd('qmp_capabilities', { enable: [] }),
    cmd('qmp_capabilities'),
    cmd('qmp_capabilities', { foo: 1 }),
    { execute: 'query-version', id: 7 },
    { execute: 'query-version', id: { a: [1, 'x', null, true] } },
    { execute: 'nope', id: 'é' },
    cmd('query-version', {}),
    cmd('query-version', { x: 1 }),
    cmd('query-version', []),
    cmd(''),
    cmd('QUERY-VERSION'),
    cmd('query-status'),
    { send: '{"execute": 5}\n', replies: 1 },
    { send: '{"execute": "query-version", "foo": 1}\n', replies: 1 },
    { send: '{"exec-oob": "query-version"}\n', replies: 1 },
    { send: '{"id": 1}\n', replies: 1 },
    { send: '{}\n', replies: 1 },
    { send: '[]\n', replies: 1 },
    { send: '5\n', replies: 1 },
    { send: '"x"\n', replies: 1 },
    { send: 'null\n', replies: 1 },
    { send: '{"execute": "query-version", "execute": "quit"}\n', replies: 1 },
    { send: "{'execute': 'query-version', 'id': 'it\\'s'}\n", replies: 1 },
    {
      send: '{"execute":"query-version","id":1}{"execute":"query-version","id":2} {"execute":"nope","id":3}',
      replies: 3,
    },
    { send: '\n\t {"execute"\n:\r\n"query-version" , "id" : -0 }\n', replies: 1 },
    { send: '{"execute":"query-version","id":18446744073709551615}\n', replies: 1 },
    { send: '{"execute":"query-version","id":1.5}\n', replies: 1 },
    { send: '{"execute":"query-version","arguments":5}\n', replies: 1 },
    { send: '{"execute":"query-version","arguments":{},"arguments":{}}\n', replies: 1 },
    { send: 'x\n', replies: 1 },
    { send: '{"execute":"query-version" "id":1}\n', replies: 1 },
    { send: '\u0001', replies: 1 },
    { send: '{"execute":"query-version","id":"after"}\n', replies: 1 },
  ],
};

const oob: Transcript = {
  name: 'qmp_capabilities.oob',
  negotiate: false,
  steps: [
    cmd('qmp_capabilities', { enable: ['oob'] }),
    { send: '{"exec-oob": "query-version", "id": 1}\n', replies: 1 },
    { send: '{"exec-oob": "nope", "id": 2}\n', replies: 1 },
    { send: '{"exec-oob": "query-version"}\n', replies: 1 },
    { send: '{"exec-oob": "query-version", "execute": "query-version"}\n', replies: 1 },
    { send: '{"execute": "query-version", "id": 3}\n', replies: 1 },
  ],
};

const version: Transcript = {
  name: 'query-version',
  steps: [cmd('query-version'), cmd('query-version', {}), cmd('query-version', { x: 1 })],
};

const quit: Transcript = {
  name: 'quit',
  steps: [
    cmd('quit', { x: 1 }),
    cmd('blockdev-add', { driver: 'null-co', 'node-name': 'n' }),
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n' }),
    cmd('quit'),
    { exit: true },
    // The original leaves nbd.sock behind; here it is removed.
    { run: ['sh', '-c', 'ls $DIR | grep -v nbd.sock'] },
  ],
};

export const controlTranscripts: readonly Transcript[] = [session, oob, version, quit];
