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
  /** The same for a command whose data go from and to the request's own memory; `release` is called when it has gone well. */
  transfer(begin: (id: number) => number, kept: unknown, release: () => void): Promise<void>;
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

/** In place of an errno: the command is worth another try. */
const AGAIN = -1;

interface Request {
  readonly begin: (id: number) => number;
  readonly kept: unknown;
  readonly done: (task: number) => void;
  readonly reject: (error: Error) => void;
}

/** The errno for how a command ended; 0: well. */
function errnoOfStatus(status: number, task: number): number {
  switch (status) {
    case STATUS_GOOD:
      return 0;
    case STATUS_BUSY:
    case STATUS_TASK_SET_FULL:
      return AGAIN;
    case STATUS_CHECK_CONDITION:
      return errnoOfSense(senseOf(task));
    case STATUS_CANCELLED:
      return E.ECANCELED;
    case STATUS_TIMEOUT:
      return E.ETIMEDOUT;
    default:
      return E.EIO;
  }
}

/** The errno for a check condition. */
function errnoOfSense({ key, code }: Sense): number {
  if (key === SENSE_UNIT_ATTENTION) return AGAIN;
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
  /** Commands that are over by the service of the moment. */
  let ended = 0;
  let underWay = 0;
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
          ended = 0;
          if (library.service(context, events) < 0) settle(failure('Failed to connect to LUN'));
          return ended;
        },
        underWay: () => underWay,
      });
    });
  } catch (error) {
    close();
    throw error;
  }

  /** One try; what is worth another is tried again after a while. `kept` is what the command knows by address. */
  function attempt(tries: number, request: Request): void {
    const { begin, kept, done, reject } = request;
    if (!isOpen) {
      reject(ioError(E.ENOTCONN));
      return;
    }
    const id = iscsiCommandId((status, task) => {
      ended++;
      underWay--;
      // It lives until here.
      void kept;
      const errno = task === 0 && status !== STATUS_CANCELLED ? E.EIO : errnoOfStatus(status, task);
      if (errno === 0) done(task);
      else if (errno !== AGAIN) reject(ioError(errno));
      else if (tries === MAX_TRIES) reject(ioError(E.EBUSY));
      else setTimeout(() => attempt(tries + 1, request), FIRST_PAUSE_MS * 2 ** tries);
      // Cancelled ones belong to the library, which takes them away by itself.
      if (status !== STATUS_CANCELLED && task !== 0) library.freeTask(task);
    });
    if (Number(begin(id)) === 0) {
      forgetIscsiCommand(id);
      reject(ioError(E.ENOMEM));
      return;
    }
    underWay++;
    watch?.renew();
  }

  return {
    library,
    context,
    lun: settings.lun,
    command: (begin, kept) =>
      new Promise((resolve, reject) =>
        attempt(1, { begin, kept, done: (task) => resolve(dataOf(task)), reject }),
      ),
    transfer: (begin, kept, release) =>
      new Promise((resolve, reject) =>
        attempt(1, {
          ...{ begin, kept, reject },
          done() {
            release();
            resolve();
          },
        }),
      ),
    cancel() {
      if (isOpen) library.cancelAll(context);
    },
    close,
  };
}
