/**
 * Image locks: permissions as open-file-description locks, in the byte layout that QEMU's tools use, so that both
 * keep each other out.
 *
 * | byte    | shared lock held means                         |
 * |---------|------------------------------------------------|
 * | 100 + i | the holder uses permission i                   |
 * | 200 + i | the holder does not let others use permission i|
 *
 * with i = 0 consistent read, 1 write, 2 write unchanged, 3 resize. To use a permission, nobody else may hold
 * 200 + i; to refuse one, nobody may hold 100 + i: tested after our own locks are in place, so that of two
 * processes that come at once at least one sees the other.
 * Source of the facts: QEMU documentation, "image locking"; bytes seen with strace.
 */

import { F_RDLCK, F_UNLCK, F_WRLCK, setOfdLock, testOfdLock } from '../../../aio/ffi.ts';
import { type LockedFile, type LockHolder, lockedFile, lockHolders } from '../../../aio/host/lock-holders.ts';
import { nextTurn } from '../../../aio/host/turns.ts';
import { Perm, type PermissionPair } from '../../../block/contract/request.ts';
import { permissionNames } from '../../../block/graph/permissions.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';

const USE_BASE = 100;
const UNSHARE_BASE = 200;
const BITS: readonly number[] = [Perm.consistentRead, Perm.write, Perm.writeUnchanged, Perm.resize];

/** Locks held through one file descriptor, as permission bits. */
export class FileLocks {
  readonly #fd: number;
  readonly #filename: string;
  readonly #maySearch: boolean;
  #used = 0;
  #unshared = 0;

  /** `maySearch`: an error may take the time to find out who holds a lock; otherwise it is found when asked for. */
  constructor(fd: number, filename: string, maySearch: boolean) {
    this.#fd = fd;
    this.#filename = filename;
    this.#maySearch = maySearch;
  }

  /**
   * Takes the locks `wanted` adds and looks for conflicts; throws with the locks of before in place. What adds nothing asks
   * nothing: whoever came since has seen the locks of this one.
   */
  acquire({ perm, shared }: PermissionPair): void {
    const unshared = Perm.all & ~shared;
    if ((perm & ~this.#used) === 0 && (unshared & ~this.#unshared) === 0) return;
    try {
      this.#lock(USE_BASE, perm & ~this.#used, false);
      this.#lock(UNSHARE_BASE, unshared & ~this.#unshared, true);
      this.#test(UNSHARE_BASE, perm, false);
      this.#test(USE_BASE, unshared, true);
    } catch (error) {
      this.#unlock(USE_BASE, perm & ~this.#used);
      this.#unlock(UNSHARE_BASE, unshared & ~this.#unshared);
      throw error;
    }
  }

  /** Takes the locks of `wanted` through another description of the file too. Those of this one do not get in the way. */
  copyTo(fd: number, { perm, shared }: PermissionPair): void {
    for (const [base, bits] of [
      [USE_BASE, perm],
      [UNSHARE_BASE, Perm.all & ~shared],
    ] as const) {
      this.#each(bits, (index, bit) => {
        const result = setOfdLock(fd, F_RDLCK, base + index, 1);
        if (result < 0) throw this.#conflict(base + index, bit, base === UNSHARE_BASE, -result);
      });
    }
  }

  /** Gives up every lock that `wanted` does not need. */
  settle({ perm, shared }: PermissionPair): void {
    const unshared = Perm.all & ~shared;
    this.#unlock(USE_BASE, this.#used & ~perm);
    this.#unlock(UNSHARE_BASE, this.#unshared & ~unshared);
    this.#used = perm;
    this.#unshared = unshared;
  }

  /** Gives up what an acquire took that is not to be settled. */
  rollback(): void {
    this.#unlock(USE_BASE, Perm.all & ~this.#used);
    this.#unlock(UNSHARE_BASE, Perm.all & ~this.#unshared);
  }

  #lock(base: number, bits: number, sharing: boolean): void {
    this.#each(bits, (index, bit) => {
      const result = setOfdLock(this.#fd, F_RDLCK, base + index, 1);
      if (result < 0) throw this.#conflict(base + index, bit, sharing, -result);
    });
  }

  #test(base: number, bits: number, sharing: boolean): void {
    this.#each(bits, (index, bit) => {
      const result = testOfdLock(this.#fd, F_WRLCK, base + index, 1);
      if (result < 0) throw this.#conflict(base + index, bit, sharing, -result);
    });
  }

  #unlock(base: number, bits: number): void {
    this.#each(bits, (index) => setOfdLock(this.#fd, F_UNLCK, base + index, 1));
  }

  #each(bits: number, action: (index: number, bit: number) => void): void {
    BITS.forEach((bit, index) => {
      if ((bits & bit) !== 0) action(index, bit);
    });
  }

  #conflict(byte: number, bit: number, sharing: boolean, errno: number): BlockError {
    const text = `Failed to get ${sharing ? 'shared ' : ''}"${permissionNames(bit)}" lock`;
    const hint =
      `Is another process using the image [${this.#filename}]?\n` +
      'To read it all the same: -U (force-share=on), but what is read may change meanwhile.';
    const details = { errno: errno || E.EAGAIN, hint };
    const file = lockedFile(this.#fd);
    if (this.#maySearch) return new BlockError(text + heldBy([...lockHolders(file, byte)]), details);
    return new BlockError(text, { ...details, explain: () => searchInTurns(file, byte) });
  }
}

/** As a search at one go, with turns for everything else in between. */
async function searchInTurns(file: LockedFile, byte: number): Promise<string> {
  const found: (LockHolder | null)[] = [];
  for (const step of lockHolders(file, byte)) {
    found.push(step);
    await nextTurn();
  }
  return heldBy(found);
}

function heldBy(found: readonly (LockHolder | null)[]): string {
  const holders = found.filter((one) => one !== null);
  const names = holders.map(({ pid, name }) =>
    pid === process.pid ? 'this process' : `process ${pid}${name === '' ? '' : ` (${name})`}`,
  );
  return names.length === 0 ? '' : `, held by ${names.join(', ')}`;
}

/** Whether the file system can do open-file-description locks. 0, or -errno of the probe. */
export function probeOfdLocks(fd: number): number {
  const result = testOfdLock(fd, F_RDLCK, 0, 0);
  return result === -E.EAGAIN ? 0 : result;
}
