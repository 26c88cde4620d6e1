/**
 * Byte streams for the QMP wire tests: what a client may send, well formed or not. Each is sent on a connection of
 * its own that has negotiated capabilities.
 */

const X = '{"execute":"x"}';

/** Text as bytes; \u0080 to \u00ff in `latin1` streams stand for single bytes. */
const utf8 = (text: string): Buffer => Buffer.from(text, 'utf8');
const latin1 = (text: string): Buffer => Buffer.from(text, 'latin1');

const FRAMING = [
  '1\n',
  '"abc"\n',
  'null\n',
  'nul\n',
  'foo ',
  'foo',
  '',
  '\r\n',
  `/* x */${X}`,
  `# hi\n${X}`,
  `${X};${X}\n`,
  `${X}${X}[]1 2 "z" ${X}\n`,
  ',:,\n',
  `  ${X}\t\r\n${X}`,
  '1 -1 -1.5e5 1.e5 \n',
  '1-1\n',
  '"a" "b"\n',
  'abc def\n',
];

const STRUCTURE = [
  ...[
    '}',
    ']',
    '[]',
    '{}',
    '[1,]',
    '[1 2]',
    '[,1]',
    '{]',
    '[}',
    '[1}',
    '}}',
    '[]]',
    '[[}',
    '[:]',
    '[1:2]',
    '["a":1]',
  ],
  ...['{"a"}', '{"a",}', '{"a" 1}', '{"a":}', '{"a":,}', '{"a":1:}', '{"a":1{}}', '{,}', '{1:2}', '{"a":1,}'],
  ...[
    '{"a":1 "b":2}',
    '{"a":1,"a":2}',
    '{"a":{"b":1,"b":2}}',
    '{"a":1,3}',
    '{"a":1,]',
    '{null:1}',
    '{foo:1}',
  ],
  ...[
    '{"a":foo}',
    '[foo]',
    '[1,foo,@]',
    '{[1]:2}',
    '{[1]}',
    '{{}}',
    '{"a":[}]',
    '{"a":[}',
    '{"a":[1}',
    '[1,2 3]',
  ],
  ...[
    '{"a":1,"a":foo}',
    '{"a":1,"a"}',
    '{"a":1,"a":}',
    '{"a":1,"a" 2}',
    '{"a":"\\q","a":@}',
    '{"a":"\\u1","b":}',
  ],
];

const NUMBERS = [
  ...[
    '1.5',
    '1.0',
    '1e3',
    '1e22',
    '0.1',
    '1e-7',
    '123456789.123456789',
    '1e300',
    '-0.0',
    '3.141592653589793',
  ],
  ...[
    '5e-324',
    '1e17',
    '1e16',
    '123456.7e-10',
    '0.0001',
    '0.00001',
    '100000000000000000.0',
    '12345678901234567.5',
  ],
  ...[
    '18446744073709551615',
    '18446744073709551616',
    '-9223372036854775808',
    '-9223372036854775809',
    '-0',
    '0',
    '-1',
  ],
  ...[
    '123456789012345678901234567890',
    '9007199254740991',
    '9007199254740992',
    '9007199254740993',
    '1E+2',
    '01',
  ],
  ...[
    '-',
    '1.',
    '.5',
    '1e',
    '+1',
    '0x10',
    '-01',
    'NaN',
    '%d',
    '1a',
    '1e5x',
    '--1',
    '1e+',
    '1.5.5',
    '00',
    '1e5e5',
  ],
].map((number) => `{"id":${number},"execute":"x"}\n`);

const KEYWORDS = ['truee', 'tru', 'null', 'true', 'false', 'TRUE', 'a-b', 'a_b', '"x""y"'].map(
  (keyword) => `{"id":${keyword},"execute":"x"}\n`,
);

const STRINGS = [
  ...[
    '\\q',
    '\\u12',
    '\\u12G4',
    '\\ud800',
    '\\udc00',
    '\\ud800\\ud800',
    '\\ud800\\u0041',
    '\\ud83d\\ude0',
    '\\a',
  ],
  ...[
    '\\ud83d\\ude00',
    '\\u0000',
    '\\u000',
    '\\xff',
    "a'b\\'",
    '\\b\\f\\n\\r\\t\\/\\\\\\"',
    '\\u00e9\\u20ac\\u007f',
  ],
  ...[
    '\\uD83D x',
    '\\ufffe',
    '\\uffff',
    '\\ufdd0',
    '\\ufdef',
    '\\ufdf0',
    '\\ud83f\\udfff',
    '\\U0041',
    '\\u',
    '\\u1',
  ],
  ...[
    '\\uD800\\uDC0G',
    '\\uD800\\n',
    '\\uD83D\\uDE00\\u1',
    '\\\\u1',
    '%d',
    'é€😀',
    '\x7f',
    '\\é',
    '\\u1é2',
    '\\ué',
  ],
].map((text) => `{"id":"${text}","execute":"x"}\n`);

const SINGLE_QUOTES = [
  "{'execute':'x','id':'\\''}",
  "{'id':'a\"b','execute':'x'}",
  "{'id':'\\\"','execute':'x'}",
  "'ab\n",
  "'\\u1'\n",
  "'\\q'\n",
];

const CONTROL = [
  ...['a\tb', 'a\nb', 'a\x01b', 'a\x00b', 'a\xffb', 'a\xfeb', '\\\x01', '\\\xff', '\\u\xff', '\\u00\n'].map(
    (text) => `{"id":"${text}","execute":"x"}\n`,
  ),
  ...[
    '\xff',
    '\x01',
    '\x00',
    '\x1b',
    '\x0b',
    '\x0c',
    '\x7f',
    '@',
    '@@',
    '@\x01',
    '\xff\xff',
    '\xff\x01\x02',
    '\x01\x02',
  ],
  ...['@\n1\n', '@\t1\n', '@\r1\n', '@ 1\n', '@\x7f1\n', '@1{}', '@,@\n', '@"abc"[]', '@[1 @', '\xff 1\n'],
  ...[
    '@ \t\n\r@\n',
    '@ "a{b"\n',
    '@ "a\xffb" @ {}',
    '{@}\n',
    'tr\x01ue\n',
    '12\x0134\n',
    'nu\xffll\n',
    '"\x01',
  ],
  ...[
    `\x01${X}\n`,
    `\x0c${X}\n`,
    `\xff${X}\n`,
    '{"execute":\x01"x"}\n',
    '{"execute":"x"\xff}\n',
    '{"execute":"x"\x00}\n',
  ],
  ...['"ab\n', '"abc\x01', '- 1\n', '-\n', '%\n', '{"execute":"x","id":"', '{"execute":"x","id":1'],
];

const ENCODING = [
  ...['\xc3\xa9', '\xe2\x82\xac', '\xf0\x9f\x98\x80', '\xc0\x80', '\xc1\x81', '\xed\xa0\x80', '\xed\x9f\xbf'],
  ...[
    '\xee\x80\x80',
    '\xf4\x90\x80\x80',
    '\xf4\x8f\xbf\xbf',
    '\xf4\x8f\xbf\xbd',
    '\xf3\xb0\x80\x80',
    '\xe2\x82',
  ],
  ...[
    '\xe2\x82a',
    '\xef\xbf\xbf',
    '\xef\xbf\xbe',
    '\xef\xb7\x90',
    '\xf0\x9f\xbf\xbe',
    '\x80',
    '\xf8\x88\x80\x80\x80',
  ],
  ...['\xf0\x80\x80\x80', '\xe0\x80\x80', 'a\xc0\x80b', '\xfc\x84\x80\x80\x80\x80'],
].flatMap((bytes) => [`{"id":"${bytes}","execute":"x"}\n`, `"${bytes}z\x01`, `{"execute":"${bytes}"}`]);

const FRAMES = [
  '{}',
  '{"id":3}',
  '{"execute":1}',
  '{"execute":null}',
  '{"execute":"","id":5}',
  '{"execute":"x","foo":1}',
  '{"execute":"x","foo":1,"bar":2,"id":7}',
  '{"foo":1}',
  '{"execute":"x","arguments":3}',
  '{"execute":"query-block","arguments":null}',
  '{"execute":"x","arguments":[]}',
  '{"execute":"x","arguments":{},"id":1}',
  '{"execute":"x","exec-oob":"y"}',
  '{"exec-oob":"query-block","id":1}',
  '{"arguments":{}}',
  '{"arguments":3,"id":4}',
  '{"arguments":3,"foo":4}',
  '{"execute":3,"foo":3}',
  '{"execute":3,"arguments":3}',
  '{"control":{}}',
  '[{"execute":"x","id":5}]',
  '{"execute":"quit\\u0000","id":5}',
  '{"execute":"x\\u00e9y","id":5}',
  '{"execute":"x","id":{"a":1,"a":2}}',
  '{"execute":"x","id":[1,[],{},null,true,"a",{"b":[{}]}]}',
  '{"execute":"x","id":{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"é":9,"a\\u0000":10}}',
  '{"a\\u0000b":1,"a":2}',
  '{"__proto__":1}',
  '{"execute":"x","id":{"__proto__":1,"constructor":2}}',
  '{"execute":"qmp_capabilities"}',
  '{"execute":"qmp_capabilities","arguments":{"enable":["oob","oob"]}}',
  '{"execute":"qmp_capabilities","arguments":{"x":1}}',
  '{"execute":"query-version","arguments":{},"id":0}',
];

/** [command, arguments] that are refused before the command runs. */
const ARGUMENTS: readonly (readonly [string, readonly string[]])[] = [
  [
    'qmp_capabilities',
    ['{"enable":["x"]}', '{"enable":[3]}', '{"enable":"oob"}', '{"enable":null}', '{"enable":["oob",{}]}'],
  ],
  ['query-version', ['{"a":1}', '{"\\u00e9":1}', '{"a":1,"b":2,"c":3}']],
  [
    'blockdev-add',
    [
      ...['{}', '{"driver":"foo"}', '{"driver":3}', '{"driver":{}}', '{"driver":null}', '{"node-name":"x"}'],
      ...[
        '{"driver":"raw"}',
        '{"driver":"raw","file":3}',
        '{"driver":"raw","file":null}',
        '{"driver":"raw","file":[]}',
      ],
      ...['{"driver":"raw","file":true}', '{"driver":"raw","file":1.5}', '{"driver":"raw","file":{}}'],
      '{"driver":"raw","file":{"driver":"file"}}',
      '{"driver":"raw","file":{"driver":"file","filename":3}}',
      '{"driver":"raw","file":{"driver":"raw","file":{"driver":"zz"}}}',
      '{"driver":"raw","file":{"driver":"raw","file":3}}',
      '{"driver":"raw","file":{"driver":"null-co","x":1}}',
      '{"driver":"raw","file":{"driver":"null-co","size":"12"}}',
      '{"driver":"raw","file":{"driver":"null-co","latency-ns":"a"}}',
      '{"driver":"raw","node-name":"x","file":"y","offset":"1"}',
      '{"driver":"raw","node-name":"x","file":"y","size":true}',
      ...[
        '"12"',
        '1e3',
        '1.0',
        '18446744073709551615',
        '18446744073709551616',
        '9223372036854775808',
        '[]',
        'null',
      ].map((size) => `{"driver":"null-co","node-name":"x","size":${size}}`),
      ...['"a"', '1.5', '18446744073709551616', 'null', '[]', '{}', '-9223372036854775809'].map(
        (ns) => `{"driver":"null-co","latency-ns":${ns}}`,
      ),
      ...['3', '{"direct":3}', '{"direct":true,"q":3}', '[]', 'null', '{"no-flush":null}'].map(
        (cache) => `{"driver":"null-co","cache":${cache}}`,
      ),
      ...[
        '"read-only":"on"',
        '"read-only":null',
        '"detect-zeroes":"x"',
        '"discard":true',
        '"node-name":5',
      ].map((member) => `{"driver":"null-co",${member}}`),
      '{"driver":"null-co","zz":1,"yy":2,"cache":{"a":1}}',
      '{"driver":"null-co","zz":1,"yy":2,"xx":3,"q":4}',
      '{"driver":"null-co","a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10}',
      '{"driver":"file","filename":"/x","locking":"maybe"}',
      '{"driver":"file","filename":"/x","aio":"posix"}',
      '{"driver":"file","filename":"/x","aio-max-batch":-9223372036854775809}',
    ],
  ],
  ['blockdev-del', ['{}', '{"node-name":null}', '{"node-name":"x","b":1,"a":2,"zz":1}']],
  ['block_resize', ['{}', '{"size":"1"}', '{"device":1,"size":1}', '{"node-name":"x","size":1,"x":1}']],
  ['query-blockstats', ['{"query-nodes":1}', '{"x":1}']],
  ['query-named-block-nodes', ['{"flat":"yes"}']],
  [
    'nbd-server-start',
    [
      ...[
        '{}',
        '{"addr":[]}',
        '{"addr":"x"}',
        '{"addr":{"type":[]}}',
        '{"addr":{"type":"x"}}',
        '{"addr":{"type":"inet"}}',
      ],
      ...[
        '{"addr":{"type":"inet","data":{}}}',
        '{"addr":{"type":"inet","data":"x"}}',
        '{"addr":{"type":"unix","data":{}}}',
      ],
      '{"addr":{"type":"inet","data":{"host":"a","port":3}}}',
      ...['65536', '-1', '"x"', '1.5', '18446744073709551615', '18446744073709551616'].map(
        (to) => `{"addr":{"type":"inet","data":{"host":"a","port":"1","to":${to}}}}`,
      ),
      '{"addr":{"type":"inet","data":{"host":"a","port":"1","x":{"a":1}}}}',
      ...['4294967296', '-1', '-5000000000', '"1"', '1.5', '18446744073709551615'].map(
        (max) => `{"addr":{"type":"unix","data":{"path":"/x/y"}},"max-connections":${max}}`,
      ),
      '{"addr":{"type":"unix","data":{"path":"/x/y"}},"tls-creds":1}',
      '{"addr":{"type":"unix","data":{"path":"/x/y"}},"a":1,"b":2}',
    ],
  ],
  ['nbd-server-add', ['{}', '{"device":1}', '{"device":"x","writable":"on"}', '{"device":"x","bitmap":1}']],
  ['nbd-server-remove', ['{}', '{"name":"x","mode":"soft"}']],
  [
    'block-export-add',
    [
      ...['{}', '{"type":"nbd"}', '{"type":"nbd","id":"a"}', '{"type":"foo","id":"a","node-name":"b"}'],
      ...[
        '3',
        '[3]',
        '["s",3]',
        '["s",{"node":"a"}]',
        '["s",{"node":"a","name":"s","z":2}]',
        '[null]',
        '[[]]',
      ].map((bitmaps) => `{"type":"nbd","id":"a","node-name":"b","bitmaps":${bitmaps}}`),
    ],
  ],
  ['block-export-del', ['{}', '{"id":"x","mode":"soft"}', '{"id":[]}']],
  [
    'qom-get',
    ['{"path":3,"property":4}', '{"path":"/","property":4}', '{"property":4}', '{"property":4,"z":1}'],
  ],
  ['qom-set', ['{"path":"/x"}', '{"path":"/x","property":"b"}', '{"property":"b","value":1}']],
  ['qom-list-types', ['{"abstract":"x"}', '{"implements":1}']],
  [
    'object-add',
    [
      ...[
        '{}',
        '{"id":"x"}',
        '{"qom-type":"secret"}',
        '{"qom-type":"zz","id":"a"}',
        '{"qom-type":"secret","id":1}',
      ],
      ...['3', '[3]', '{}', '[{"match":3}]', '[{"match":"x"}]', '[{"match":"x","policy":"zz"}]'].map(
        (rules) => `{"qom-type":"authz-list","id":"a","rules":${rules}}`,
      ),
      '{"qom-type":"authz-list","id":"a","rules":[{"match":"x","policy":"deny","q":"zz"}]}',
      '{"qom-type":"authz-list","id":"a","rules":[{"match":"x","policy":"deny","format":"zz"}]}',
      '{"qom-type":"throttle-group","id":"a","limits":{"iops-total":"a"}}',
      '{"qom-type":"throttle-group","id":"a","limits":{"iops-totl":1}}',
      '{"qom-type":"iothread","id":"a","poll-max-ns":9223372036854775808}',
      '{"qom-type":"secret","id":"a","format":"zz"}',
      '{"qom-type":"tls-creds-psk","id":"a","endpoint":"zz"}',
      '{"qom-type":"tls-creds-x509","id":"a","sanity-check":"zz"}',
    ],
  ],
  [
    'chardev-add',
    [
      ...[
        '{}',
        '{"id":"a"}',
        '{"id":"a","backend":3}',
        '{"id":"a","backend":{}}',
        '{"id":"a","backend":{"type":"zz"}}',
      ],
      ...[
        '{"type":"null"}',
        '{"type":"file","data":{}}',
        '{"type":"socket","data":{}}',
        '{"type":"null","data":{"x":1}}',
      ].map((backend) => `{"id":"a","backend":${backend}}`),
      '{"id":"a","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":1}}}}}',
      '{"id":"a","backend":{"type":"ringbuf","data":{"size":"1"}}}',
    ],
  ],
  [
    'ringbuf-read',
    ['{"device":"a","size":9223372036854775808}', '{"device":"a"}', '{"device":"a","size":1,"format":"x"}'],
  ],
  ['ringbuf-write', ['{"device":"a"}', '{"device":"a","data":"x","format":"hex"}']],
];

const nested = (open: string, close: string, depth: number): string =>
  open.repeat(depth) + close.repeat(depth);

const NESTING = [
  nested('[', ']', 1024),
  nested('[', ']', 1025),
  nested('{"a":', '}', 1025),
  `${'['.repeat(1024)}{}${']'.repeat(1024)}`,
  `${'['.repeat(1030)}1, 2}]${X}\n`,
  `${'[1'.repeat(1025)}\n${X}\n`,
];

/** All streams. */
export const STREAMS: readonly Buffer[] = [
  ...[FRAMING, STRUCTURE, NUMBERS, KEYWORDS, STRINGS, SINGLE_QUOTES, FRAMES, NESTING].flat().map(utf8),
  ...[CONTROL, ENCODING].flat().map(latin1),
  ...ARGUMENTS.flatMap(([command, list]) =>
    list.map((args) => utf8(`{"execute":"${command}","arguments":${args},"id":"i"}`)),
  ),
];

/** Pieces of JSON and of garbage from which random streams are made. */
export const FRAGMENTS: readonly Buffer[] = [
  ...[
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '"',
    "'",
    '"a"',
    "'b'",
    '"execute"',
    '"x"',
    '"id"',
    '1',
    '-',
    '0',
    '1.5',
    '1e',
    'e5',
  ],
  ...[
    'null',
    'tr',
    'ue',
    ' ',
    '\n',
    '\r\n',
    '\t',
    '\\',
    '\\u',
    '00e9',
    '\\ud83d\\ude00',
    '@',
    '#',
    'é',
    '{"execute":"x"}',
  ],
]
  .map(utf8)
  .concat(['\xff', '\x00', '\x01', '\xc0', '\x80', '\xe2\x82', '\xfe'].map(latin1));
