/**
 * Conversations with an NBD server, from polite to hostile, each written down as lines of text.
 *
 * The server under test exports `disk` (writable, 1 MiB, first 64 KiB 0x11, the rest a hole, description "hello"), `ro`
 * (the same kind of file, read-only), `nul` (null-co, 1 MiB, writable) and `blk` (null-co, 8 TiB, read-only).
 */

import { Command, CommandFlag, Info, OPTION_MAGIC, Option } from '../../src/nbd/protocol/messages.ts';
import { infoPayload, metaPayload, type RawClient, text, u16, u32 } from '../nbd/raw-client.ts';

type Setup = NonNullable<Parameters<RawClient['enter']>[1]>;

export interface WireScenario {
  readonly name: string;
  run(connect: () => Promise<RawClient>): Promise<string[]>;
}

const ZERO = Buffer.alloc(0);

/** A conversation in the handshake: after the greeting, each step's replies. */
function handshake(name: string, run: (client: RawClient) => Promise<string[]>, flags = 3): WireScenario {
  return {
    name: `handshake: ${name}`,
    run: async (connect) => {
      const client = await connect();
      try {
        return [await client.greet(flags), ...(await run(client))];
      } finally {
        client.close();
      }
    },
  };
}

/** One option with its payload, then whether the server still answers. */
function option(name: string, number: number, payload: Buffer = ZERO, length = payload.length): WireScenario {
  return handshake(name, async (client) => [
    ...(await client.ask(number, payload, length)),
    ...(await client.ask(Option.LIST)),
  ]);
}

/** The same after structured replies were negotiated. */
function structuredOption(name: string, number: number, payload: Buffer = ZERO): WireScenario {
  return handshake(`${name} (structured)`, async (client) => [
    ...(await client.ask(Option.STRUCTURED_REPLY)),
    ...(await client.ask(number, payload)),
    ...(await client.ask(Option.INFO, infoPayload('disk'))),
  ]);
}

type Step = (client: RawClient) => Promise<string>;

/** Requests in the transmission phase, then a FLUSH to see whether the server still answers. */
function transmission(name: string, exportName: string, setup: Setup, ...steps: Step[]): WireScenario {
  return {
    name: `transmission: ${name}`,
    run: async (connect) => {
      const client = await connect();
      try {
        await client.enter(exportName, setup);
        const lines: string[] = [];
        for (const step of steps) lines.push(await step(client));
        lines.push(await client.transact({ type: Command.FLUSH, cookie: 99n }));
        return lines;
      } finally {
        client.close();
      }
    },
  };
}

/** The same steps with simple and with structured replies. */
function both(name: string, exportName: string, ...steps: Step[]): WireScenario[] {
  return [
    transmission(`${name} (simple)`, exportName, {}, ...steps),
    transmission(`${name} (structured)`, exportName, { structured: true }, ...steps),
  ];
}

const ask =
  (type: number, offset: bigint, length: bigint, flags = 0, payload: Buffer = ZERO): Step =>
  (client) =>
    client.transact({ type, offset, length, flags, cookie: 7n }, payload);

const KIB = 1024n;
const MIB = 1024n * 1024n;
const ALLOCATION = ['base:allocation'];
const DEPTH = ['qemu:allocation-depth'];

const HANDSHAKE: WireScenario[] = [
  option('LIST', Option.LIST),
  option('LIST with payload', Option.LIST, Buffer.from('abc')),
  option('ABORT', Option.ABORT),
  option('ABORT with payload', Option.ABORT, Buffer.from('x')),
  option('unknown option 77', 77),
  option('unknown option 77 with payload', 77, Buffer.alloc(100)),
  option('unknown option with 32 MiB announced', 77, ZERO, 33554432),
  option('unknown option with 32 MiB + 1 announced', 77, ZERO, 33554433),
  option('unknown option with 4 GiB announced', 77, ZERO, 0xffffffff),
  option('PEEK_EXPORT (4)', 4, Buffer.from('disk')),
  option('STARTTLS', Option.STARTTLS),
  option('STARTTLS with payload', Option.STARTTLS, Buffer.from('x')),
  option('STRUCTURED_REPLY', Option.STRUCTURED_REPLY),
  option('STRUCTURED_REPLY with payload', Option.STRUCTURED_REPLY, Buffer.from('x')),
  handshake('STRUCTURED_REPLY twice', async (client) => [
    ...(await client.ask(Option.STRUCTURED_REPLY)),
    ...(await client.ask(Option.STRUCTURED_REPLY)),
  ]),
  option('INFO disk', Option.INFO, infoPayload('disk')),
  option('INFO disk, all kinds', Option.INFO, infoPayload('disk', [0, 1, 2, 3])),
  option('INFO disk, unknown kinds', Option.INFO, infoPayload('disk', [9, 77, 65535])),
  option('INFO disk, block size', Option.INFO, infoPayload('disk', [Info.BLOCK_SIZE])),
  option('INFO disk, block size twice', Option.INFO, infoPayload('disk', [Info.BLOCK_SIZE, Info.BLOCK_SIZE])),
  option('INFO disk, name', Option.INFO, infoPayload('disk', [Info.NAME])),
  option('INFO disk, description', Option.INFO, infoPayload('disk', [Info.DESCRIPTION])),
  option('INFO ro', Option.INFO, infoPayload('ro', [1, 2, 3])),
  option('INFO nul', Option.INFO, infoPayload('nul', [1, 2, 3])),
  option('INFO blk', Option.INFO, infoPayload('blk', [3])),
  option('INFO unknown', Option.INFO, infoPayload('nope')),
  option('INFO default export', Option.INFO, infoPayload('')),
  option('INFO name too long', Option.INFO, infoPayload('x'.repeat(4097))),
  option('INFO name of 4096', Option.INFO, infoPayload('x'.repeat(4096))),
  option('INFO empty', Option.INFO),
  option('INFO short', Option.INFO, u32(4)),
  option(
    'INFO name length beyond payload',
    Option.INFO,
    Buffer.concat([u32(400), Buffer.from('disk'), u16(0)]),
  ),
  option('INFO name length huge', Option.INFO, Buffer.concat([u32(0xffffffff), Buffer.from('disk'), u16(0)])),
  option('INFO no count', Option.INFO, text('disk')),
  option('INFO count too large', Option.INFO, Buffer.concat([text('disk'), u16(3, 1)])),
  option('INFO trailing bytes', Option.INFO, Buffer.concat([text('disk'), u16(1, 1), Buffer.from('zz')])),
  option('GO unknown', Option.GO, infoPayload('nope')),
  option('GO short', Option.GO, u32(4)),
  option('GO trailing bytes', Option.GO, Buffer.concat([text('disk'), u16(0), Buffer.from('zz')])),
  handshake('GO disk with block size', async (client) => [
    ...(await client.ask(Option.GO, infoPayload('disk', [3]))),
    await client.transact({ type: Command.READ, length: 512n }),
  ]),
  handshake('EXPORT_NAME disk', async (client) => {
    client.option(Option.EXPORT_NAME, Buffer.from('disk'));
    return [await client.exportNameReply(false), await client.transact({ type: Command.READ, length: 512n })];
  }),
  handshake(
    'EXPORT_NAME disk with zeroes',
    async (client) => {
      client.option(Option.EXPORT_NAME, Buffer.from('disk'));
      return [
        await client.exportNameReply(true),
        await client.transact({ type: Command.READ, length: 512n }),
      ];
    },
    1,
  ),
  handshake('EXPORT_NAME unknown', async (client) => [await client.option(1, Buffer.from('nope')).end()]),
  handshake('EXPORT_NAME empty', async (client) => [await client.option(1).end()]),
  handshake('EXPORT_NAME too long', async (client) => [
    await client.option(1, Buffer.alloc(4097, 'x')).end(),
  ]),
  handshake('EXPORT_NAME after structured', async (client) => {
    const lines = await client.ask(Option.STRUCTURED_REPLY);
    client.option(Option.EXPORT_NAME, Buffer.from('disk'));
    return [
      ...lines,
      await client.exportNameReply(false),
      await client.transact({ type: Command.READ, length: 512n }),
    ];
  }),
  handshake(
    'no flags, EXPORT_NAME',
    async (client) => {
      client.option(Option.EXPORT_NAME, Buffer.from('disk'));
      return [await client.exportNameReply(true)];
    },
    0,
  ),
  handshake('no flags, LIST', async (client) => [await client.option(Option.LIST).end()], 0),
  handshake('no flags, GO', async (client) => [await client.option(Option.GO, infoPayload('disk')).end()], 0),
  handshake('only NO_ZEROES, LIST', async (client) => [await client.option(Option.LIST).end()], 2),
  handshake('unknown client flags', async (client) => [await client.option(Option.LIST).end()], 0x80000003),
  handshake('bad option magic', async (client) => [
    await client.option(Option.LIST, ZERO, 0, OPTION_MAGIC + 1n).end(),
  ]),
  handshake('garbage', async (client) => [await client.send(Buffer.alloc(64, 0xa5)).end()]),
  handshake('half an option, then silence', async (client) => [
    await client.send(Buffer.from('IHAVEOPT')).end(300),
  ]),
  handshake('many options in one write', async (client) => {
    client
      .option(Option.LIST)
      .option(77)
      .option(Option.INFO, infoPayload('nope'))
      .option(Option.STRUCTURED_REPLY);
    const lines: string[] = [];
    for (let i = 0; i < 4; i++) lines.push(...(await client.optionReplies()));
    return lines;
  }),

  // Metadata contexts.
  option('SET_META_CONTEXT before structured', Option.SET_META_CONTEXT, metaPayload('disk', ALLOCATION)),
  option('LIST_META_CONTEXT before structured', Option.LIST_META_CONTEXT, metaPayload('disk', ALLOCATION)),
  ...[Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT].flatMap((number) => {
    const label = number === Option.SET_META_CONTEXT ? 'SET' : 'LIST';
    const queries: (readonly string[])[] = [
      [],
      ALLOCATION,
      DEPTH,
      ['base:'],
      ['qemu:'],
      ['base:', 'qemu:'],
      ['base:*'],
      ['base:allocation', 'base:allocation'],
      ['base:', 'base:allocation'],
      ['base'],
      [''],
      [':'],
      ['base:allo'],
      ['base:allocationx'],
      ['qemu:allocation-depth', 'base:allocation'],
      ['qemu:dirty-bitmap'],
      ['qemu:dirty-bitmap:'],
      ['qemu:dirty-bitmap:b0'],
      ['qemu:allocation-dept'],
      ['other:thing', 'base:allocation'],
      ['x'.repeat(4096)],
      ['x'.repeat(4097)],
      [`base:${'x'.repeat(5000)}`, 'base:allocation'],
    ];
    return [
      ...['disk', 'depth'].flatMap((exportName) =>
        queries.map((list) =>
          structuredOption(
            `${label}_META_CONTEXT ${exportName} ${JSON.stringify(list.map((query) => (query.length > 100 ? `${query.slice(0, 10)}… ${query.length}` : query)))}`,
            number,
            metaPayload(exportName, list),
          ),
        ),
      ),
      structuredOption(`${label}_META_CONTEXT unknown export`, number, metaPayload('nope', ALLOCATION)),
      structuredOption(
        `${label}_META_CONTEXT long export`,
        number,
        metaPayload('x'.repeat(4097), ALLOCATION),
      ),
      structuredOption(`${label}_META_CONTEXT empty`, number),
      structuredOption(`${label}_META_CONTEXT no count`, number, text('disk')),
      structuredOption(
        `${label}_META_CONTEXT count too large`,
        number,
        Buffer.concat([text('disk'), u32(5), text('base:allocation')]),
      ),
      structuredOption(
        `${label}_META_CONTEXT trailing bytes`,
        number,
        Buffer.concat([metaPayload('disk', ALLOCATION), Buffer.from('zz')]),
      ),
      structuredOption(
        `${label}_META_CONTEXT query beyond payload`,
        number,
        Buffer.concat([text('disk'), u32(1), u32(100), Buffer.from('base:')]),
      ),
      structuredOption(
        `${label}_META_CONTEXT no queries and trailing bytes`,
        number,
        Buffer.concat([metaPayload('disk', []), Buffer.from('zz')]),
      ),
    ];
  }),
  handshake('contexts of another export do not count', async (client) => [
    ...(await client.ask(Option.STRUCTURED_REPLY)),
    ...(await client.ask(Option.SET_META_CONTEXT, metaPayload('ro', ALLOCATION))),
    ...(await client.ask(Option.GO, infoPayload('disk'))),
    await client.transact({ type: Command.BLOCK_STATUS, length: 512n }),
  ]),
  handshake('a second SET replaces the first', async (client) => [
    ...(await client.ask(Option.STRUCTURED_REPLY)),
    ...(await client.ask(Option.SET_META_CONTEXT, metaPayload('depth', ALLOCATION))),
    ...(await client.ask(Option.SET_META_CONTEXT, metaPayload('depth', DEPTH))),
    ...(await client.ask(Option.GO, infoPayload('depth'))),
    await client.transact({ type: Command.BLOCK_STATUS, length: 512n }),
  ]),
  handshake('a failed SET forgets the first', async (client) => [
    ...(await client.ask(Option.STRUCTURED_REPLY)),
    ...(await client.ask(Option.SET_META_CONTEXT, metaPayload('disk', ALLOCATION))),
    ...(await client.ask(Option.SET_META_CONTEXT, metaPayload('nope', ALLOCATION))),
    ...(await client.ask(Option.GO, infoPayload('disk'))),
    await client.transact({ type: Command.BLOCK_STATUS, length: 512n }),
  ]),
];

const WRITE_4K = Buffer.alloc(4096, 0x22);

const TRANSMISSION: WireScenario[] = [
  ...both('READ', 'disk', ask(Command.READ, 0n, 512n), ask(Command.READ, MIB - 512n, 512n)),
  ...both('READ unaligned', 'disk', ask(Command.READ, 1n, 3n), ask(Command.READ, MIB - 1n, 1n)),
  ...both(
    'READ nothing',
    'disk',
    ask(Command.READ, 0n, 0n),
    ask(Command.READ, MIB, 0n),
    ask(Command.READ, MIB + 1n, 0n),
  ),
  ...both('READ beyond the end', 'disk', ask(Command.READ, MIB, 1n), ask(Command.READ, MIB - 1n, 2n)),
  ...both(
    'READ offset overflow',
    'disk',
    ask(Command.READ, 0xffffffffffffffffn, 1n),
    ask(Command.READ, 1n << 63n, 1n),
  ),
  ...both('READ data and hole', 'disk', ask(Command.READ, 60n * KIB, 8n * KIB)),
  ...both('READ hole', 'disk', ask(Command.READ, 128n * KIB, 4n * KIB)),
  ...both('READ with DF', 'disk', ask(Command.READ, 60n * KIB, 8n * KIB, CommandFlag.df)),
  ...both('READ with FUA', 'disk', ask(Command.READ, 0n, 512n, CommandFlag.fua)),
  ...both('READ with NO_HOLE', 'disk', ask(Command.READ, 0n, 512n, CommandFlag.noHole)),
  ...both('READ with REQ_ONE', 'disk', ask(Command.READ, 0n, 512n, CommandFlag.reqOne)),
  ...both('READ with FAST_ZERO', 'disk', ask(Command.READ, 0n, 512n, CommandFlag.fastZero)),
  ...both('READ with PAYLOAD_LEN', 'disk', ask(Command.READ, 0n, 512n, CommandFlag.payloadLength)),
  ...both('READ with unknown flag', 'disk', ask(Command.READ, 0n, 512n, 0x8000)),
  ...both('READ 32 MiB of blk', 'blk', async (client) => {
    const line = await client.transact({ type: Command.READ, length: 32n * MIB });
    return line.length > 200 ? line.slice(0, 200) : line;
  }),
  ...both('READ 32 MiB + 1 of blk', 'blk', ask(Command.READ, 0n, 32n * MIB + 1n)),
  ...both('READ 4 GiB - 1 of blk', 'blk', ask(Command.READ, 0n, 0xffffffffn)),
  ...both('WRITE', 'disk', ask(Command.WRITE, 0n, 4096n, 0, WRITE_4K), ask(Command.READ, 0n, 8192n)),
  ...both('WRITE with FUA', 'disk', ask(Command.WRITE, 0n, 4096n, CommandFlag.fua, WRITE_4K)),
  ...both('WRITE unaligned', 'nul', ask(Command.WRITE, 5n, 3n, 0, Buffer.from('abc'))),
  ...both('WRITE nothing', 'disk', ask(Command.WRITE, 0n, 0n), ask(Command.WRITE, MIB + 1n, 0n)),
  ...both('WRITE beyond the end', 'disk', ask(Command.WRITE, MIB - 1n, 4096n, 0, WRITE_4K)),
  ...both('WRITE far beyond the end', 'disk', ask(Command.WRITE, 0xfffffffffffff000n, 4096n, 0, WRITE_4K)),
  ...both('WRITE read-only', 'ro', ask(Command.WRITE, 0n, 4096n, 0, WRITE_4K)),
  ...both(
    'WRITE read-only with FUA and beyond the end',
    'ro',
    ask(Command.WRITE, MIB, 4096n, CommandFlag.fua, WRITE_4K),
  ),
  ...both('WRITE with DF', 'disk', ask(Command.WRITE, 0n, 4096n, CommandFlag.df, WRITE_4K)),
  ...both('WRITE with NO_HOLE', 'disk', ask(Command.WRITE, 0n, 4096n, CommandFlag.noHole, WRITE_4K)),
  ...both('WRITE with unknown flag', 'disk', ask(Command.WRITE, 0n, 4096n, 0x4000, WRITE_4K)),
  ...both('WRITE 32 MiB + 1', 'blk', ask(Command.WRITE, 0n, 32n * MIB + 1n, 0, WRITE_4K)),
  ...both('WRITE 4 GiB - 1', 'blk', ask(Command.WRITE, 0n, 0xffffffffn, 0, WRITE_4K)),
  ...both('WRITE 32 MiB', 'blk', ask(Command.WRITE, 0n, 32n * MIB, 0, Buffer.alloc(33554432))),
  ...both('FLUSH', 'disk', ask(Command.FLUSH, 0n, 0n)),
  ...both(
    'FLUSH with offset and length',
    'disk',
    ask(Command.FLUSH, 4096n, 0n),
    ask(Command.FLUSH, 0n, 4096n),
  ),
  ...both('FLUSH out of range', 'disk', ask(Command.FLUSH, MIB * 2n, 4096n)),
  ...both('FLUSH with FUA', 'disk', ask(Command.FLUSH, 0n, 0n, CommandFlag.fua)),
  ...both('FLUSH with DF', 'disk', ask(Command.FLUSH, 0n, 0n, CommandFlag.df)),
  ...both('FLUSH read-only', 'ro', ask(Command.FLUSH, 0n, 0n)),
  ...both('TRIM', 'disk', ask(Command.TRIM, 0n, 64n * KIB), ask(Command.TRIM, 1n, 5n)),
  ...both('TRIM with FUA', 'disk', ask(Command.TRIM, 0n, 64n * KIB, CommandFlag.fua)),
  ...both('TRIM with NO_HOLE', 'disk', ask(Command.TRIM, 0n, 64n * KIB, CommandFlag.noHole)),
  ...both('TRIM nothing', 'disk', ask(Command.TRIM, 0n, 0n)),
  ...both('TRIM beyond the end', 'disk', ask(Command.TRIM, MIB - 1n, 4096n), ask(Command.TRIM, MIB, 1n)),
  ...both('TRIM read-only', 'ro', ask(Command.TRIM, 0n, 4096n)),
  ...both('CACHE', 'disk', ask(Command.CACHE, 0n, 64n * KIB), ask(Command.CACHE, 1n, 5n)),
  ...both('CACHE nothing', 'disk', ask(Command.CACHE, 0n, 0n)),
  ...both('CACHE beyond the end', 'disk', ask(Command.CACHE, MIB - 1n, 4096n)),
  ...both('CACHE with FUA', 'disk', ask(Command.CACHE, 0n, 4096n, CommandFlag.fua)),
  ...both('CACHE read-only', 'ro', ask(Command.CACHE, 0n, 4096n)),
  ...both('CACHE 32 MiB + 1', 'blk', ask(Command.CACHE, 0n, 32n * MIB + 1n)),
  ...both('CACHE 4 GiB - 1', 'blk', ask(Command.CACHE, 0n, 0xffffffffn)),
  ...both('WRITE_ZEROES', 'disk', ask(Command.WRITE_ZEROES, 0n, 8192n), ask(Command.READ, 0n, 16384n)),
  ...both(
    'WRITE_ZEROES unaligned',
    'disk',
    ask(Command.WRITE_ZEROES, 1n, 8193n),
    ask(Command.READ, 0n, 16384n),
  ),
  ...both(
    'WRITE_ZEROES with flags',
    'nul',
    ask(Command.WRITE_ZEROES, 0n, 8192n, CommandFlag.noHole),
    ask(Command.WRITE_ZEROES, 0n, 8192n, CommandFlag.fua),
    ask(Command.WRITE_ZEROES, 0n, 8192n, CommandFlag.fua | CommandFlag.noHole),
    ask(Command.WRITE_ZEROES, 0n, 8192n, CommandFlag.fastZero),
    ask(Command.WRITE_ZEROES, 0n, 8192n, CommandFlag.df),
    ask(Command.WRITE_ZEROES, 0n, 8192n, CommandFlag.reqOne),
  ),
  ...both('WRITE_ZEROES nothing', 'disk', ask(Command.WRITE_ZEROES, 0n, 0n)),
  ...both('WRITE_ZEROES beyond the end', 'disk', ask(Command.WRITE_ZEROES, MIB - 1n, 4096n)),
  ...both('WRITE_ZEROES read-only', 'ro', ask(Command.WRITE_ZEROES, 0n, 4096n)),
  ...both('BLOCK_STATUS without contexts', 'disk', ask(Command.BLOCK_STATUS, 0n, 4096n)),
  ...both('unknown command 42', 'disk', ask(42, 0n, 4096n), ask(42, 0n, 0n), ask(42, MIB * 2n, 4096n)),
  ...both('unknown command 8 (RESIZE)', 'disk', ask(8, 0n, 4096n)),
  ...both('unknown command with flags', 'disk', ask(42, 0n, 4096n, 0xffff)),
  ...both('DISC', 'disk', async (client) => {
    client.request({ type: Command.DISC });
    return client.end();
  }),
  ...both('DISC with flags and length', 'disk', async (client) => {
    client.request({ type: Command.DISC, flags: 0xffff, offset: 77n, length: 5000n });
    return client.end();
  }),
  ...both('bad request magic', 'disk', async (client) => {
    client.request({ type: Command.READ, length: 512n, magic: 0x12345678, cookie: 5n });
    return `${await client.reply()}, then ${await client.end()}`;
  }),
  ...both('extended request magic without negotiation', 'disk', async (client) => {
    client.extendedRequest({ type: Command.READ, length: 512n, cookie: 5n });
    return `${await client.reply()}, then ${await client.end()}`;
  }),
  ...both('garbage', 'disk', async (client) => {
    client.send(Buffer.alloc(100, 0x5a));
    return `${await client.reply()}, then ${await client.end()}`;
  }),
  ...both('half a request', 'disk', async (client) => {
    client.send(Buffer.from('25609513', 'hex'));
    return client.end(300);
  }),
  transmission('a request with half its payload, then hang up', 'disk', {}, async (client) => {
    client.request({ type: Command.WRITE, length: 4096n }, Buffer.alloc(100));
    client.socket.end();
    return client.end();
  }),
];

const status = (offset: bigint, length: bigint, flags = 0): Step =>
  ask(Command.BLOCK_STATUS, offset, length, flags);

const BLOCK_STATUS: WireScenario[] = (
  [
    ['allocation', 'disk', ALLOCATION],
    ['depth', 'depth', DEPTH],
    ['both', 'depth', ['base:allocation', 'qemu:allocation-depth']],
    ['both reversed', 'depth', ['qemu:allocation-depth', 'base:allocation']],
    ['none selected', 'disk', []],
  ] as const
).map(([name, exportName, contexts]) =>
  transmission(
    `BLOCK_STATUS ${name}`,
    exportName,
    { structured: true, contexts: [...contexts] },
    status(0n, MIB),
    status(0n, 4096n),
    status(60n * KIB, 8n * KIB),
    status(60n * KIB, 8n * KIB, CommandFlag.reqOne),
    status(0n, MIB, CommandFlag.reqOne),
    status(1n, 1n),
    status(0n, 0n),
    status(MIB, 1n),
    status(MIB - 1n, 2n),
    status(0n, 2n * MIB),
    status(0n, 4096n, CommandFlag.fua),
    status(0n, 4096n, CommandFlag.df),
    status(0n, 4096n, CommandFlag.payloadLength),
  ),
);

export const SCENARIOS: readonly WireScenario[] = [
  ...HANDSHAKE,
  ...TRANSMISSION,
  ...BLOCK_STATUS,
  transmission(
    'BLOCK_STATUS large',
    'blk',
    { structured: true, contexts: ALLOCATION },
    status(0n, 0xffffffffn),
    status(0n, 0xfffff000n),
    status(MIB * MIB, 0xffffffffn, CommandFlag.reqOne),
  ),
];
