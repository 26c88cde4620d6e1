/** Completions for zsh, by its own _arguments. */

import type { Key, KeyedOption } from './choices.ts';
import type { Choices } from './completion-bash.ts';
import { type Command, type Option, type Program, takesFiles, type ValueKind } from './programs.ts';

/** Text inside single quotes in which _arguments sees no brackets or colons of its own. */
function spec(text: string): string {
  return text.replace(/([\\[\]:])/g, '\\$1').replaceAll("'", `'\\''`);
}

/** Entries of a description list: "name:text". */
function described(name: string, text: string): string {
  const label = name.replaceAll(':', '\\:');
  return `'${label}${text === '' ? '' : `:${text.replaceAll("'", `'\\''`)}`}'`;
}

function action(id: string, kind: ValueKind): string {
  if (kind === 'file') return '_files';
  if (kind === 'directory') return '_files -/';
  if (kind === 'format') return `_${id}_formats`;
  if (kind === 'format-options') return `_${id}_format_options`;
  if (kind === 'none') return ' ';
  if (typeof kind === 'object' && 'daemonOption' in kind) return `_${id}_keyed ${kind.daemonOption}`;
  return kind.includes('unix:') ? `_${id}_address` : `(${kind.join(' ')})`;
}

/** Words that more is typed behind. */
function isAddress(kind: ValueKind): kind is readonly string[] {
  return Array.isArray(kind) && kind.includes('unix:');
}

function addressFunction(id: string, words: readonly string[]): string {
  return `_${id}_address() {
  if compset -P 'unix:'; then _files; else compadd -S '' -- ${words.join(' ')}; fi
}
`;
}

/** Options that may be given again. */
const REPEATED = new Set([
  ...['object', 'blockdev', 'chardev', 'export', 'monitor', 'nbd-server', 'qmp', 'config', 'cmd', 'command'],
  ...['bitmap', 'merge', 'add', 'remove', 'clear', 'enable', 'disable', 'options', 'trace'],
]);

function optionSpecs(id: string, option: Option): string[] {
  const { short, long, values, attached, text, kind } = option;
  const names = [...(short === undefined ? [] : [`-${short}`]), ...(long === undefined ? [] : [`--${long}`])];
  const again = REPEATED.has(long ?? '');
  const help = `[${spec(text)}]`;
  const value =
    values.length === 0 ? '' : `:${spec(values[0]!.length > 20 ? 'value' : values[0]!)}:${action(id, kind)}`;
  const more = attached.map((word) => `'--${long}=-${help}:form:(${word})'`);
  return [
    ...names.map((name) => {
      const join = values.length === 0 ? '' : name.startsWith('--') ? '=' : '+';
      const exclusive = again ? '*' : names.length > 1 ? `(${names.join(' ')})` : '';
      return `'${exclusive}${name}${join}${help}${value}'`;
    }),
    ...more,
  ];
}

const lines = (specs: readonly string[], indent: string): string =>
  specs.map((text) => ` \\\n${indent}${text}`).join('');

function operandSpec(command: Command): string {
  return takesFiles(command) ? "'*:file:_files'" : "'*: : '";
}

function caseOf(command: Command, id: string): string {
  const specs = [...command.options.flatMap((option) => optionSpecs(id, option)), operandSpec(command)];
  return `        (${command.name})\n          _arguments -S${lines(specs, '            ')}\n          ;;\n`;
}

function keyWords(keys: readonly Key[]): string {
  return [...new Set(keys.map(({ name }) => name))].join(' ');
}

function keyedCases(keyed: readonly (readonly [string, KeyedOption])[]): string {
  return keyed
    .flatMap(([name, { values, keys }]) => [
      ...values
        .filter((value) => value.keys.length > 0)
        .map((value) => `    (${name}:${value.name}) keys=(${keyWords([...value.keys, ...keys])}) ;;\n`),
      `    (${name}:*) keys=(${keyWords(keys)}) ;;\n`,
    ])
    .join('');
}

function choiceCases(keys: readonly Key[]): string {
  const all = new Map<string, Set<string>>();
  for (const { name, choices } of keys) {
    if (choices.length > 0) all.set(name, new Set([...(all.get(name) ?? []), ...choices]));
  }
  return [...all].map(([name, words]) => `    (${name}) choices=(${[...words].join(' ')}) ;;\n`).join('');
}

/** Functions for KEY=VALUE,... of the options given. */
function keyedFunctions(id: string, keyed: readonly (readonly [string, KeyedOption])[]): string {
  if (keyed.length === 0) return '';
  const keys = keyed.flatMap(([, option]) => [
    ...option.keys,
    ...option.values.flatMap((value) => value.keys),
  ]);
  const tags = keyed
    .filter(([, { values }]) => values.length > 0)
    .map(
      ([name, { values }]) =>
        `    (${name}) tags=(${values.map((value) => described(value.name, value.text)).join(' ')}) ;;\n`,
    );
  return `_${id}_keyed() {
  local kind=$argv[-1] tag= part
  local -a tags keys choices
  case $kind in
${tags.join('')}  esac
  for part in \${(s:,:)PREFIX#*=--}; do
    case $part in
      ((driver|type|qom-type|backend)=*) tag=\${part#*=}; break ;;
      (*=*) ;;
      (*) tag=$part; break ;;
    esac
  done
  case $kind:$tag in
${keyedCases(keyed)}  esac
  local first=1
  compset -P '*,' && first=0
  if compset -P 1 '*='; then
    local key=\${\${IPREFIX%=}##*[,=]}
    case $key in
      (driver|type|qom-type|backend) _describe 'value' tags -S ,; return ;;
      (filename|*.filename|path|*.path|file|dir|mountpoint|logfile) _files; return ;;
    esac
    case $key in
${choiceCases(keys)}    esac
    compadd -S , -- $choices
    return
  fi
  (( first )) && _describe 'kind' tags -S ,
  compadd -S = -- $keys
}
`;
}

function formatFunctions(id: string, { formats }: Choices): string {
  const names = formats.map(({ name }) => name).join(' ');
  const cases = formats
    .filter(({ options }) => options.length > 0)
    .map(({ name, options }) => `    (${name}) keys=(${keyWords(options)}) ;;\n`);
  return `_${id}_formats() {
  compadd -- ${names}
}

_${id}_format_options() {
  local format=\${opt_args[-O]:-\${opt_args[--target-format]:-\${opt_args[--output-format]:-\${opt_args[-f]:-\${opt_args[--format]}}}}}
  local -a keys choices
  case $format in
${cases.join('')}  esac
  compset -P '*,'
  if compset -P 1 '*='; then
    local key=\${\${IPREFIX%=}##*[,=]}
    case $key in
      (backing_file|data_file) _files; return ;;
${choiceCases(formats.flatMap(({ options }) => options)).replaceAll('    (', '      (')}    esac
    compadd -S , -- $choices
    return
  fi
  compadd -S = -- $keys
  compadd -- help
}
`;
}

/** The completion file of a program; zsh loads it as a function of its name. */
export function zshCompletion(program: Program, choices: Choices): string {
  const id = program.name.replaceAll('-', '_');
  const all = [program, ...program.commands].flatMap(({ options }) => options.map(({ kind }) => kind));
  const keyed = [
    ...new Set(
      all.flatMap((kind) => (typeof kind === 'object' && 'daemonOption' in kind ? [kind.daemonOption] : [])),
    ),
  ].map((name) => [name, choices.keyed[name]!] as const);
  const hasFormats = all.some((kind) => kind === 'format' || kind === 'format-options');
  const root = program.options.flatMap((option) => optionSpecs(id, option));
  const body =
    program.commands.length === 0
      ? `  _arguments -S${lines([...root, operandSpec(program)], '    ')}\n`
      : `  local curcontext="$curcontext" state line
  typeset -A opt_args
  _arguments -S -C${lines([...root, "'1:command:->command'", "'*::argument:->arguments'"], '    ')}
  case $state in
    (command)
      local -a commands=(
${program.commands.map(({ name, summary }) => `        ${described(name, summary)}\n`).join('')}      )
      _describe command commands
      ;;
    (arguments)
      case $words[1] in
${program.commands.map((command) => caseOf(command, id)).join('')}      esac
      ;;
  esac
`;
  return [
    `#compdef ${program.name}\n# Made from the tables that --help prints; do not edit.\n`,
    ...(hasFormats ? [formatFunctions(id, choices)] : []),
    keyedFunctions(id, keyed),
    ...all.filter(isAddress).map((words) => addressFunction(id, words)),
    `_${id}() {\n${body}}\n\n_${id} "$@"\n`,
  ]
    .filter((text) => text !== '')
    .join('\n');
}
