/** TLS with certificates and pre-shared keys: libnbd (GnuTLS) against our server. */

import { execFile, execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeScratchDir, type RunningDaemon, startDaemon } from './daemons.ts';
import { hasPeer, type PeerName, requirePeer } from './requires.ts';
import { makeCredentials } from './tls-credentials.ts';

const run = promisify(execFile);
const NEEDS: readonly PeerName[] = ['certtool', 'psktool', 'nbdsh'];

const SCRIPT = `
import nbd, sys
socket, kind, pki, psk = sys.argv[1:5]
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
h.set_export_name("n")
if kind == "x509":
    h.set_tls_certificates(pki)
    h.set_tls_verify_peer(False)
else:
    h.set_tls_psk_file(psk + "/keys.psk")
    h.set_tls_username("alice")
h.connect_unix(socket)
data = bytes(range(256)) * 4096
h.pwrite(data, 4096)
assert h.pread(len(data), 4096) == data
for cookie in [h.aio_pread(nbd.Buffer(65536), i * 65536) for i in range(64)]:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
h.shutdown()
print("served", h.get_tls_negotiated())
`;

let dir: string;
const ready = NEEDS.every((name) => hasPeer(name));

beforeAll(() => {
  if (!ready) return;
  dir = makeScratchDir();
  makeCredentials(dir);
});
afterAll(() => {
  if (ready) execFileSync('rm', ['-rf', dir]);
});

/** What the client says when the server has these objects. */
async function connect(kind: 'x509' | 'psk', objects: readonly string[], server = ''): Promise<string> {
  const args = objects.flatMap((object) => ['--object', object.replaceAll('$T', dir)]);
  const daemon: RunningDaemon = await startDaemon('qblockd', {
    prepare: (scratch) => writeFileSync(path.join(scratch, 'n.raw'), Buffer.alloc(8 * 1024 * 1024)),
    args: [
      ...args,
      ...['--blockdev', 'driver=file,node-name=n,filename=$DIR/n.raw'],
      ...['--nbd-server', `addr.type=unix,addr.path=$DIR/nbd.sock,tls-creds=tls0${server}`],
      ...['--export', 'type=nbd,id=n,node-name=n,writable=on'],
    ],
  });
  try {
    const { stdout } = await run('/usr/bin/python3', [
      '-c',
      SCRIPT,
      path.join(daemon.dir, 'nbd.sock'),
      kind,
      path.join(dir, 'pki'),
      path.join(dir, 'psk'),
    ]);
    return stdout.trim();
  } catch (error) {
    return `refused: ${String((error as { stderr?: string }).stderr)
      .trim()
      .split('\n')
      .at(-1)}`;
  } finally {
    await daemon.stop();
  }
}

const X509 = 'tls-creds-x509,id=tls0,dir=$T/pki,endpoint=server,verify-peer=on';
const PSK = 'tls-creds-psk,id=tls0,dir=$T/psk,endpoint=server';

test('a client with a certificate is served', async (context) => {
  requirePeer(context, ...NEEDS);
  expect(await connect('x509', [X509])).toBe('served True');
});

test('without verify-peer any client is', async (context) => {
  requirePeer(context, ...NEEDS);
  expect(await connect('x509', [X509.replace('peer=on', 'peer=off')])).toBe('served True');
});

test('authorisation looks at the name in the certificate', async (context) => {
  requirePeer(context, ...NEEDS);
  const allow = 'authz-simple,id=az,identity=C=DE,,O=Test,,CN=client1';
  const deny = 'authz-simple,id=az,identity=C=DE,,O=Test,,CN=client2';
  expect(await connect('x509', [X509, allow], ',tls-authz=az')).toBe('served True');
  expect(await connect('x509', [X509, deny], ',tls-authz=az')).toMatch(/^refused/);
  writeFileSync(
    path.join(dir, 'rules.json'),
    JSON.stringify({ rules: [{ match: '*client1', policy: 'allow', format: 'glob' }] }),
  );
  writeFileSync(path.join(dir, 'none.json'), '{}');
  const file = (name: string): string => `authz-list-file,id=az,filename=$T/${name}`;
  expect(await connect('x509', [X509, file('rules.json')], ',tls-authz=az')).toBe('served True');
  expect(await connect('x509', [X509, file('none.json')], ',tls-authz=az')).toMatch(/^refused/);
  expect(await connect('x509', [X509], ',tls-authz=nobody')).toMatch(/^refused/);
});

test('a client with a pre-shared key is served', async (context) => {
  requirePeer(context, ...NEEDS);
  expect(await connect('psk', [PSK])).toBe('served True');
});

test('the wrong kind of credentials is refused', async (context) => {
  requirePeer(context, ...NEEDS);
  expect(await connect('psk', [X509])).toMatch(/^refused/);
});
