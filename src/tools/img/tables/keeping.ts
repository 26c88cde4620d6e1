/** The tables of the sub-commands that look at an image or change it: all that are not in making.ts. */

import type { CommandTable } from '../../common/command-table.ts';
import * as shared from './shared.ts';

export const AMEND = {
  name: 'amend',
  summary: 'Changes options of the format of an image',
  operands: 'FILE',
  options: {
    ...shared.COMMON,
    imageOpts: shared.IMAGE_OPTS,
    force: {
      long: 'force',
      argument: false,
      help: 'do what the format calls unsafe, such as erasing all keys',
    },
    options: shared.FORMAT_OPTIONS,
    format: shared.FORMAT,
    cache: shared.CACHE,
    progress: shared.PROGRESS,
    quiet: shared.QUIET,
  },
} as const satisfies CommandTable;

export const BITMAP = {
  name: 'bitmap',
  summary: 'Changes the persistent bitmap of that name; several actions are carried out in order',
  operands: 'FILE BITMAP',
  options: {
    ...shared.COMMON,
    imageOpts: shared.IMAGE_OPTS,
    add: { long: 'add', argument: false, help: 'make it, enabled' },
    remove: { long: 'remove', argument: false, help: 'remove it' },
    clear: { long: 'clear', argument: false, help: 'forget what has been written' },
    enable: { long: 'enable', argument: false, help: 'record writes from now on' },
    disable: { long: 'disable', argument: false, help: 'record no more' },
    merge: { long: 'merge', argument: true, value: 'BITMAP', help: 'add what another bitmap has recorded' },
    granularity: {
      short: 'g',
      long: 'granularity',
      argument: true,
      value: 'SIZE',
      help: 'bytes that one bit stands for; with --add',
    },
    source: {
      short: 'b',
      long: 'source-file',
      argument: true,
      value: 'FILE',
      help: 'the image that the bitmaps of --merge are in',
    },
    sourceFormat: {
      short: 'F',
      long: 'source-format',
      argument: true,
      value: 'FORMAT',
      help: 'format of the image of -b',
    },
    format: shared.FORMAT,
  },
} as const satisfies CommandTable;

export const CHECK = {
  name: 'check',
  summary: "Looks for errors in an image's metadata",
  operands: 'FILE',
  options: {
    ...shared.COMMON,
    format: shared.LONG_FORMAT,
    repair: {
      long: 'repair',
      short: 'r',
      argument: true,
      value: 'WHAT',
      choices: ['leaks', 'all'],
      help: 'repair lost clusters only, or everything that can be repaired',
    },
    output: shared.OUTPUT,
    imageOpts: shared.IMAGE_OPTS,
    forceShare: shared.FORCE_SHARE,
    cache: shared.SOURCE_CACHE,
    quiet: shared.QUIET,
  },
  exitStatus: {
    0: 'no errors, or all have been repaired',
    1: 'the check was not completed',
    2: 'the image is corrupt',
    3: 'there are lost clusters, no other errors',
    63: 'images of this format cannot be checked',
  },
} as const satisfies CommandTable;

export const COMMIT = {
  name: 'commit',
  summary: 'Writes what an image holds into the image below it, and empties it',
  operands: 'FILE',
  options: {
    ...shared.COMMON,
    imageOpts: shared.IMAGE_OPTS,
    base: {
      short: 'b',
      long: 'base',
      argument: true,
      newer: true,
      value: 'FILE',
      help: 'write into this image, further down; FILE is not emptied then',
    },
    drop: { short: 'd', long: 'drop', argument: false, newer: true, help: 'do not empty FILE' },
    format: shared.FORMAT,
    cache: shared.CACHE,
    progress: shared.PROGRESS,
    quiet: shared.QUIET,
    rate: shared.RATE,
  },
} as const satisfies CommandTable;

export const INFO = {
  name: 'info',
  summary: 'Tells what an image is',
  operands: 'FILE',
  options: {
    ...shared.COMMON,
    format: shared.LONG_FORMAT,
    output: shared.OUTPUT,
    backingChain: { long: 'backing-chain', argument: false, help: 'the images below it too' },
    limits: {
      long: 'limits',
      argument: false,
      newer: true,
      help: 'also the block limits: alignments, and the longest requests',
    },
    imageOpts: shared.IMAGE_OPTS,
    forceShare: shared.FORCE_SHARE,
  },
  notes: 'With --untrusted it says which files the image would open.\n',
} as const satisfies CommandTable;

export const MAP = {
  name: 'map',
  summary: 'Tells which file holds which part of an image, and where',
  operands: 'FILE',
  options: {
    ...shared.COMMON,
    format: shared.LONG_FORMAT,
    output: shared.OUTPUT,
    imageOpts: shared.IMAGE_OPTS,
    forceShare: shared.FORCE_SHARE,
    start: { long: 'start-offset', short: 's', argument: true, value: 'SIZE', help: 'where to begin' },
    length: { long: 'max-length', short: 'l', argument: true, value: 'SIZE', help: 'how far' },
    compressed: {
      long: 'compressed',
      argument: false,
      newer: true,
      help: 'with JSON, tell what is compressed',
    },
  },
} as const satisfies CommandTable;

export const REBASE = {
  name: 'rebase',
  summary: 'Gives an image another backing file, and keeps what it shows',
  operands: 'FILE',
  options: {
    ...shared.COMMON,
    imageOpts: shared.IMAGE_OPTS,
    forceShare: shared.FORCE_SHARE,
    backing: {
      short: 'b',
      long: 'backing',
      argument: true,
      newer: true,
      value: 'FILE',
      help: "the new backing file; '' for none",
    },
    backingFormat: { ...shared.BACKING_FORMAT, help: 'format of the new backing file' },
    backingFormatNew: shared.BACKING_FORMAT_NEW,
    compress: {
      short: 'c',
      long: 'compress',
      argument: false,
      newer: true,
      newerLetter: true,
      help: 'compress what is copied',
    },
    format: shared.FORMAT,
    cache: shared.CACHE,
    sourceCache: {
      ...shared.SOURCE_CACHE,
      long: 'backing-cache',
      help: 'cache mode of the new backing file',
    },
    unsafe: {
      short: 'u',
      long: 'backing-unsafe',
      argument: false,
      newer: true,
      help: 'change the name only: the new backing file shows what the old one did',
    },
    progress: shared.PROGRESS,
    quiet: shared.QUIET,
  },
} as const satisfies CommandTable;

export const RESIZE = {
  name: 'resize',
  summary: 'Makes an image longer or shorter',
  operands: 'FILE [+|-]SIZE',
  options: {
    ...shared.COMMON,
    imageOpts: shared.IMAGE_OPTS,
    preallocation: {
      long: 'preallocation',
      argument: true,
      value: 'MODE',
      choices: ['off', 'metadata', 'falloc', 'full'],
      help: 'what is allocated for the new part',
    },
    shrink: {
      long: 'shrink',
      argument: false,
      help: 'the image may become shorter: what is cut off is lost',
    },
    format: shared.FORMAT,
    quiet: shared.QUIET,
  },
} as const satisfies CommandTable;

export const SNAPSHOT = {
  name: 'snapshot',
  summary: 'Lists, makes, applies or deletes internal snapshots',
  operands: 'FILE',
  options: {
    ...shared.COMMON,
    imageOpts: shared.IMAGE_OPTS,
    forceShare: shared.FORCE_SHARE,
    format: { ...shared.FORMAT, newerLetter: true },
    list: { short: 'l', long: 'list', argument: false, newer: true, help: 'list them' },
    apply: {
      short: 'a',
      long: 'apply',
      argument: true,
      newer: true,
      value: 'SNAPSHOT',
      help: 'the image shows again what the snapshot holds',
    },
    create: { short: 'c', long: 'create', argument: true, newer: true, value: 'NAME', help: 'make one' },
    delete: {
      short: 'd',
      long: 'delete',
      argument: true,
      newer: true,
      value: 'SNAPSHOT',
      help: 'delete one',
    },
    quiet: shared.QUIET,
  },
} as const satisfies CommandTable;
