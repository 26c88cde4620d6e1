/**
 * Command line options in keyval and JSON form: the same error text as the original's, or none where it has none.
 *
 * The options name nodes, servers and files that do not exist, or lack a node name, so that the original ends by
 * itself with an error; one that comes after our checks is not looked at.
 */

import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { type CommandLineTypes, HELP_REQUESTED, parseOption } from '../../src/qmp/validate.ts';
import { limitMs } from '../patience.ts';
import { requirePeer } from './requires.ts';

type Option = readonly [type: keyof CommandLineTypes, flag: string, impliedKey: string | null];

const BLOCKDEV: Option = ['BlockdevOptions', '--blockdev', 'driver'];
const OBJECT: Option = ['ObjectOptions', '--object', 'qom-type'];
const NBD_SERVER: Option = ['NbdServerOptions', '--nbd-server', null];
const EXPORT: Option = ['BlockExportOptions', '--export', 'type'];
const MONITOR: Option = ['MonitorOptions', '--monitor', 'chardev'];

/** Values after `null-co,`; the node has no name, so that it is refused in the end. */
const NULL_CO = [
  ...[
    '1k',
    '12x',
    '',
    ' 5',
    '0x10',
    '1e3',
    '99999999999999999999',
    '0x',
    '- 1',
    '0b1',
    '0XfF',
    '5 ',
    '\t5',
    '08',
    '+5',
  ],
  ...['-9223372036854775809', '9223372036854775808', '18446744073709551615'],
]
  .map((size) => `size=${size}`)
  .concat(
    [
      '1k',
      'x',
      '0777',
      '-18446744073709551615',
      '18446744073709551616',
      '-18446744073709551616',
      '--1',
      '+0',
    ].map((latency) => `latency-ns=${latency}`),
    ['on', 'off', 'yes', 'no', 'true', 'false', 'y', 'n', '1', 'ON', 'On', ''].map(
      (on) => `read-zeroes=${on}`,
    ),
    [
      'size.x=1',
      'read-zeroes.x=1',
      'node-name.x=1',
      'node-name.0=x',
      'cache.0=x',
      'cache=x',
      'cache.x=y',
      'x=y,z=w',
    ],
    [
      'z=w,x=y',
      'file.x=y',
      'detect-zeroes=b',
      'help=on',
      '__org.qemu_x=1',
      '__org_x=1',
      '_x=1',
      '-x=1',
      'x-=1',
    ],
    ['a_b=1', 'A=1', 'é=1', 'a.00.b=1', 'a.0=1,a.00=2', 'a.0=1,a.1.x=2,a.1.0=2', 'a=1,a.b=2', 'a.b=1,a=2'],
    [
      'a.b.c=1,a.b=2',
      'a.b=1,a.b.c=2',
      ',,=x',
      '=',
      'a=b=c',
      'a=,b=',
      'b',
      'é\n,xx',
      'a b',
      '?x',
      '1=b',
      '=x',
      ',',
    ],
  )
  .map((rest) => `null-co,${rest}`);

const CASES: readonly (readonly [Option, readonly string[]])[] = [
  [
    BLOCKDEV,
    [
      ...NULL_CO,
      ...[
        '',
        'null-co',
        'driver',
        '=x',
        'driver=',
        'foo',
        'node-name=a,null-co',
        'driver=null-co,,x',
        'null,,co',
        '1a=b',
      ],
      ...[
        'a..b=c',
        '.a=b',
        'a.=b',
        'a.1=b',
        'a.1b=c',
        '@=b',
        'a@b=c',
        'a b=c',
        '1=b',
        'driver.x=1',
        'read-zeroes,driver=x',
      ],
      ...[
        'raw',
        'raw,file=x',
        'raw,file.driver=foo',
        'raw,file.driver=file',
        'raw,file=x,file.driver=null-co',
      ],
      ...[
        'raw,file.driver=null-co,file=x',
        'raw,file.0=x',
        'raw,file.0.driver=x',
        'raw,file.driver=raw,file.file.0=3',
      ],
      ...[
        'raw,file.file=3',
        'raw,file.driver=raw,file.file.driver=null-co,file.file.size=1x',
        'raw,file=x,offset=1k',
      ],
      `${'a'.repeat(127)}=b`,
      `${'a'.repeat(128)}=b`,
      `${'a'.repeat(128)}.x=b`,
      `a.${'b'.repeat(128)}=c`,
      `null-co,${'a.'.repeat(70)}b=1`,
      ...[
        '{',
        '{"a',
        '{"a"',
        '{"a":1',
        '{"a":',
        '{"a":"x',
        '{"driver":nul',
        '{"driver":null',
        '{@}',
        '{]',
        '{"x":1e5}',
      ],
      ...[
        '{"driver":"null-co"} ',
        '{"driver":"null-co"}@',
        '{"driver":"null-co"}1',
        '{"driver":"null-co"} foo',
        '{}',
      ],
      ...[
        '{"driver":"null-co",}',
        '{"driver":"null-co"}{}',
        '{"driver":"null-co"}{',
        '{"a":1,"a":2}',
        '{"driver":[]}',
      ],
      ...[
        '{"driver":"null-co","size":"1"}',
        "{'driver':'null-co'}",
        ' {"driver":"null-co"}',
        '[]',
        '{"x":@,"y":#}',
      ],
    ],
  ],
  [
    OBJECT,
    [
      ...[
        '',
        'id=x',
        'throttle-group',
        'foo,id=x',
        'secret,id=a,format=x',
        'tls-creds-psk,id=a,verify-peer=x',
      ],
      ...['limits.iops-total=x', 'x-iops-total=5k', 'limits=x', 'limits.x=1'].map(
        (rest) => `throttle-group,id=t,${rest}`,
      ),
      ...[
        'rules.1.match=x',
        'rules.x.match=x',
        'rules.0=x',
        'rules=x',
        'rules.0.match=x',
        'rules.-1.match=x',
      ].map((rest) => `authz-list,id=a,${rest}`),
      ...[
        'rules.0.match=x,rules.2.match=x',
        'rules.0.match=x,rules.x.match=y',
        'rules.0.match=x,rules.0.policy=foo',
      ].map((rest) => `authz-list,id=a,${rest}`),
      ...['9999999999', '100000', '00000000000000000000000001'].map(
        (index) => `authz-list,id=a,rules.${index}.match=x`,
      ),
      ...['rules.0.match.x=x', 'rules.0.match=x,rules.0.policy.a=foo', 'rules.0.0=x'].map(
        (rest) => `authz-list,id=a,${rest}`,
      ),
      'authz-list,id=a,rules.0.match=x,rules.0.policy=allow,rules.0.z.y=x',
      'authz-list,id=a,rules.0.match=x,rules.0.policy=allow,rules.1=3',
      'iothread,id=a,poll-max-ns=1x',
    ],
  ],
  [
    NBD_SERVER,
    [
      ...[
        'unix',
        'addr.type=foo',
        'addr.host=x',
        'addr=x',
        'max-connections=5',
        'addr.type=unix',
        'addr.0=x',
        'addr.type.x=y',
      ],
      ...['70000', 'x', '-1', '1.5'].map(
        (to) => `addr.type=inet,addr.host=localhost,addr.port=x,addr.to=${to}`,
      ),
      'addr.type=inet,addr.host=localhost,addr.port=x,addr.ipv4=x',
      'addr.type=inet,addr.host=localhost,addr.port=x,addr.to.x=1',
      ...['5000000000', '1k', '-1', 'x'].map(
        (max) => `addr.type=unix,addr.path=/nowhere/x,max-connections=${max}`,
      ),
      'addr.type=unix,addr.path=/x,max-connections.0=1',
    ],
  ],
  [
    EXPORT,
    [
      ...[
        'type=nbd,id=a',
        'foo,id=a,node-name=b',
        'nbd,id=a,node-name=b,bitmaps=x',
        'nbd,id=a,node-name=b,writable=maybe',
      ],
      ...['bitmaps.0=x', 'bitmaps.0.node=x', 'bitmaps.0.0=x', 'bitmaps.0.node=x,bitmaps.0.z=x'].map(
        (rest) => `nbd,id=a,node-name=b,${rest}`,
      ),
    ],
  ],
  [MONITOR, ['', 'zz', 'c,pretty=x', 'c,mode=foo', 'pretty=on', 'c,x=y', 'c,mode=readline']],
];

/** Errors that come from the commands behind the options, not from reading them. */
const LATER =
  /must be specified for the root node|NBD server not running|is invalid|Invalid node-name|not found|Cannot find device|Only QMP|Failed to find node|Failed to bind|address resolution/;

/** The error text of the original for an option; null when the option itself was fine. */
function originalError(flag: string, text: string): string | null {
  const run = spawnSync('qemu-storage-daemon', [flag, text], { encoding: 'utf8', timeout: limitMs(60_000) });
  const prefix = `qemu-storage-daemon: ${flag} ${text}: `;
  if (run.status !== 1 || !run.stderr.startsWith(prefix)) throw new Error(`${flag} ${text}: ${run.stderr}`);
  const message = run.stderr.slice(prefix.length).trimEnd();
  return LATER.test(message) ? null : message;
}

function ourError([type, , impliedKey]: Option, text: string): string | null {
  try {
    return parseOption(type, text, impliedKey) === HELP_REQUESTED
      ? 'Help is not available for this option'
      : null;
  } catch (error) {
    return (error as Error).message;
  }
}

test('options are refused with the original text', (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const different: string[] = [];
  for (const [option, texts] of CASES) {
    for (const text of texts) {
      const theirs = originalError(option[1], text);
      const ours = ourError(option, text);
      if (ours !== theirs) different.push(`${option[1]} ${text}\n  theirs: ${theirs}\n  ours:   ${ours}`);
    }
  }
  expect(different).toEqual([]);
});

test.each(['help', '?', 'null-co,help', 'null-co,?', 'null-co,help,node-name=a'])(
  '%s asks for help',
  (text) => {
    expect(parseOption('BlockdevOptions', text, 'driver')).toBe(HELP_REQUESTED);
  },
);

test('a path of thousands of fragments is refused', () => {
  expect(() => parseOption('BlockdevOptions', `${'a.'.repeat(60_000)}b=1`, 'driver')).toThrow(
    'nested too deeply',
  );
});
