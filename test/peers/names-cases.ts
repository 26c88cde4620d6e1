/**
 * Names for the tools and their originals: every awkward name in every place where a name is taken. They run in a folder
 * with one qcow2 image for each of FILES, a folder `d:e` and a folder `p`, and overlays in `p` for BACKINGS.
 */

import type { TOOLS } from './tool-diff.ts';

/** Names of files that look like something else. */
export const FILES: readonly string[] = [
  ...[
    'a:b',
    'a,b',
    'a b',
    'a%20b',
    "a'b",
    'a"b',
    'file:x',
    'nbd:x',
    'nbd',
    'json:x',
    'a\nb',
    'a\u0001b',
    'café',
  ],
  ...[
    'a\\b',
    'a=b',
    'a#b',
    'driver=raw',
    'null-co:',
    '.:x',
    '😀',
    ' lead',
    'trail ',
    'd:e/i',
    'p/i',
    'p/i:t',
    'p/b:b',
  ],
];

/** Names that lead nowhere, each in a way of its own. */
const NOWHERE: readonly string[] = [
  ...[
    'nope',
    'loop',
    'a:b/x',
    'x'.repeat(300),
    `${'y/'.repeat(2500)}y`,
    '',
    'dir',
    'dangling',
    ':x',
    'foo:bar',
    'qcow2:p/i',
  ],
  ...['null-co:', 'blkdebug:p/i', 'json:x', 'json:{}', 'json:[]', '/dev/null', 'file:'],
];

/** What images say of their backing file; the images are in `p`. */
export const BACKINGS: readonly string[] = [
  ...[
    'i',
    './i',
    'b:b',
    './b:b',
    'file:b',
    'nope',
    'a,b',
    'json:x',
    '../a:b',
    'foo:bar',
    'x/y:z',
    '::',
    'a:',
    '.:b',
  ],
  ...['json:{"driver":"qcow2","file":{"driver":"file","filename":"p/i"}}'],
  ...["json:{'driver':'qcow2','file.driver':'file','file.filename':'p/i'}", 'json:{"file.filename":"p/i"}'],
];

/** Definitions that leave something out, or have more than one form. */
const DEFINITIONS: readonly string[] = [
  "json:{'driver':'nope'}",
  "json:{'driver':'qcow2','file':{'filename':'a:b'}}",
  'json:{"file":{"filename":"a:b"}}',
  'json:{"file.filename":"nbd:x"}',
  'json:{"file":{"driver":"blkdebug","image.filename":"a:b"}}',
  'json:{"driver":"qcow2","file.driver":"file","file":{"filename":"p/i"}}',
  "json:{'driver':'qcow2','file':{'driver':'file','filename':'a\\'b'}}",
  'json:{"driver":"qcow2","file":{"driver":"file","filename":"p/i"},"foo":1}',
  'json:{"driver":"qcow2","lazy-refcounts":"on","file.filename":"p/i"}',
  'json:{"driver":"qcow2","file.filename":"p/i"} x',
  'json:{"driver":"quorum","vote-threshold":1,"children":[{"file.filename":"p/i"},{"file":{"filename":"a:b"}}]}',
];

const OPENS: readonly (readonly string[])[] = [
  ...[
    'backing.driver=qcow2',
    'backing.driver=raw',
    'backing.file.filename=a:b',
    'backing.filename=p/i',
    'backing=',
  ],
  ...['backing.lazy-refcounts=on', 'backing.file.locking=off', 'backing.locking=off', 'backing.driver='],
].map((option) => ['-r', '--image-opts', `driver=qcow2,file.filename=p/over0,${option}`, '-c', 'length']);

const IO_OPENS: readonly string[] = [
  'open -r -o driver=blkdebug,image.driver=qcow2 blkdebug::p/i',
  'open -r -o image.driver=qcow2 blkdebug::p/i',
  'open -r -o file.driver=blkdebug p/i',
  'open -r -o driver=blkverify,test.driver=qcow2 blkverify:raw:p/i',
  'open -r -o driver=quorum,vote-threshold=1,children.0.file.filename=a:b',
  'open -r -o driver=quorum,vote-threshold=1,children.0.filename=a:b',
  'open -r -o driver=blkdebug,image.filename=a:b',
  'open -r -o backing.backing=x p/over0',
];

export interface NameCase {
  readonly tool: keyof typeof TOOLS;
  readonly words: readonly string[];
}

const escaped = (name: string): string => name.replaceAll(',', ',,');
const img = (...words: readonly string[]): NameCase => ({ tool: 'img', words });
const io = (...words: readonly string[]): NameCase => ({ tool: 'io', words });

export const NAME_CASES: Readonly<Record<string, readonly NameCase[]>> = {
  'files by name': FILES.flatMap((name) => [
    img('info', name),
    img('info', `file:${name}`),
    io('-r', '-c', 'length', name),
  ]),
  'files by option': FILES.flatMap((name) => [
    img('info', '--image-opts', `file.filename=${escaped(name)}`),
    io('-r', '--image-opts', `driver=raw,file.driver=file,file.filename=${escaped(name)}`, '-c', 'length'),
    img('check', JSON.stringify({ driver: 'qcow2', file: { filename: name } }).replace(/^/, 'json:')),
  ]),
  'names that lead nowhere': NOWHERE.flatMap((name) => [
    img('info', name),
    img('check', '--image-opts', `driver=qcow2,file.filename=${escaped(name)}`),
    io('-r', '-c', 'length', name),
    img('create', '-q', '-f', 'qcow2', '-b', name, '-F', 'qcow2', 'new'),
  ]),
  'backing files': BACKINGS.flatMap((_, index) => [
    img('info', '--backing-chain', `p/over${index}`),
    img('check', `p/i:over${index}`),
  ]),
  definitions: DEFINITIONS.flatMap((name) => [img('check', name), io('-r', '-c', 'length', name)]),
  'child options': [
    ...OPENS.map((words) => io(...words)),
    ...IO_OPENS.map((open) => io('-c', open, '-c', 'length')),
  ],
};
