/**
 * A session with an iSCSI target, driven by its descriptor: commands, their results, and the end. libiscsi logs in anew
 * by itself when the connection breaks, and repeats what was under way.
 */

import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import { type ForeignDescriptor, watchForeign } from '../../../aio/libraries/foreign-descriptor.ts';
import {
  dataOf,
  forgetIscsiCommand,
  iscsiCommandId,
  type Libiscsi,
  libiscsi,
  type Sense,
  senseOf,
} from '../../../aio/libraries/libiscsi.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';

export interface SessionSettings {
  readonly initiator: string;
  readonly portal: string;
  readonly target: string;
  readonly lun: number;
  readonly user: string | undefined;
  readonly password: string | undefined;
  readonly headerDigest: number;
  /** Seconds a command may take; 0: as long as it likes. */
  readonly timeoutS: number;
  readonly signal: AbortSignal;
}

export interface IscsiSession {
  readonly library: Libiscsi;
  readonly context: number;
  readonly lun: number;
  /** Runs a command that `begin` hands to the library; the data that came in. `kept` lives for as long. */
  command(begin: (id: number) => number, kept: unknown): Promise<Buffer>;
  /** The same for a command whose data go from and to the request's own memory. */
  transfer(begin: (id: number) => number, kept: unknown): Promise<void>;
  cancel(): void;
  close(): void;
}

const DEFAULT_PORT = 3260;
const SESSION_NORMAL = 2;
const STATUS_GOOD = 0;
const STATUS_CHECK_CONDITION = 2;
const STATUS_BUSY = 8;
const STATUS_TASK_SET_FULL = 0x28;
const STATUS_CANCELLED = 0x0f000000;
const STATUS_TIMEOUT = 0x0f000002;
const MAX_TRIES = 8;
const FIRST_PAUSE_MS = 20;
/** Before a target that does not answer is given up. */
const CONNECT_TIMEOUT_MS = 10_000;

const SENSE_UNIT_ATTENTION = 6;
const SENSE_DATA_PROTECTION = 7;
const SENSE_ILLEGAL_REQUEST = 5;

const NOTHING = Buffer.alloc(0);
const noData = (): Buffer => NOTHING;

/** The errno for a check condition; 0: the command is worth another try. */
function errnoOfSense({ key, code }: Sense): number {
  if (key === SENSE_UNIT_ATTENTION) return 0;
  if (key === SENSE_DATA_PROTECTION) return code === 0x2707 ? E.ENOSPC : E.EACCES;
  if (key !== SENSE_ILLEGAL_REQUEST) return E.EIO;
  return code === 0x2000 ? E.ENOTSUP : E.EINVAL;
}

/** "ADDRESS:PORT": the library would look names up within its call, and everything would wait. */
async function resolved(portal: string): Promise<string> {
  const match = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?(?:,\d+)?$/.exec(portal);
  const host = match?.[1] ?? match?.[2];
  if (host === undefined) throw new BlockError(`Invalid portal '${portal}'`, { errno: E.EINVAL });
  const address = isIP(host) !== 0 ? host : (await lookup(host)).address;
  return `${address.includes(':') ? `[${address}]` : address}:${match?.[3] ?? DEFAULT_PORT}`;
}

/** Logs in and finds the unit; throws what the library says of a failure. */
export async function openSession(settings: SessionSettings): Promise<IscsiSession> {
  const library = libiscsi();
  const portal = await resolved(settings.portal);
  const context = Number(library.createContext(settings.initiator));
  if (context === 0) throw new BlockError('iSCSI: Failed to create iSCSI context.', { errno: E.ENOMEM });
  let watch: ForeignDescriptor | null = null;
  let isOpen = true;
  const close = (): void => {
    if (!isOpen) return;
    isOpen = false;
    watch?.close();
    library.destroyContext(context);
  };
  const failure = (doing: string): BlockError =>
    new BlockError(`iSCSI: ${doing} : ${(library.error(context) ?? '').trim()}`, { errno: E.EINVAL });
  try {
    if (library.setTargetName(context, settings.target) !== 0) throw failure('Failed to set target name.');
    if (
      settings.user !== undefined &&
      library.setCredentials(context, settings.user, settings.password ?? '') !== 0
    )
      throw failure('Failed to set initiator username and password');
    if (library.setSessionType(context, SESSION_NORMAL) !== 0)
      throw failure('Failed to set session type to normal.');
    library.setHeaderDigest(context, settings.headerDigest);
    library.setTimeout(context, settings.timeoutS);
    await new Promise<void>((resolve, reject) => {
      const giveUp = (): void =>
        reject(new BlockError('iSCSI: Failed to connect to LUN : timed out', { errno: E.ETIMEDOUT }));
      const timer = setTimeout(giveUp, CONNECT_TIMEOUT_MS);
      settings.signal.addEventListener('abort', giveUp, { once: true });
      const settle = (error: BlockError | null): void => {
        clearTimeout(timer);
        settings.signal.removeEventListener('abort', giveUp);
        if (error === null) resolve();
        else reject(error);
      };
      const id = iscsiCommandId((status) =>
        settle(status === STATUS_GOOD ? null : failure('Failed to connect to LUN')),
      );
      if (library.connect(context, portal, settings.lun, library.done, id) !== 0) {
        forgetIscsiCommand(id);
        settle(failure('Failed to connect to LUN'));
        return;
      }
      watch = watchForeign({
        descriptor: () => (isOpen ? library.fd(context) : -1),
        wanted: () => library.events(context),
        service(events) {
          if (library.service(context, events) < 0) settle(failure('Failed to connect to LUN'));
        },
      });
    });
  } catch (error) {
    close();
    throw error;
  }

  /** One try: the data, or null when it is worth another. */
  function once(
    begin: (id: number) => number,
    kept: unknown,
    take: (task: number) => Buffer,
  ): Promise<Buffer | null> {
    return new Promise((resolve, reject) => {
      if (!isOpen) {
        reject(ioError(E.ENOTCONN));
        return;
      }
      const id = iscsiCommandId((status, task) => {
        // `kept` is what the command knows by address: it lives until here.
        void kept;
        if (task === 0) reject(ioError(status === STATUS_CANCELLED ? E.ECANCELED : E.EIO));
        else if (status === STATUS_GOOD) resolve(take(task));
        else if (status === STATUS_BUSY || status === STATUS_TASK_SET_FULL) resolve(null);
        else if (status === STATUS_CHECK_CONDITION) {
          const errno = errnoOfSense(senseOf(task));
          if (errno === 0) resolve(null);
          else reject(ioError(errno));
        } else if (status === STATUS_CANCELLED) reject(ioError(E.ECANCELED));
        else reject(ioError(status === STATUS_TIMEOUT ? E.ETIMEDOUT : E.EIO));
        // Cancelled ones belong to the library, which takes them away by itself.
        if (status !== STATUS_CANCELLED && task !== 0) library.freeTask(task);
      });
      if (Number(begin(id)) === 0) {
        forgetIscsiCommand(id);
        reject(ioError(E.ENOMEM));
        return;
      }
      watch?.renew();
    });
  }

  async function run(
    begin: (id: number) => number,
    kept: unknown,
    take: (task: number) => Buffer,
  ): Promise<Buffer> {
    for (let tries = 1; ; tries++) {
      const data = await once(begin, kept, take);
      if (data !== null) return data;
      if (tries === MAX_TRIES) throw ioError(E.EBUSY);
      await new Promise((resolve) => setTimeout(resolve, FIRST_PAUSE_MS * 2 ** tries));
    }
  }

  return {
    library,
    context,
    lun: settings.lun,
    command: (begin, kept) => run(begin, kept, dataOf),
    transfer: async (begin, kept) => void (await run(begin, kept, noData)),
    cancel() {
      if (isOpen) library.cancelAll(context);
    },
    close,
  };
}
