/**
 * Every creation option of every format that the original makes: images with it made by each are read, described and
 * checked by the other. The options are asked of `qemu-img create -f FORMAT -o help`: one that has no values here fails.
 */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { requirePeer } from './requires.ts';
import { runTool, TOOLS } from './tool-diff.ts';

const folder = mkdtempSync(path.join(tmpdir(), 'qb-options-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const MIB = 1024 * 1024;
const content = Buffer.alloc(3 * MIB + 512);
for (let at = 0; at < content.length; at++)
  content[at] = at % MIB < 300_000 ? (at * 7 + (at >> 11)) % 255 : 0;
const RAW = path.join(folder, 'disk.raw');
writeFileSync(RAW, content);

interface FormatOptions {
  /** Values of -o; together they name every option. */
  readonly values: readonly string[];
  /** Given with each of them. */
  readonly always?: string;
  /** How an image is opened, besides driver and file. */
  readonly open?: string;
  /** Options that have no meaning without something else, and where they are tested. */
  readonly elsewhere?: readonly string[];
  readonly hasCheck?: boolean;
}

const BACKING = ['size', 'backing_file', 'backing_fmt'];
const LUKS_OPEN = 'key-secret=s';
const SECRET = ['--object', 'secret,id=s,data=passphrase'];

const luksValues = (prefix: string): string[] =>
  [
    ...['aes-128', 'aes-192', 'serpent-128', 'serpent-192', 'serpent-256', 'twofish-128', 'twofish-256'].map(
      (cipher) => `cipher-alg=${cipher}`,
    ),
    'cipher-alg=twofish-192',
    'cipher-alg=cast5-128,cipher-mode=cbc',
    'cipher-mode=ecb',
    'cipher-mode=ctr,ivgen-alg=plain',
    'cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256',
    ...['sha1', 'sha224', 'sha384', 'sha512', 'ripemd160'].map((hash) => `hash-alg=${hash}`),
  ].map((value) => value.replaceAll(/(^|,)/g, `$1${prefix}`));

const FORMATS: Readonly<Record<string, FormatOptions>> = {
  raw: { values: [''], elsewhere: ['size'] },
  vdi: { values: ['static=off', 'static=on'], elsewhere: ['size'], hasCheck: true },
  vpc: {
    values: ['subformat=dynamic', 'subformat=fixed', 'force_size=on', 'force_size=on,subformat=fixed'],
    elsewhere: ['size'],
  },
  vhdx: {
    values: [
      ...['subformat=dynamic', 'subformat=fixed', 'block_size=1M,log_size=2M', 'block_size=256M'],
      'block_state_zero=off',
    ],
    elsewhere: ['size'],
    hasCheck: true,
  },
  vmdk: {
    values: [
      ...['monolithicSparse', 'monolithicFlat', 'twoGbMaxExtentSparse', 'twoGbMaxExtentFlat'].map(
        (each) => `subformat=${each}`,
      ),
      ...['subformat=streamOptimized', 'zeroed_grain=on', 'compat6=on', 'hwversion=11', 'toolsversion=5'],
      ...['lsilogic', 'buslogic', 'legacyESX', 'ide'].map((each) => `adapter_type=${each}`),
    ],
    elsewhere: BACKING,
    hasCheck: true,
  },
  qed: {
    values: ['cluster_size=4k', 'cluster_size=1M,table_size=2', 'table_size=16'],
    elsewhere: BACKING,
    hasCheck: true,
  },
  qcow: {
    values: [''],
    // Encrypted ones are read only here: test/drivers/formats/qcow.test.ts.
    elsewhere: [...BACKING, 'encryption', 'encrypt.format', 'encrypt.key-secret'],
  },
  parallels: { values: ['cluster_size=64k', 'cluster_size=2M', ''], elsewhere: ['size'] },
  luks: {
    values: luksValues(''),
    always: 'key-secret=s,iter-time=10',
    open: LUKS_OPEN,
    elsewhere: ['size'],
  },
  qcow2: {
    values: [
      ...['cluster_size=512,compat=0.10', 'cluster_size=2M,compression_type=zstd,lazy_refcounts=on'],
      ...['extended_l2=on,preallocation=metadata', 'refcount_bits=1', 'refcount_bits=64,preallocation=full'],
    ],
    elsewhere: [
      ...BACKING,
      ...['data_file', 'data_file_raw', 'encryption'],
      // The same code as luks, with other names: see there.
      ...['format', 'cipher-alg', 'cipher-mode', 'hash-alg', 'iter-time', 'ivgen-alg', 'ivgen-hash-alg'].map(
        (each) => `encrypt.${each}`,
      ),
      'encrypt.key-secret',
    ],
    hasCheck: true,
  },
};

/** What differs from image to image: content ids, times, what the host gives; measured iterations and random salts. */
function stable(text: string): string {
  return text
    .replace(/(cid"?: )\d+/g, '$1N')
    .replace(/disk size: .*|"actual-size": \d+/g, 'SIZE')
    .replace(/"(uuid|master-key-iters|iters)": ("[^"]*"|\d+)/g, '"$1": N');
}

const names = Object.keys(FORMATS);

test('every option has values', async (context) => {
  requirePeer(context, 'qemu-img');
  for (const format of names) {
    const { stdout } = await runTool(TOOLS.img.theirs, ['create', '-f', format, '-o', 'help'], folder);
    const { values, always = '', elsewhere = [] } = FORMATS[format]!;
    const tried = [...values, always].join(',');
    const offered = [...stdout.matchAll(/^ {2}([\w.-]+)=/gm)].map(([, name]) => name!);
    // What is the protocol's shows in every format.
    const missing = offered.filter(
      (name) =>
        !['nocow', 'extent_size_hint', 'preallocation'].includes(name) &&
        !elsewhere.includes(name) &&
        !`,${tried}`.includes(`,${name}=`),
    );
    expect({ format, missing }).toEqual({ format, missing: [] });
  }
});

/** An image made by one and looked at by the other; complaints. */
async function exchange(
  format: string,
  options: string,
  maker: string,
  reader: string,
  dir: string,
): Promise<string[]> {
  const { always = '', open = '', hasCheck = false } = FORMATS[format]!;
  const secret = open === '' ? [] : SECRET;
  const all = [always, options].filter((each) => each !== '').join(',');
  const imageOptions = `driver=${format},file.filename=image${open === '' ? '' : `,${open}`}`;
  const complaints: string[] = [];
  const run = async (tool: string, args: readonly string[]): Promise<string> => {
    let outcome = await runTool(tool, args, dir);
    // The original measures its own speed when it makes LUKS headers, and now and then gives up.
    for (let left = 50; left > 0 && outcome.stderr.includes('Unable to get accurate CPU usage'); left--)
      outcome = await runTool(tool, args, dir);
    const { status, stdout, stderr } = outcome;
    const isFine = status === 0 && stderr === '';
    if (!isFine) complaints.push(`${tool} ${args.join(' ')}: ${status} ${stdout}${stderr}`);
    return stdout;
  };
  const optionArgs = all === '' ? [] : ['-o', all];
  await run(maker, ['convert', ...secret, '-f', 'raw', '-O', format, ...optionArgs, RAW, 'image']);
  const image = ['--image-opts', imageOptions];
  await run(reader, ['compare', ...secret, '--image-opts', imageOptions, `driver=raw,file.filename=${RAW}`]);
  if (hasCheck) await run(reader, ['check', '-q', ...image]);
  const [ours, theirs] = await Promise.all(
    [TOOLS.img.ours, TOOLS.img.theirs].map((tool) =>
      run(tool, ['info', ...secret, '--output=json', ...image]),
    ),
  );
  if (stable(ours!) !== stable(theirs!)) complaints.push(`info: ${ours} differs from ${theirs}`);
  return complaints;
}

for (const format of names) {
  test(
    `${format}: images with every option, made by each and read by the other`,
    async (context) => {
      requirePeer(context, 'qemu-img');
      const { ours, theirs } = TOOLS.img;
      for (const [i, options] of FORMATS[format]!.values.entries()) {
        const found = await Promise.all(
          ([[ours, theirs] as const, [theirs, ours] as const] as const).map(([maker, reader], side) => {
            const dir = path.join(folder, `${format}-${i}-${side}`);
            mkdirSync(dir);
            return exchange(format, options, maker, reader, dir).finally(() =>
              rmSync(dir, { recursive: true, force: true }),
            );
          }),
        );
        expect({ options, complaints: found.flat() }).toEqual({ options, complaints: [] });
      }
    },
    limitMs(300_000),
  );
}
