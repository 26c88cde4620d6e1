/**
 * One io_uring, driven from libuv's loop on the main thread.
 *
 * Submissions are written to the shared ring and handed over in one io_uring_enter per batch: at the end of the
 * current run of microtasks (process.nextTick), or at the outermost unplug. Completions are taken in right after each
 * submission (page-cache reads finish inline), when libuv finds the ring's fd readable, and when a turn (turn.ts) looks
 * for them; who waits for one is called at once. libuv gets its turn at least every STEPS_PER_TURN batches, so that
 * timers, QMP and signals go on under full load.
 *
 * Rules that keep it alive: memory given to the kernel stays referenced in `keep[]` until its completion; every
 * path that queues an SQE schedules a flush.
 *
 * Sources: io_uring_setup(2), io_uring_enter(2), linux/io_uring.h.
 */

import { E } from '../errors/errno.ts';
import { assert } from '../errors/error.ts';
import { deferCall, isPlugged, plug, unplug } from './defer.ts';
import { closeFd, ioUringEnter, ioUringSetup, type MappedMemory, mapShared } from './ffi.ts';
import { forgetSource, runTurn, type Source } from './loop/turn.ts';
import { openPoll, type PollHandle, Readiness } from './loop/uv-poll.ts';

/** Opcodes (enum io_uring_op). */
export const Op = {
  readv: 1,
  writev: 2,
  fsync: 3,
  syncFileRange: 8,
  sendmsg: 9,
  fallocate: 17,
  read: 22,
  write: 23,
  send: 26,
  recv: 27,
} as const;

/** SQEs that fit one batch; a fuller batch is submitted early. */
const SQ_ENTRIES = 1024;
/** Operations in flight; further ones wait in `backlog`. The completion queue has as many entries, so it never overflows. */
const CQ_ENTRIES = 4096;
const STEPS_PER_TURN = 16;
const SETUP_CQSIZE = 1 << 3;
const SETUP_COOP_TASKRUN = 1 << 8;
const ENTER_GETEVENTS = 1;
const OFFSET_SQES = 0x10000000;
const SQE_WORDS = 16;
const CQE_WORDS = 4;
const TWO_32 = 4294967296;

type Done = (result: number) => void;

export class Ring implements Source {
  readonly #fd: number;
  readonly #ringMap: MappedMemory;
  readonly #sqeMap: MappedMemory;
  /** The rings as unsigned and signed words, the SQEs as words. */
  readonly #words: Uint32Array;
  readonly #signed: Int32Array;
  readonly #sqes: Uint32Array;
  readonly #sqTail: number;
  readonly #sqMask: number;
  readonly #cqHead: number;
  readonly #cqTail: number;
  readonly #cqMask: number;
  readonly #cqes: number;
  readonly #poll: PollHandle;

  /** Per operation id: who waits, and what the kernel may still touch. */
  readonly #done: (Done | undefined)[] = new Array(CQ_ENTRIES);
  readonly #keep: unknown[] = new Array(CQ_ENTRIES);
  readonly #freeIds: number[] = Array.from({ length: CQ_ENTRIES }, (_, i) => CQ_ENTRIES - 1 - i);
  readonly #backlog: (() => void)[] = [];

  #tail: number;
  /** SQEs written and not yet taken by the kernel. */
  #pending = 0;
  #inFlight = 0;
  #scheduled = false;
  #stepsThisTurn = 0;
  #closed = false;

  readonly #step = (): void => {
    this.#scheduled = false;
    if (this.#closed) return;
    this.#stepsThisTurn++;
    if (this.#pending > 0) this.#flush();
    // What is submitted and answered meanwhile goes out together.
    plug();
    try {
      this.#reap();
    } finally {
      unplug();
    }
  };
  readonly #turn = (): void => {
    this.#stepsThisTurn = 0;
    this.#step();
  };
  /** At the outermost unplug: submits. Completions are looked for later in this turn, by the step. */
  readonly #submit = (): void => {
    if (this.#pending > 0 && !this.#closed) this.#flush();
  };

  /** Throws the errno (positive number) of the failing call when the kernel refuses a ring. */
  constructor() {
    const params = Buffer.allocUnsafeSlow(120).fill(0);
    params.writeUInt32LE(CQ_ENTRIES, 4);
    params.writeUInt32LE(SETUP_CQSIZE | SETUP_COOP_TASKRUN, 8);
    let fd = ioUringSetup(SQ_ENTRIES, params);
    if (fd === -E.EINVAL) {
      params.fill(0);
      params.writeUInt32LE(CQ_ENTRIES, 4);
      params.writeUInt32LE(SETUP_CQSIZE, 8);
      fd = ioUringSetup(SQ_ENTRIES, params);
    }
    if (fd < 0) throw -fd;
    this.#fd = fd;
    // struct io_uring_params: sq_off at 40, cq_off at 80.
    const sqArray = params.readUInt32LE(64) >> 2;
    const cqesBytes = params.readUInt32LE(100);
    const ringBytes = Math.max((sqArray + SQ_ENTRIES) * 4, cqesBytes + CQ_ENTRIES * 16);
    const ringMap = mapShared(fd, ringBytes, 0);
    const sqeMap = mapShared(fd, SQ_ENTRIES * 64, OFFSET_SQES);
    if (ringMap === null || sqeMap === null) {
      closeFd(fd);
      throw E.ENOMEM;
    }
    this.#ringMap = ringMap;
    this.#sqeMap = sqeMap;
    this.#words = new Uint32Array(ringMap.memory, 0, ringBytes >> 2);
    this.#signed = new Int32Array(ringMap.memory, 0, ringBytes >> 2);
    this.#sqes = new Uint32Array(sqeMap.memory, 0, SQ_ENTRIES * SQE_WORDS);
    this.#sqTail = params.readUInt32LE(44) >> 2;
    this.#sqMask = this.#words[params.readUInt32LE(48) >> 2]!;
    this.#cqHead = params.readUInt32LE(80) >> 2;
    this.#cqTail = params.readUInt32LE(84) >> 2;
    this.#cqMask = this.#words[params.readUInt32LE(88) >> 2]!;
    this.#cqes = cqesBytes >> 2;
    for (let i = 0; i < SQ_ENTRIES; i++) this.#words[sqArray + i] = i;
    this.#tail = this.#words[this.#sqTail]!;
    this.#poll = openPoll(fd, () => runTurn(this));
    this.#poll.watch(Readiness.readable);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** start(), as a promise of the result. */
  submit(
    op: number,
    fd: number,
    addr: number,
    length: number,
    offset: number,
    opFlags: number,
    keep: unknown,
  ): Promise<number> {
    return new Promise((resolve) => this.start(op, fd, addr, length, offset, opFlags, keep, resolve));
  }

  /**
   * Queues one operation. `keep` is held until completion. `done` is called with the CQE's result, a count or -errno, in
   * the turn in which the loop learns of it, never within this call. `offset` and `addr` below 2^53.
   */
  start(
    op: number,
    fd: number,
    addr: number,
    length: number,
    offset: number,
    opFlags: number,
    keep: unknown,
    done: Done,
  ): void {
    const id = this.#freeIds.pop();
    if (id === undefined) {
      this.#backlog.push(() => this.start(op, fd, addr, length, offset, opFlags, keep, done));
      return;
    }
    this.#done[id] = done;
    this.#keep[id] = keep;
    this.#inFlight++;
    const s = this.#sqes;
    const i = (this.#tail & this.#sqMask) * SQE_WORDS;
    s[i] = op;
    s[i + 1] = fd;
    s[i + 2] = offset >>> 0;
    s[i + 3] = offset / TWO_32;
    s[i + 4] = addr >>> 0;
    s[i + 5] = addr / TWO_32;
    s[i + 6] = length;
    s[i + 7] = opFlags;
    s[i + 8] = id;
    s[i + 9] = 0;
    s[i + 10] = 0;
    s[i + 11] = 0;
    this.#tail = (this.#tail + 1) >>> 0;
    this.#pending++;
    if (this.#pending === SQ_ENTRIES) this.#flush();
    this.#scheduleStep();
  }

  #scheduleStep(): void {
    if (isPlugged()) deferCall(this.#submit, undefined);
    if (this.#scheduled) return;
    this.#scheduled = true;
    if (this.#stepsThisTurn < STEPS_PER_TURN) process.nextTick(this.#step);
    else setImmediate(this.#turn);
  }

  // ---- Source: within a turn ---------------------------------------------------------------------------------

  get isWaiting(): boolean {
    return this.#inFlight > 0;
  }

  readonly leadBytes = 0;
  readonly due = 0;
  readonly owed = null;

  /** Takes in what has completed: whoever waits by a plain call is called now. */
  look(): number {
    if (this.#closed) return 0;
    this.#stepsThisTurn = 0;
    // The kernel posts completions only when it is entered (cooperative task running).
    if (this.#words[this.#cqHead] === Atomics.load(this.#words, this.#cqTail))
      ioUringEnter(this.#fd, 0, 0, ENTER_GETEVENTS);
    return this.#reap();
  }

  #flush(): void {
    // A release store: the kernel must see the SQEs' contents before the new tail.
    Atomics.store(this.#words, this.#sqTail, this.#tail);
    for (;;) {
      const taken = ioUringEnter(this.#fd, this.#pending, 0, ENTER_GETEVENTS);
      if (taken >= 0) {
        this.#pending -= taken;
        break;
      }
      if (taken === -E.EINTR) continue;
      // EAGAIN, EBUSY: the kernel is short of memory or completion space. Reap and come back next turn.
      assert(taken === -E.EAGAIN || taken === -E.EBUSY, `io_uring_enter failed with errno ${-taken}`);
      break;
    }
    if (this.#pending > 0 && !this.#scheduled) {
      this.#scheduled = true;
      setImmediate(this.#turn);
    }
  }

  /** How much there was. */
  #reap(): number {
    const words = this.#words;
    let found = 0;
    for (;;) {
      const head = words[this.#cqHead]!;
      if (head === Atomics.load(words, this.#cqTail)) break;
      const i = this.#cqes + (head & this.#cqMask) * CQE_WORDS;
      const id = words[i]!;
      const result = this.#signed[i + 2]!;
      // Before the call, which may submit more and need the place.
      Atomics.store(words, this.#cqHead, (head + 1) >>> 0);
      const done = this.#done[id];
      assert(done !== undefined, 'completion for an unknown operation');
      this.#done[id] = undefined;
      this.#keep[id] = undefined;
      this.#freeIds.push(id);
      this.#inFlight--;
      found++;
      done(result);
    }
    while (this.#backlog.length > 0 && this.#freeIds.length > 0) this.#backlog.shift()!();
    return found;
  }

  close(): void {
    assert(this.#inFlight === 0, 'ring closed with operations in flight');
    if (this.#closed) return;
    this.#closed = true;
    forgetSource(this);
    this.#poll.close();
    // The poll handle leaves epoll in this loop turn; only then may the fd go.
    setImmediate(() => {
      this.#ringMap.unmap();
      this.#sqeMap.unmap();
      closeFd(this.#fd);
    });
  }
}
