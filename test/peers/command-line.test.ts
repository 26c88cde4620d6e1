/**
 * Command lines that end at once, run with qemu-storage-daemon and with qblockd: equal messages and exit statuses,
 * but for the name of the program.
 */

import { execFile } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { type DaemonKind, daemonProgram, makeScratchDir } from './daemons.ts';
import { withoutNewerLines } from './newer-members.ts';
import { requirePeer } from './requires.ts';

let dir = '';

beforeAll(() => {
  dir = makeScratchDir();
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

interface Outcome {
  readonly status: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program in a folder of its own until it ends; one that does not end is killed and fails the comparison. */
function run(kind: DaemonKind, args: readonly string[]): Promise<Outcome> {
  const cwd = path.join(dir, kind);
  mkdirSync(cwd, { recursive: true });
  return new Promise((resolve) => {
    const child = execFile(
      daemonProgram(kind),
      args,
      { cwd, timeout: limitMs(60_000), killSignal: 'SIGKILL' },
      (error, stdout, stderr) => {
        const status = error === null ? 0 : (error.code ?? String(error.signal));
        resolve({ status, stdout, stderr: stderr.replaceAll('qemu-storage-daemon', 'qblockd') });
      },
    );
    child.stdin?.end();
  });
}

/** Command lines as words separated by blanks; words with blanks are given as arrays. */
type CommandLine = string | readonly string[];

function words(line: CommandLine): readonly string[] {
  return typeof line === 'string' ? line.split(' ') : line;
}

const getopt: readonly CommandLine[] = [
  '--nope',
  '-x',
  'foo',
  '-',
  '--blockdev',
  '--pidfile',
  '-T',
  '--trace',
  '--daemonize=1',
  '--blockdev x --nope',
  '--nope --blockdev x',
  '--blockdev x foo',
  'foo --blockdev x',
  '--blockdev=',
  ['--blockdev', ''],
  '--blockdev --help',
  '-xV',
  '-T foo=bar',
  '-T help,bla',
  '--n x',
  '--chardev null,id=a --monitor a --pid /nope/x',
];

const blockdev: readonly CommandLine[] = [
  '--blockdev x',
  '--blockdev driver=nope,node-name=a',
  '--blockdev driver=file,node-name=a',
  '--blockdev driver=file,node-name=a,filename=/nope',
  '--blockdev {"driver":"file"',
  '--blockdev {"driver":"file"}',
  '--blockdev {"driver":"null-co","node-name":"a","size":"12"}',
  '--blockdev {}',
  '--blockdev [1]',
  '--blockdev driver=null-co,node-name=a,size=1x',
  '--blockdev driver=null-co,node-name=a,read-zeroes=maybe',
  '--blockdev driver=null-co,node-name=a,=b',
  '--blockdev driver=null-co,node-name=a,foo.=b',
  '--blockdev driver=null-co,node-name=a,foo=b',
  '--blockdev driver=raw,node-name=x,file.driver=file,file.filename=/etc/hostname,file=foo',
  '--blockdev driver=raw,node-name=x,file=nope',
  '--blockdev driver=raw,node-name=x,offset=',
  '--blockdev driver=null-co,node-name=x,size',
  '--blockdev driver=null-co,node-name=x,size=1K',
  '--blockdev driver=null-co,node-name=x,size=99999999999999999999',
  ['--blockdev', 'driver=null-co,no de-name=x'],
  '--blockdev driver=null-co,node..name=x',
  `--blockdev driver=null-co,${'a'.repeat(140)}=x`,
  '--blockdev driver=file,node-name=x,filename=/etc/hostname,read-only=on,cache.direct=foo',
  '--blockdev null-co,node-name=a --blockdev null-co,node-name=a',
  '--blockdev null-co',
];

const object: readonly CommandLine[] = [
  '--object secret',
  '--object secret,id=s',
  '--object secret,id=s,data=x,foo=bar',
  '--object nope,id=s',
  ['--object', ''],
  '--object {"qom-type":"secret","id":"s"}',
  '--object secret,id=1s,data=x',
  '--object secret,help',
  '--object throttle-group,help',
  '--object iothread,help',
  '--object authz-list,help',
  '--object authz-simple,?',
  '--object tls-creds-x509,help',
  '--object tls-creds-psk,id=x,help',
  '--object secret,id=help,data=1,help',
  '--object secret,foo,help',
  '--object authz-list,id=a,rules.0.match=x,rules.0.policy=allow,policy=bar',
  '--object authz-list,id=a,rules.0.match=x',
  '--object throttle-group,id=t,x-iops-total=a',
  '--object throttle-group,id=t,limits.foo=1',
  '--object throttle-group,id=t,limits.iops-total=5,limits.iops-read=5',
  '--object {"qom-type":"secret","id":"s","data":"x","id":"t"}',
  '--object {"qom-type":"secret","id":"s","data":5}',
  '--object secret,id=s,data=a,,b,foo',
  '--object secret,id=s,data=a --object secret,id=s,data=b',
  '--object secret,id=s,file=/nope/file',
  '--object tls-creds-x509,id=t,dir=/nope,endpoint=server',
  '--object tls-creds-psk,id=t,dir=/nope',
];

const chardev: readonly CommandLine[] = [
  '--chardev null',
  '--chardev id=x',
  '--chardev null,id=x,foo=bar',
  '--chardev nope,id=x',
  '--chardev nope',
  ['--chardev', ''],
  '--chardev null,id=1x',
  '--chardev null,id=x,,=5',
  '--chardev null,id=x,=5',
  '--chardev id=x,null',
  '--chardev socket,id=x',
  '--chardev socket,id=x,port=1',
  '--chardev socket,id=x,path=/nope/x,server=on,wait=off',
  '--chardev socket,id=x,path=/nope/x',
  '--chardev socket,id=x,path=/tmp/a,,b',
  '--chardev socket,id=x,host=a,port=b,path=c',
  '--chardev socket,id=x,path=z.sock,server,nowait,foo',
  '--chardev socket,id=x,path=z.sock,server=maybe',
  '--chardev socket,id=x,path=z.sock,wait=off',
  '--chardev socket,id=x,host=127.0.0.1',
  '--chardev socket,id=x,host=127.0.0.1,port=1',
  '--chardev socket,id=x,host=127.0.0.1,port=1,reconnect=a',
  '--chardev socket,id=x,fd=1x',
  '--chardev socket,id=x,fd=99,server=on,wait=off',
  '--chardev socket,id=x,path=q.sock,tls-creds=a',
  '--chardev socket,id=x,path=q.sock,server=on,wait=off,tls-authz=a',
  '--chardev socket,id=x,path=q.sock,server=on,reconnect=3',
  '--chardev file,id=x',
  '--chardev file,id=x,path=/nope/y',
  '--chardev file,id=x,path=y,in=/nope',
  '--chardev pipe,id=x',
  '--chardev pipe,id=x,path=/nope/pipe',
  '--chardev ringbuf,id=x,size=abc',
  '--chardev ringbuf,id=x,size=3',
  '--chardev ringbuf,id=x,size=1.5k',
  '--chardev udp,id=x',
  '--chardev udp,id=x,path=/x',
  '--chardev null,id=x,logfile=/nope/x',
  '--chardev null,id=x --chardev null,id=x',
  '--chardev stdio,id=x,signal=foo',
  '--chardev stdio,id=x --chardev stdio,id=y',
  '--chardev mux,id=x',
  '--chardev mux,id=x,chardev=nope',
  '--chardev null,id=a --monitor a --chardev mux,id=b,chardev=a',
  '--chardev null,id=a,mux=on --chardev null,id=a-base',
  '--chardev null,id=a,mux=on --monitor a-base',
  '--chardev null,id=a,mux=maybe',
  '--chardev msmouse,id=x',
  '--chardev null,backend=socket,id=x',
];

const services: readonly CommandLine[] = [
  '--monitor nope',
  ['--monitor', ''],
  '--monitor chardev=nope',
  '--monitor nope,mode=readline',
  '--monitor nope,mode=foo',
  '--monitor nope,pretty=foo',
  '--monitor {"chardev":"x"',
  '--monitor {"chardev":5}',
  '--chardev null,id=c --monitor c,pretty=on,mode=control,id=zz,foo=1',
  '--chardev null,id=c --monitor c --monitor c',
  '--chardev null,id=c --monitor c,mode=readline',
  '--nbd-server x',
  '--nbd-server addr.type=unix',
  '--nbd-server addr.type=nope',
  '--nbd-server addr=x',
  '--nbd-server addr=x,addr.type=unix',
  '--nbd-server addr.type=unix,addr.path=/nope/x',
  '--nbd-server addr.type=unix,addr.path=n.sock,foo=1',
  '--nbd-server addr.type=unix,addr.path=n.sock,max-connections=foo',
  '--nbd-server addr.type=unix,addr.path=n.sock --nbd-server addr.type=unix,addr.path=n2.sock',
  '--nbd-server addr.type=unix,addr.path=n.sock,tls-creds=nope',
  '--nbd-server {"addr":{"type":"unix","path":"/nope/x"}}',
  '--nbd-server {"addr":{"type":"inet","host":"127.0.0.1"}}',
  '--nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=45998,addr.foo=1',
  '--nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=x',
  '--export nbd',
  '--export nbd,id=x',
  '--export nbd,id=x,node-name=y',
  '--export type=nope',
  '--export nbd,id=e,node-name=x,writable=perhaps',
  '--blockdev null-co,node-name=y --export nbd,id=x,node-name=y',
  '--blockdev null-co,node-name=y --nbd-server addr.type=unix,addr.path=n.sock --export nbd,id=1x,node-name=y',
  '--blockdev null-co,node-name=y --nbd-server addr.type=unix,addr.path=n.sock ' +
    '--export nbd,id=x,node-name=y --export nbd,id=x,node-name=y',
  '--pidfile /nope/x',
];

const background: readonly CommandLine[] = [
  '--daemonize --blockdev x',
  '--blockdev x --daemonize',
  '--daemonize --chardev stdio,id=c --monitor c',
  '--chardev stdio,id=c --monitor c --daemonize',
  '--daemonize --pidfile /nope/x',
  '--daemonize --nope',
];

describe.each(Object.entries({ getopt, blockdev, object, chardev, services, background }))(
  'command lines: %s',
  (_name, lines) => {
    test.each(lines)('%s', async (line) => {
      const [theirs, ours] = await Promise.all([
        run('qemu-storage-daemon', words(line)),
        run('qblockd', words(line)),
      ]);
      expect({ ...ours, stdout: withoutNewerLines(ours.stdout) }).toEqual(theirs);
    });
  },
);

/** Where the original has no help, there is help. */
test.each([
  ['--blockdev help', /^Values of 'driver'.*\n[\s\S]*^ {2}qcow2 +- /m],
  ['--blockdev=help', /^Values of 'driver'/],
  ['--blockdev ?', /^Values of 'driver'/],
  ['--blockdev null-co,node-name=a,help', /^null-co options:\n[\s\S]*^ {2}latency-ns=<int> +- .*\n/m],
  [
    '--blockdev driver=qcow2,foo=1,help',
    /^ {2}encrypt\.key-secret=<string> +- .* \(if encrypt.format=aes or\n +encrypt.format=luks\)$/m,
  ],
  ['--blockdev driver=nbd,help', /^ {2}server\.path=<string> \(required\)\n? +- .*\(if server.type=unix\)/m],
  ['--monitor help', /^Options:\n {2}chardev=<string> \(required\)/],
  ['--nbd-server help', /^ {2}max-connections=<int> +- /m],
  ['--export help', /^Values of 'type'.*\n[\s\S]*^ {2}nbd +- /m],
  ['--export type=nbd,help', /^nbd options:\n[\s\S]*^Options of all:\n/m],
])('help of options that the original does not explain: %s', async (line, text) => {
  const [theirs, ours] = await Promise.all([
    run('qemu-storage-daemon', words(line)),
    run('qblockd', words(line)),
  ]);
  expect(theirs).toMatchObject({
    status: 1,
    stderr: expect.stringContaining('Help is not available for this option'),
  });
  expect(ours).toMatchObject({ status: 0, stderr: '' });
  expect(ours.stdout).toMatch(text);
});

test('help of a driver that is not there is an error', async () => {
  const ours = await run('qblockd', words('--blockdev nope,help'));
  expect(ours).toMatchObject({ status: 1, stdout: '' });
  expect(ours.stderr).toContain("Parameter 'driver' does not accept value 'nope'");
});

test('the peer is there', (context) => requirePeer(context, 'qemu-storage-daemon'));
