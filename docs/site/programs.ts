/** Pages of drivers and of programs, made from the tables that their help is made from. */

import { type OptionLine, optionsOf } from '../../daemon/option-help.ts';
import { OPTION_TEXTS } from '../../schema/generated/option-help.ts';
import { VISITOR_TYPES } from '../../schema/generated/visitor-tables.ts';
import type { Format } from '../generator/choices.ts';
import { type Command, type Option, PROGRAMS, type Program, type Term } from '../generator/programs.ts';
import { code, escaped, heading, inline, type Page, table } from './html.ts';

function optionRows(lines: readonly OptionLine[]): string {
  const sorted = [...lines].sort((a, b) => (a.name < b.name ? -1 : 1));
  return table(
    ['Option', 'Value', ''],
    sorted.map(({ name, type, text, conditions, required }) => [
      `${code(name)}${required ? ' <span class="note">required</span>' : ''}`,
      escaped(type),
      `${inline(text)}${conditions.length === 0 ? '' : ` (if ${conditions.map(code).join(' or ')})`}`,
    ]),
  );
}

/** Names of the block drivers that blockdev-add knows. */
export function driverNames(): string[] {
  const type = VISITOR_TYPES.BlockdevOptions;
  return type?.kind === 'object' ? Object.keys(type.branches ?? {}).sort() : [];
}

/** All drivers on one page. */
export function driversPage(formats: readonly Format[]): Page {
  const texts = OPTION_TEXTS.BlockdevDriver ?? {};
  const parts = driverNames().map((name) => {
    const { own } = optionsOf('BlockdevOptions', name);
    const options = formats.find((format) => format.name === name)?.options ?? [];
    const made = options.length === 0 ? '' : '<p>Options of images that are made (<code>-o</code>):</p>\n';
    return (
      `${heading(2, name, code(name))}<p>${inline(texts[name] ?? '')}.</p>\n` +
      (own.length === 0 ? '<p>No options of its own.</p>\n' : optionRows(own)) +
      made +
      table(
        ['Option', 'Value', ''],
        options.map((option) => [code(option.name), escaped(option.type), inline(option.text)]),
      )
    );
  });
  const links = driverNames().map((name) => `<li><a href="#${name}">${name}</a></li>`);
  const common = optionRows(optionsOf('BlockdevOptions', null).common);
  const body =
    `${heading(1, 'drivers', 'Block drivers')}` +
    '<p>Options of <code>--blockdev</code> and <code>blockdev-add</code>; those of a node inside of another one stand ' +
    'behind its name and a dot (<code>file.driver=file</code>). <code>qblockd --blockdev qcow2,help</code> prints the same.</p>\n' +
    `<ul class="columns">${links.join('')}</ul>\n` +
    `${heading(2, 'common', 'Options of all drivers')}${common}${parts.join('')}`;
  return { path: 'drivers.html', title: 'Block drivers', body };
}

// ---- programs --------------------------------------------------------------------------------------------------

export const programPath = (name: string): string => `programs/${name}.html`;

function optionName({ short, long, values, attached }: Option): string {
  const names = [...(short === undefined ? [] : [`-${short}`]), ...(long === undefined ? [] : [`--${long}`])];
  const more = attached.length > 0 ? `[=${attached.join('|')}]` : '';
  if (values.length === 0 || values[0] === '') return code(names.join(', ') + more);
  return values.map((value) => code(`${names.join(', ')} ${value}`)).join('<br>');
}

function optionTable(options: readonly Option[]): string {
  return table(
    ['Option', ''],
    options.map((option) => [optionName(option), inline(option.text)]),
  );
}

const termTable = (title: string, terms: readonly Term[]): string =>
  table(
    [title, ''],
    terms.map(([word, text]) => [code(word), inline(text)]),
  );

function synopsis(name: string, { synopsis: forms }: Command): string {
  return `<pre><code>${forms.map((form) => escaped(`${name} ${form}`)).join('\n')}</code></pre>\n`;
}

function notes({ notes: text }: Command): string {
  return text === '' ? '' : `<pre>${escaped(text)}</pre>\n`;
}

function commandPart(program: string, command: Command): string {
  return (
    heading(3, command.name, code(command.name)) +
    `<p>${inline(command.summary)}.</p>\n` +
    synopsis(`${program} ${command.name}`, command) +
    optionTable(command.options) +
    notes(command) +
    termTable('Exit status', command.statuses)
  );
}

function titled(title: string, html: string): string {
  return html === '' ? '' : `${heading(2, title.toLowerCase().replaceAll(' ', '-'), title)}${html}`;
}

function programPage(program: Program): Page {
  const { name, summary } = program;
  const body =
    heading(1, name, code(name)) +
    `<p>${inline(summary)}.</p>\n${synopsis(name, program)}` +
    program.description.map((text) => `<p>${inline(text)}</p>\n`).join('') +
    titled('Options', optionTable(program.options) + notes(program)) +
    titled('Commands', program.commands.map((command) => commandPart(name, command)).join('')) +
    titled(
      'What is typed',
      program.typed
        .map(({ synopsis: form, text }) => `<h3>${code(form)}</h3>\n<pre>${escaped(text.trim())}</pre>\n`)
        .join(''),
    ) +
    titled('Exit status', termTable('Status', program.statuses)) +
    titled('Environment', termTable('Variable', program.environment)) +
    titled('Files', termTable('File', program.files)) +
    titled(
      'Examples',
      program.examples
        .map(([command, text]) => `<p>${inline(text)}:</p>\n<pre><code>${escaped(command)}</code></pre>\n`)
        .join(''),
    );
  return { path: programPath(name), title: name, body };
}

/** A page for each program. */
export function programPages(): Page[] {
  return PROGRAMS.map(programPage);
}
