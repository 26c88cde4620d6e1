/**
 * Carries out a document of docs/ in a scratch folder: its sh blocks in a shell, in order, with our programs in PATH;
 * its qmp blocks on the socket qmp.sock of the folder. An output block says what the sh block before it prints.
 *
 * Blocks with the word "shown" are not run: the document says what they need.
 */

import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type Block, blocksOf, difference, type Step, stepsOf } from '../../docs/site/document.ts';
import { waitUntil } from '../patience.ts';
import { repositoryRoot } from '../peers/daemons.ts';
import { QmpClient, type QmpMessage } from '../peers/qmp-client.ts';

/** What the shell of a document has printed to standard output. */
async function runShell(code: string, dir: string): Promise<string> {
  const env = {
    ...process.env,
    PATH: `${path.join(repositoryRoot, 'daemon/bin')}:${process.env.PATH}:/usr/sbin:/sbin`,
    HOME: dir,
  };
  // Into files: programs that are left running keep their output, and who waits for its end would wait for theirs.
  const output = path.join(dir, '.output');
  const errors = path.join(dir, '.errors');
  const [stdout, stderr] = [openSync(output, 'w'), openSync(errors, 'w')];
  const child = spawn('bash', ['-euo', 'pipefail', '-c', `${code}\nexit 0`], {
    cwd: dir,
    env,
    detached: true,
    stdio: ['ignore', stdout, stderr],
  });
  closeSync(stdout);
  closeSync(stderr);
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', resolve);
  });
  const printed = readFileSync(output, 'utf8');
  if (status !== 0) throw new Error(`status ${status}: ${code}\n${printed}${readFileSync(errors, 'utf8')}`);
  // Programs that were left running say in their pid files that they are there.
  for (const [, name = ''] of code.matchAll(/--pid-?file[ =](\S+)/g))
    await waitUntil(`${name}`, () => existsSync(path.join(dir, name)));
  return printed;
}

/** Connections to the daemon of a document, which may be another one later. */
class Monitor {
  readonly #socket: string;
  #client: QmpClient | null = null;
  /** Events that no step has asked for yet. */
  #events: QmpMessage[] = [];

  constructor(dir: string) {
    this.#socket = path.join(dir, 'qmp.sock');
  }

  async connect(): Promise<QmpClient> {
    if (this.#client === null || this.#client.closed) {
      this.#client = await QmpClient.connect(this.#socket);
      await this.#client.negotiate();
      this.#events = [];
    }
    return this.#client;
  }

  async #next(client: QmpClient): Promise<QmpMessage> {
    const message = await client.next();
    if (message === null) throw new Error('the daemon has closed the connection');
    return message;
  }

  async #reply(client: QmpClient): Promise<QmpMessage> {
    for (;;) {
      const message = await this.#next(client);
      if (!('event' in message)) return message;
      this.#events.push(message);
    }
  }

  /** The first event that fits; all before it are gone. */
  async #event(client: QmpClient, expected: unknown): Promise<void> {
    const seen: QmpMessage[] = [];
    for (;;) {
      const event = this.#events.shift() ?? (await this.#next(client));
      if (difference(expected, event) === null) return;
      seen.push(event);
      if (seen.length > 1000) throw new Error(`no such event: ${JSON.stringify(expected)}`);
    }
  }

  async run(steps: readonly Step[]): Promise<void> {
    const client = await this.connect();
    for (const { from, text, message } of steps) {
      if (from === 'client') client.send(text);
      else if ('event' in message) await this.#event(client, message);
      else {
        const reply = await this.#reply(client);
        const found = difference(message, reply);
        if (found !== null) throw new Error(`${found}\nsaid: ${text}\nanswered: ${JSON.stringify(reply)}`);
      }
    }
  }

  close(): void {
    this.#client?.close();
  }
}

/** Lines that are as the document says; "..." stands for any text. */
function checkOutput(expected: string, actual: string): void {
  const pattern = expected
    .trim()
    .split('...')
    .map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
    .join('[\\s\\S]*?');
  if (!new RegExp(`^${pattern}$`).test(actual.trim()))
    throw new Error(`printed: ${actual}\nthe document says: ${expected}`);
}

/** Ends what a document has left running: daemons whose pid files are in its folder. */
function endDaemons(dir: string): void {
  for (const name of ['qblockd.pid', 'other.pid', 'nbd.pid']) {
    const file = path.join(dir, name);
    if (!existsSync(file)) continue;
    try {
      process.kill(Number(readFileSync(file, 'utf8')), 'SIGKILL');
    } catch {
      // Gone already.
    }
  }
}

/** Runs a document; throws with the line of the block that does not do what it says. */
export async function runDocument(file: string): Promise<void> {
  const dir = mkdtempSync(path.join(tmpdir(), 'qb-doc-'));
  const monitor = new Monitor(dir);
  let printed = '';
  const runBlock = async ({ language, code }: Block): Promise<void> => {
    if (language === 'sh') printed = await runShell(code, dir);
    else if (language === 'output') checkOutput(code, printed);
    else if (language === 'qmp') await monitor.run(stepsOf(code));
  };
  try {
    for (const block of blocksOf(readFileSync(file, 'utf8'))) {
      if (block.words.includes('shown')) continue;
      await runBlock(block).catch((error: Error) => {
        throw new Error(`${path.basename(file)}, line ${block.line}: ${error.message}`);
      });
    }
  } finally {
    monitor.close();
    endDaemons(dir);
    rmSync(dir, { recursive: true, force: true });
  }
}
