/** qblock-shell: how lines are read, and the shell itself against the daemon. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { connect } from '../../../client/node.ts';
import { createCompleter } from '../../../client/prompt/completion.ts';
import { parseLine } from '../../../client/prompt/words.ts';
import { type RunningDaemon, repositoryRoot, startDaemon } from '../../peers/daemons.ts';

describe('lines', () => {
  test.each([
    ['', null],
    ['  # nothing', null],
    ['query-jobs', { name: 'query-jobs', args: {} }],
    [
      'blockdev-add driver=qcow2 file.driver=file file.filename=/a/b read-only=true',
      {
        name: 'blockdev-add',
        args: { driver: 'qcow2', file: { driver: 'file', filename: '/a/b' }, 'read-only': true },
      },
    ],
    [
      'x a=1 b=-2 c=1.5 d=0x10 e=null f=',
      { name: 'x', args: { a: 1, b: -2, c: '1.5', d: '0x10', e: null, f: '' } },
    ],
    [`x a="b c" d='e "f"' g=h\\ i`, null],
    [`x a="b c" d='e "f"'`, { name: 'x', args: { a: 'b c', d: 'e "f"' } }],
    ['x a={"b": [1, 2]} c=[true]', { name: 'x', args: { a: { b: [1, 2] }, c: [true] } }],
    [`x a={'b': 'it\\'s "so"'}`, { name: 'x', args: { a: { b: `it's "so"` } } }],
    ['{"execute": "quit"}', { name: 'quit', args: {} }],
    [`{'execute': 'x', 'arguments': {'a': 1}}`, { name: 'x', args: { a: 1 } }],
  ])('%j', (line, expected) => {
    if (line.includes('\\ ')) expect(() => parseLine(line)).toThrow('Expected a key=value pair');
    else expect(parseLine(line)).toEqual(expected);
  });

  test.each([
    ['x a', "Expected a key=value pair, got 'a'"],
    ['x =1', "Expected a key=value pair, got '=1'"],
    ['x a=1 a=2', 'Cannot set "a" multiple times'],
    ['x a=1 a.b=2', 'Cannot use "a.b": "a" is a value already'],
    ['x a="b', 'No closing quotation: "'],
    ['x a={"b": 1', 'A bracket is not closed'],
    ['x a={b}', 'Not JSON: {b}'],
    ['{"run": 1}', "A JSON command has a member 'execute'"],
  ])('%j is refused', (line, message) => {
    expect(() => parseLine(line)).toThrow(message);
  });
});

describe('the shell', () => {
  let daemon: RunningDaemon | null = null;
  afterEach(async () => {
    await daemon?.stop();
    daemon = null;
  });
  const program = path.join(repositoryRoot, 'daemon/bin/qblock-shell');
  const start = async (): Promise<string> => {
    daemon = await startDaemon('qblockd', { args: ['--qmp', 'unix:$DIR/shell.sock'] });
    return path.join(daemon.dir, 'shell.sock');
  };
  const run = (
    words: readonly string[],
    input = '',
  ): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(program, words, { encoding: 'utf8', input });

  test('help tells commands and the arguments of one, without asking for anything to be done', async () => {
    const address = await start();
    const typed = (line: string): string =>
      spawnSync(program, ['-c', line, address], { encoding: 'utf8' }).stdout;
    expect(typed('help')).toMatch(/^ {2}blockdev-add\n {2}blockdev-backup\n/m);
    expect(typed('help blockdev-del')).toBe('blockdev-del\n  node-name=  string\n');
    expect(typed('help query-jobs')).toBe('query-jobs takes no arguments\n');
    expect(typed('? job-cancel')).toBe('job-cancel\n  id=  string\n');
    const members = typed('help blockdev-add driver=null-co');
    expect(members).toMatch(/^ {2}driver= .* null-co \| /m);
    expect(members).toMatch(/^ {2}\[latency-ns=\] +int$/m);
    const unknown = spawnSync(program, ['-c', 'help nothing', address], { encoding: 'utf8' });
    expect([unknown.status, unknown.stderr]).toEqual([1, "qblock-shell: There is no command 'nothing'\n"]);
  });

  test('lines from standard input, a transaction among them, and events', async () => {
    const socket = await start();
    const { stdout, status } = run(
      [socket],
      [
        'blockdev-add driver=null-co node-name=n size=1048576',
        'transaction(',
        'block-dirty-bitmap-add node=n name=a',
        'block-dirty-bitmap-add node=n name=b',
        ')',
        'query-named-block-nodes flat=true',
        'blockdev-create job-id=j options={"driver":"file","filename":"/nonexistent/x","size":512}',
        'job-dismiss id=none',
      ].join('\n'),
    );
    expect(status).toBe(1);
    const lines = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(lines.slice(0, 2)).toEqual([{ return: {} }, { return: {} }]);
    expect(stdout).toContain('"dirty-bitmaps"');
    expect(lines.at(-1)).toEqual({ error: { class: 'GenericError', desc: 'Job not found' } });
  });

  test('commands for scripts, and their exit status', async () => {
    const socket = await start();
    expect(run(['-c', 'query-jobs', '-c', 'query-version', socket])).toMatchObject({ status: 0 });
    const failed = run(['-v', '-c', 'blockdev-del node-name=none', '-c', 'quit', socket]);
    expect(failed.status).toBe(1);
    expect(failed.stdout).toBe(
      '{"execute":"blockdev-del","arguments":{"node-name":"none"}}\n' +
        `{"error":{"class":"GenericError","desc":"Failed to find node with node-name='none'"}}\n`,
    );
    expect(run(['-c', 'query-jobs x', socket])).toMatchObject({
      status: 1,
      stderr: "qblock-shell: Expected a key=value pair, got 'x'\n",
    });
    expect(run(['-p', '-c', 'query-jobs', socket]).stdout).toBe('{\n  "return": []\n}\n');
  });

  test('what cannot be meant', () => {
    expect(run(['/nonexistent/s'])).toMatchObject({ status: 1 });
    expect(run(['/nonexistent/s']).stderr).toContain('Cannot connect to /nonexistent/s');
    expect(run(['-H', 'x']).stderr).toContain('no human monitor');
    expect(run([]).stderr).toContain('Expecting one address');
  });

  test('it starts a daemon of its own, and ends it', () => {
    const words = ['-c', 'query-named-block-nodes', '-w', path.join(repositoryRoot, 'daemon/bin/qblockd')];
    const { stdout, status } = run([...words, '--blockdev', 'null-co,node-name=mine']);
    expect(status).toBe(0);
    expect(stdout).toContain('"node-name":"mine"');
  });

  test('completion knows commands, arguments, values and names', async () => {
    const client = await connect(await start());
    try {
      await client.blockdevAdd({ driver: 'null-co', 'node-name': 'disk0', size: 1048576 });
      const completer = createCompleter(client);
      const complete = async (line: string): Promise<readonly string[]> =>
        (await completer.complete(line))[0];
      expect(await complete('blockdev-re')).toEqual(['blockdev-reopen ']);
      expect(await complete('blockdev-add dri')).toEqual(['driver=']);
      expect(await complete('blockdev-add driver=qc')).toContain('qcow2 ');
      expect(await complete('blockdev-add driver=qcow2 lazy')).toEqual(['lazy-refcounts=']);
      expect(await complete('blockdev-add driver=qcow2 lazy-refcounts=')).toEqual(['true ', 'false ']);
      expect(await complete('blockdev-add driver=qcow2 file.driver=file file.file')).toEqual([
        'file.filename=',
      ]);
      expect(await complete('blockdev-del node-name=')).toEqual(['disk0 ']);
      expect(await complete('nonsense x')).toEqual([]);
    } finally {
      await client.close();
    }
  });
});
