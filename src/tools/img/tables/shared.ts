/** Options that several sub-commands of qblock-img have. */

import { ERROR_FORMAT, HELP, TRACE, VERSION } from '../../common/command-table.ts';
import type { OptionDefinition, OptionTable } from '../../common/getopt.ts';

const CACHES = ['none', 'writeback', 'writethrough', 'directsync', 'unsafe'] as const;

export const OBJECT = {
  long: 'object',
  argument: true,
  value: 'OBJECT',
  help: 'an object that images need, such as secret,id=s0,file=passphrase.txt',
} as const satisfies OptionDefinition;
export const IMAGE_OPTS = {
  long: 'image-opts',
  argument: false,
  help: 'image names are options of a block node: driver=qcow2,file.filename=disk',
} as const satisfies OptionDefinition;
export const UNTRUSTED = {
  long: 'untrusted',
  argument: false,
  newer: true,
  help: 'images open no other file that only they name (backing file, data file, extent) and are not probed',
} as const satisfies OptionDefinition;
export const FORCE_SHARE = {
  long: 'force-share',
  short: 'U',
  argument: false,
  help: 'the image may be in use for writing by others',
} as const satisfies OptionDefinition;
export const PROGRESS = {
  short: 'p',
  long: 'progress',
  argument: false,
  newer: true,
  attached: ['json'],
  help: 'show progress; =json: a line of JSON for each step; without, SIGUSR1 prints how far it is',
} as const satisfies OptionDefinition;
export const QUIET = {
  short: 'q',
  long: 'quiet',
  argument: false,
  newer: true,
  help: 'print errors only',
} as const satisfies OptionDefinition;
export const OUTPUT = {
  long: 'output',
  argument: true,
  value: 'FORM',
  choices: ['human', 'json'],
  help: 'form of what is printed',
} as const satisfies OptionDefinition;

/** Of every command. */
export const COMMON = {
  help: HELP,
  object: OBJECT,
  untrusted: UNTRUSTED,
  errorFormat: ERROR_FORMAT,
} as const;

/** -f where 7.2 knows the letter only. */
export const FORMAT = {
  short: 'f',
  long: 'format',
  argument: true,
  newer: true,
  value: 'FORMAT',
  help: 'format of the image; found out by looking when not given',
} as const satisfies OptionDefinition;
/** -f where 7.2 has the long name too. */
export const LONG_FORMAT = {
  short: 'f',
  long: 'format',
  argument: true,
  value: 'FORMAT',
  help: 'format of the image; found out by looking when not given',
} as const satisfies OptionDefinition;
export const CACHE = {
  short: 't',
  long: 'cache',
  argument: true,
  newer: true,
  value: 'CACHE',
  choices: CACHES,
  help: 'cache mode of what is written',
} as const satisfies OptionDefinition;
export const SOURCE_CACHE = {
  short: 'T',
  long: 'cache',
  argument: true,
  newer: true,
  value: 'CACHE',
  choices: CACHES,
  help: 'cache mode of what is read',
} as const satisfies OptionDefinition;
export const RATE = {
  short: 'r',
  long: 'rate-limit',
  argument: true,
  newer: true,
  value: 'SIZE',
  help: 'at most so many bytes a second',
} as const satisfies OptionDefinition;
export const FORMAT_OPTIONS = {
  short: 'o',
  long: 'options',
  argument: true,
  newer: true,
  value: 'OPTIONS',
  help: 'options of the format, NAME=VALUE,...; "help" lists them',
} as const satisfies OptionDefinition;
export const BACKING_FORMAT = {
  short: 'F',
  long: 'backing-format',
  argument: true,
  newer: true,
  value: 'FORMAT',
  help: 'format of the backing file',
} as const satisfies OptionDefinition;
/** The letter of newer releases. */
export const BACKING_FORMAT_NEW = {
  short: 'B',
  argument: true,
  newerLetter: true,
  value: 'FORMAT',
  help: 'like -F',
} as const satisfies OptionDefinition;

/** Options in front of the sub-command. */
export const STANDARD_OPTIONS = {
  help: HELP,
  version: VERSION,
  trace: TRACE,
  errorFormat: ERROR_FORMAT,
} as const satisfies OptionTable;
