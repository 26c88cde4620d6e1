/** Man pages, in the macros of man(7). */

import type { Command, Option, Program, Term } from './programs.ts';

/** Text that troff prints as it stands. */
function escaped(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll("'", '\\(aq')
    .replaceAll('`', '\\(ga')
    .replaceAll('^', '\\(ha')
    .replaceAll('~', '\\(ti');
}

/** A paragraph as lines; none begins with what troff takes for a request. */
function lines(text: string): string[] {
  return escaped(text)
    .trim()
    .split('\n')
    .map((line) => line.trim().replace(/^\./, '\\&.'));
}

/** Lines that keep their form. */
function literal(text: string): string[] {
  const body = escaped(text.replace(/\n+$/, ''))
    .split('\n')
    .map((line) => line.replace(/^\./, '\\&.'));
  return ['.nf', ...body, '.fi'];
}

const bold = (text: string): string => `\\fB${escaped(text)}\\fR`;
const italic = (text: string): string => `\\fI${escaped(text)}\\fR`;

/** A form of an argument, which may go on in the next line at its commas. */
function breakable(value: string): string {
  return italic(value)
    .replace(/\[,|\|/g, '\\:$&')
    .replace(/(?<=[^[\]]),(?=[^\]])/g, ',\\:');
}

function optionHead({ short, long, values, attached }: Option): string[] {
  const names = [...(short === undefined ? [] : [`-${short}`]), ...(long === undefined ? [] : [`--${long}`])];
  const head = names.map(bold).join(', ');
  if (attached.length > 0) return [`${head}[=${attached.map(bold).join('|')}]`];
  if (values.length === 0) return [head];
  const joint = long === undefined || (values[0]?.length ?? 0) > 20 ? ' ' : '=';
  return values.map((value) => `${head}${value === '' ? '' : joint}${breakable(value)}`);
}

function optionParts(options: readonly Option[]): string[] {
  return options.flatMap((option) => {
    const [first = '', ...rest] = optionHead(option);
    const heading = option.section === undefined ? [] : ['.PP', bold(option.section)];
    return [...heading, '.TP', first, ...rest.flatMap((head) => ['.TQ', head]), ...lines(option.text)];
  });
}

function terms(list: readonly Term[]): string[] {
  return list.flatMap(([word, text]) => ['.TP', bold(word), ...lines(text)]);
}

function section(title: string, body: readonly string[]): string[] {
  return body.length === 0 ? [] : [`.SH ${title}`, ...body];
}

function paragraphs(texts: readonly string[]): string[] {
  return texts.flatMap((text, index) => [...(index === 0 ? [] : ['.PP']), ...lines(text)]);
}

function synopsis(name: string, forms: readonly string[]): string[] {
  return forms.flatMap((form, index) => [...(index === 0 ? [] : ['.br']), `${bold(name)} ${escaped(form)}`]);
}

function commandPart(program: string, command: Command): string[] {
  return [
    `.SS ${command.name}`,
    ...synopsis(`${program} ${command.name}`, command.synopsis),
    '.PP',
    ...lines(`${command.summary}.`),
    ...optionParts(command.options),
    ...(command.notes === '' ? [] : ['.PP', ...literal(command.notes)]),
    '.PP',
    'Exit status:',
    ...terms(command.statuses),
  ];
}

/** The page of a program. `date`: "2026-11-30". */
export function manPage(program: Program, version: string, date: string): string {
  const { name, summary, commands, typed } = program;
  const title = name.toUpperCase();
  const page = [
    `.\\" Made from the tables that --help prints. Do not edit.`,
    `.TH ${escaped(title)} 1 ${date} "${escaped(`qblockd ${version}`)}" "User Commands"`,
    // Ragged lines: options are long words.
    '.ad l',
    '.nh',
    ...section('NAME', [
      `${escaped(name)} \\- ${escaped(summary.charAt(0).toLowerCase() + summary.slice(1))}`,
    ]),
    ...section('SYNOPSIS', synopsis(name, program.synopsis)),
    ...section('DESCRIPTION', paragraphs(program.description)),
    ...section('OPTIONS', optionParts(program.options)),
    ...section(
      'COMMANDS',
      commands.flatMap((command) => commandPart(name, command)),
    ),
    ...(program.notes === '' ? [] : section('NOTES', literal(program.notes))),
    ...section(
      'COMMANDS THAT ARE TYPED',
      typed.flatMap(({ synopsis: form, text }) => [`.SS ${escaped(form)}`, ...literal(text)]),
    ),
    ...section('EXIT STATUS', terms(program.statuses)),
    ...section('ENVIRONMENT', terms(program.environment)),
    ...section('FILES', terms(program.files)),
    ...section(
      'EXAMPLES',
      program.examples.flatMap(([command, text], index) => [
        ...(index === 0 ? [] : ['.PP']),
        ...lines(`${text.charAt(0).toUpperCase()}${text.slice(1)}:`),
        '.PP',
        '.RS 4',
        ...literal(command),
        '.RE',
      ]),
    ),
    ...section('SEE ALSO', [
      program.seeAlso
        .map((page) => /^(.*)\((\d)\)$/.exec(page))
        .map((match) => `${bold(match?.[1] ?? '')}(${match?.[2]})`)
        .join(',\n'),
    ]),
  ];
  return `${page.filter((line) => line !== '').join('\n')}\n`;
}
