/** http and https end to end: nginx and real proxies, through the tools and the daemon, beside the original. */

import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir, repositoryRoot, startDaemon } from '../daemons.ts';
import { hasPeer, requirePeer } from '../requires.ts';
import { freePort } from './servers/ports.ts';
import { signalFamily, waitForPort } from './servers/sshd.ts';
import { makeCertificate } from './servers/vsftpd.ts';

const run = promisify(execFile);
const MiB = 1024 * 1024;
const tool = (name: string): string => path.join(repositoryRoot, 'daemon/bin', name);
const ready = hasPeer('nginx') && hasPeer('openssl');
const DATA = testPattern(5 * MiB + 512);
let dir: string;
let nginx: ChildProcess;
let cert: string;
const ports = { plain: 0, tls: 0, expired: 0, squid: 0, tiny: 0 };
const others: ChildProcess[] = [];

/** A certificate that was valid for a day, some time ago. */
function makeExpired(): { cert: string; key: string } {
  const file = (name: string): string => path.join(dir, name);
  writeFileSync(
    file('template'),
    'cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nactivation_date = "2020-01-01 00:00:00"\nexpiration_date = "2020-01-02 00:00:00"\n',
  );
  execFileSync(
    'certtool',
    ['--generate-privkey', '--key-type', 'rsa', '--bits', '2048', '--outfile', file('old.key')],
    { stdio: 'ignore' },
  );
  execFileSync(
    'certtool',
    [
      '--generate-self-signed',
      '--template',
      file('template'),
      '--load-privkey',
      file('old.key'),
      '--outfile',
      file('old.pem'),
    ],
    { stdio: 'ignore' },
  );
  return { cert: file('old.pem'), key: file('old.key') };
}

async function startNginx(): Promise<void> {
  const { cert: good, key } = makeCertificate(dir);
  cert = good;
  const old = makeExpired();
  // nginx's own {PLAIN} form: the password is "open sesame".
  writeFileSync(path.join(dir, 'users'), 'ali:{PLAIN}open sesame\n');
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (name) => `${name}_temp_path ${dir}/${name};`,
  );
  const server = (listen: string): string => `server { ${listen} root ${dir}/www;
    location /secret/ { alias ${dir}/www/; auth_basic x; auth_basic_user_file ${dir}/users; }
    location /moved/ { rewrite ^/moved/(.*)$ http://127.0.0.1:${ports.plain}/$1 redirect; }
    location /tls/ { rewrite ^/tls/(.*)$ https://localhost:${ports.tls}/$1 redirect; }
    location /busy/ { return 503; } }`;
  writeFileSync(
    path.join(dir, 'nginx.conf'),
    `${process.getuid?.() === 0 ? 'user root;' : ''} daemon off; worker_processes 1; pid ${dir}/nginx.pid; error_log ${dir}/log;
events { worker_connections 256; }
http { access_log ${dir}/access; ${temporary.join(' ')}
${server(`listen 127.0.0.1:${ports.plain};`)}
${server(`listen 127.0.0.1:${ports.tls} ssl; ssl_certificate ${good}; ssl_certificate_key ${key};`)}
${server(`listen 127.0.0.1:${ports.expired} ssl; ssl_certificate ${old.cert}; ssl_certificate_key ${old.key};`)} }`,
  );
  nginx = spawn('/usr/sbin/nginx', ['-c', `${dir}/nginx.conf`, '-p', dir, '-e', `${dir}/log`], {
    stdio: 'ignore',
  });
  await waitForPort(ports.plain);
}

async function startProxies(): Promise<void> {
  mkdirSync(`${dir}/squid`, { mode: 0o777 });
  execFileSync('chmod', ['777', `${dir}/squid`]);
  writeFileSync(
    `${dir}/squid.conf`,
    `http_port 127.0.0.1:${ports.squid}\nhttp_access allow all\ncache deny all\npid_filename none\naccess_log none\ncache_log ${dir}/squid/cache.log\ncoredump_dir ${dir}/squid\nshutdown_lifetime 0 seconds\npinger_enable off\n`,
  );
  others.push(spawn('/usr/sbin/squid', ['-N', '-f', `${dir}/squid.conf`], { stdio: 'ignore' }));
  writeFileSync(
    `${dir}/tiny.conf`,
    `Port ${ports.tiny}\nListen 127.0.0.1\nTimeout 60\nMaxClients 40\nAllow 127.0.0.1\nBasicAuth tom secret\n`,
  );
  others.push(spawn('tinyproxy', ['-d', '-c', `${dir}/tiny.conf`], { stdio: 'ignore' }));
  await Promise.all([waitForPort(ports.squid), waitForPort(ports.tiny)]);
}

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  execFileSync('chmod', ['755', dir]);
  mkdirSync(`${dir}/www`);
  writeFileSync(`${dir}/www/disk.raw`, DATA);
  writeFileSync(`${dir}/www/odd.raw`, DATA.subarray(0, 1000));
  execFileSync(tool('qblock-img'), [
    'convert',
    '-f',
    'raw',
    '-O',
    'qcow2',
    `${dir}/www/disk.raw`,
    `${dir}/www/disk.qcow2`,
  ]);
  for (const name of Object.keys(ports) as (keyof typeof ports)[]) ports[name] = await freePort();
  await startNginx();
  if (hasPeer('squid') && hasPeer('tinyproxy')) await startProxies();
});

afterAll(async () => {
  if (!ready) return;
  for (const child of [nginx, ...others]) {
    const gone = new Promise((resolve) => child.once('exit', resolve));
    signalFamily(child.pid!, 'SIGKILL');
    await gone;
  }
  rmSync(dir, { recursive: true });
});

/** Copies the image that `name` stands for with our tool; the environment may say more. */
async function fetchImage(
  name: string,
  env: Record<string, string> = {},
  ...args: string[]
): Promise<Buffer> {
  const out = path.join(dir, 'out.raw');
  rmSync(out, { force: true });
  await run(tool('qblock-img'), ['convert', '-O', 'raw', ...args, name, out], {
    env: { ...process.env, no_proxy: '', ...env },
  });
  return readFileSync(out);
}

describe('through the tools', () => {
  test('plain and compressed formats, redirects, TLS, and who is not trusted', async (context) => {
    requirePeer(context, 'nginx', 'openssl', 'certtool');
    const { plain, tls, expired } = ports;
    const trust = { SSL_CERT_FILE: cert };
    expect((await fetchImage(`http://127.0.0.1:${plain}/disk.raw`)).equals(DATA)).toBe(true);
    expect((await fetchImage(`http://127.0.0.1:${plain}/disk.qcow2`)).equals(DATA)).toBe(true);
    expect((await fetchImage(`https://localhost:${tls}/disk.qcow2`, trust)).equals(DATA)).toBe(true);
    expect((await fetchImage(`http://127.0.0.1:${plain}/tls/disk.raw`, trust)).equals(DATA)).toBe(true);
    expect((await fetchImage(`https://127.0.0.1:${tls}/moved/disk.raw`, trust)).equals(DATA)).toBe(true);
    await expect(fetchImage(`https://localhost:${tls}/disk.raw`)).rejects.toThrow(
      'server certificate verification failed',
    );
    await expect(
      fetchImage(`https://localhost:${expired}/disk.raw`, { SSL_CERT_FILE: `${dir}/old.pem` }),
    ).rejects.toThrow('certificate has expired');
    const unchecked = `driver=raw,file.driver=https,file.sslverify=off,file.url=https://localhost:${expired}/disk.raw`;
    expect((await fetchImage(unchecked, {}, '--image-opts')).equals(DATA)).toBe(true);
  });

  test('names and passwords, which are shown nowhere', async (context) => {
    requirePeer(context, 'nginx', 'openssl');
    const url = `http://ali:open%20sesame@127.0.0.1:${ports.plain}/secret/disk.raw`;
    expect((await fetchImage(url)).equals(DATA)).toBe(true);
    await expect(fetchImage(url.replace('sesame', 'barley'))).rejects.toThrow('error: 401');
    const { stdout } = await run(tool('qblock-img'), ['info', url]);
    expect(stdout).toContain(`image: http://ali@127.0.0.1:${ports.plain}/secret/disk.raw`);
    const options = `driver=raw,file.driver=http,file.username=ali,file.password-secret=s,file.url=http://127.0.0.1:${ports.plain}/secret/disk.raw`;
    expect(
      (await fetchImage(options, {}, '--object', 'secret,id=s,data=open sesame', '--image-opts')).equals(
        DATA,
      ),
    ).toBe(true);
  });

  test('proxies', async (context) => {
    requirePeer(context, 'nginx', 'openssl', 'squid', 'tinyproxy');
    const squid = `http://127.0.0.1:${ports.squid}`;
    const plain = `http://127.0.0.1:${ports.plain}/disk.raw`;
    const requestsBefore = readFileSync(`${dir}/access`, 'utf8').length;
    expect((await fetchImage(plain, { http_proxy: squid })).equals(DATA)).toBe(true);
    expect(readFileSync(`${dir}/access`, 'utf8').length).toBeGreaterThan(requestsBefore);
    const trust = { SSL_CERT_FILE: cert };
    // squid lets CONNECT through to ports of TLS only when told so.
    expect((await fetchImage(plain, { http_proxy: `tom:secret@127.0.0.1:${ports.tiny}` })).equals(DATA)).toBe(
      true,
    );
    await expect(fetchImage(plain, { http_proxy: `http://127.0.0.1:${ports.tiny}` })).rejects.toThrow('407');
    const tls = `https://localhost:${ports.tls}/disk.raw`;
    expect(
      (await fetchImage(tls, { https_proxy: `http://tom:secret@127.0.0.1:${ports.tiny}`, ...trust })).equals(
        DATA,
      ),
    ).toBe(true);
    const nowhere = `http://127.0.0.1:${await freePort()}`;
    await expect(fetchImage(plain, { http_proxy: nowhere })).rejects.toThrow('CURL: Error opening file');
    expect((await fetchImage(plain, { http_proxy: nowhere, no_proxy: 'x,127.0.0.1' })).equals(DATA)).toBe(
      true,
    );
    const credentials = 'file.proxy-username=tom,file.proxy-password-secret=s';
    const options = `driver=raw,file.driver=http,${credentials},file.url=${plain}`;
    const secret = ['--object', 'secret,id=s,data=secret', '--image-opts'];
    const env = { http_proxy: `http://127.0.0.1:${ports.tiny}` };
    expect((await fetchImage(options, env, ...secret)).equals(DATA)).toBe(true);
  });

  test('as a backing file', async (context) => {
    requirePeer(context, 'nginx', 'openssl');
    const overlay = path.join(dir, 'overlay.qcow2');
    const base = `http://127.0.0.1:${ports.plain}/disk.qcow2`;
    await run(tool('qblock-img'), ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', overlay]);
    await run(tool('qblock-io'), ['-c', 'write -P 7 64k 64k', overlay]);
    const model = Buffer.from(DATA);
    model.fill(7, 65536, 131072);
    expect((await fetchImage(overlay)).equals(model)).toBe(true);
  });
});

/** $U: the server. Said alike by qblock-img and qemu-img. */
const NAMES: readonly string[] = [
  '$U/disk.raw',
  '$U/odd.raw',
  '$U/disk.qcow2',
  '$U/none',
  '$U/secret/disk.raw',
  '$U/moved/disk.raw',
  'http:x',
  'http:///disk',
  'http://nonexistent.invalid/x',
  'json:{"driver":"http"}',
  'json:{"driver":"http","url":"$U/odd.raw","readahead":1000}',
  'json:{"driver":"http","url":"$U/odd.raw","readahead":0}',
  'json:{"driver":"http","url":"$U/odd.raw","timeout":-1}',
  'json:{"driver":"http","url":"$U/odd.raw","timeout":10001}',
  'json:{"driver":"http","url":"$U/odd.raw","username":"a"}',
  'json:{"driver":"http","url":"$U/odd.raw","password-secret":"a"}',
  'json:{"driver":"http","url":"$U/odd.raw","cookie":"x","cookie-secret":"a"}',
  'json:{"driver":"https","url":"$U/odd.raw"}',
  'json:{"driver":"http","url":"ftp://x/odd.raw"}',
];

test('names and options are answered as by the original', async (context) => {
  requirePeer(context, 'nginx', 'openssl', 'qemu-img', 'qemu-block-extra');
  const say = async (program: string, name: string): Promise<string> => {
    const ended = await run(program, [
      'info',
      name.replaceAll('$U', `http://127.0.0.1:${ports.plain}`),
    ]).catch((error: { stdout: string; stderr: string }) => error);
    return (ended.stdout + ended.stderr)
      .replace(/^qemu-img: GLib: .*\n/gm, '')
      .replace(/^(qemu|qblock)-img: /gm, '');
  };
  for (const name of NAMES)
    expect(await say(tool('qblock-img'), name), name).toBe(await say('qemu-img', name));
  for (const args of [
    ['create', '-f', 'raw', '$U/new', '1M'],
    ['resize', '-f', 'raw', '$U/disk.raw', '1M'],
    ['map', '--output=json', '-f', 'raw', '$U/disk.raw'],
  ]) {
    const filled = args.map((arg) => arg.replace('$U', `http://127.0.0.1:${ports.plain}`));
    const both = await Promise.all(
      [tool('qblock-img'), 'qemu-img'].map((program) =>
        run(program, filled).catch((error: { stdout: string; stderr: string }) => error),
      ),
    );
    const [ours, theirs] = both.map(({ stdout, stderr }) =>
      (stdout + stderr).replace(/^(qemu|qblock)-img: /gm, ''),
    );
    expect(ours, args.join(' ')).toBe(theirs);
  }
});

test('the daemon: an export of an image elsewhere; a server that hangs keeps neither others nor quit', async (context) => {
  requirePeer(context, 'nginx', 'openssl', 'nbdcopy');
  const daemon = await startDaemon('qblockd');
  try {
    const client = await daemon.connect();
    await client.negotiate();
    const add = (name: string, more: object): Promise<unknown> =>
      client.execute('blockdev-add', { 'node-name': name, 'read-only': true, ...more });
    await add('web', { driver: 'http', url: `http://127.0.0.1:${ports.plain}/disk.raw`, timeout: 100 });
    await add('local', { driver: 'file', filename: `${dir}/www/disk.raw` });
    const socket = path.join(daemon.dir, 'nbd');
    await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
    for (const name of ['web', 'local'])
      await client.execute('block-export-add', { type: 'nbd', id: name, 'node-name': name, name });
    const uri = (name: string): string => `nbd+unix:///${name}?socket=${socket}`;
    const out = path.join(daemon.dir, 'copy');
    await run('nbdcopy', [uri('web'), out]);
    expect(readFileSync(out).equals(DATA)).toBe(true);
    signalFamily(nginx.pid!, 'SIGSTOP');
    try {
      const hanging = spawn('nbdcopy', [uri('web'), 'null:'], { stdio: 'ignore' });
      await new Promise((resolve) => setTimeout(resolve, 300));
      await run('nbdcopy', [uri('local'), out]);
      expect(readFileSync(out).equals(DATA)).toBe(true);
      const began = performance.now();
      await client.execute('quit');
      const { status } = await daemon.exited;
      expect(status).toBe(0);
      // What is promised; the machine may be slow on top.
      expect(performance.now() - began).toBeLessThan(15_000);
      hanging.kill();
    } finally {
      signalFamily(nginx.pid!, 'SIGCONT');
    }
  } finally {
    await daemon.stop();
  }
  expect(existsSync(`${dir}/nginx.pid`)).toBe(true);
});
