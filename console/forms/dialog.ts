/** Forms of commands: made from the schema, sent as QMP, which is shown as it will be sent. */

import type { Client } from '../../client/client.ts';
import { NODE_ARGUMENTS } from '../../client/prompt/completion.ts';
import { FORM_COMMANDS, FORM_TYPES } from '../../schema/generated/forms.ts';
import type { Snapshot } from '../data/feed.ts';
import { shown } from '../data/format.ts';
import { fill, h, setText } from '../page/dom.ts';
import { tellDone } from '../page/notices.ts';
import { createObjectField, type FormContext } from './composed.ts';
import { type Field, FieldError } from './values.ts';

export interface Forms {
  /** Shows the form of a command, with values to begin with; members that are named there are shown first. */
  open(command: string, initial?: Readonly<Record<string, unknown>>): void;
}

const TITLES: Readonly<Record<string, string>> = {
  'blockdev-add': 'Add a disk',
  'blockdev-create': 'Create an image',
  'block-export-add': 'Export a node',
  'nbd-server-start': 'Start the NBD server',
  'blockdev-mirror': 'Mirror a node',
  'blockdev-backup': 'Back up a node',
  'block-stream': 'Stream into a node',
  'block-commit': 'Commit into a backing image',
  block_resize: 'Resize a node',
};

/** What the forms that are asked for most begin with. */
const BEGINNINGS: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  'blockdev-add': { driver: 'qcow2', 'node-name': '', file: { driver: 'file', filename: '' } },
  'blockdev-create': {
    'job-id': '',
    options: { driver: 'qcow2', file: { driver: 'file', filename: '' }, size: '' },
  },
  'block-export-add': { type: 'nbd', id: '', 'node-name': '', writable: undefined, name: undefined },
  'nbd-server-start': { addr: { type: 'unix', data: { path: '' } } },
  'blockdev-mirror': { 'job-id': '', device: '', target: '', sync: 'full' },
  'blockdev-backup': { 'job-id': '', device: '', target: '', sync: 'full', bitmap: undefined },
  'block-stream': { 'job-id': '', device: '', base: undefined },
  'block-commit': { 'job-id': '', device: '', 'base-node': undefined, 'top-node': undefined },
  block_resize: { 'node-name': '', size: '' },
};

/** The field of the member that a message names ('node-name' must be ...); null: there is none. */
function namedIn(form: HTMLElement, message: string): HTMLElement | null {
  for (const [, name] of message.matchAll(/'([\w.-]+)'/g)) {
    const label = [...form.querySelectorAll('label')].find(({ textContent }) => textContent === name);
    if (label?.control) return label.control;
  }
  return null;
}

export function createForms(client: Client, latest: () => Snapshot, hurry: () => void): Forms {
  const nodes = h('datalist', { id: 'names-of-nodes' });
  const exports = h('datalist', { id: 'names-of-exports' });
  const jobs = h('datalist', { id: 'names-of-jobs' });
  document.body.append(nodes, exports, jobs);

  const suggest = (): void => {
    const { graph, exports: exps, jobs: all } = latest();
    const options = (names: readonly string[]): HTMLElement[] =>
      names.map((name) => h('option', { value: name }));
    fill(nodes, ...options(graph.members.filter(({ kind }) => kind === 'node').map(({ name }) => name)));
    fill(exports, ...options(exps.map(({ id }) => id)));
    fill(jobs, ...options(all.map(({ id }) => id)));
  };

  const suggestionsFor = (command: string, member: string): string | null => {
    if (member === 'id' && command.startsWith('job-')) return jobs.id;
    if (member === 'id' && command === 'block-export-del') return exports.id;
    if (member === 'device' && command.startsWith('block-job-')) return jobs.id;
    if (member === 'node-name' && command === 'blockdev-add') return null;
    return NODE_ARGUMENTS.test(member) ? nodes.id : null;
  };

  const open = (command: string, initial: Readonly<Record<string, unknown>> = {}): void => {
    const about = FORM_COMMANDS[command];
    if (about === undefined) throw new Error(`The schema has no command ${command}`);
    suggest();
    const preview = h('code', { class: 'preview-text' });
    const problem = h('p', { class: 'form-error', role: 'alert', hidden: true });
    let field: Field | null = null;
    const update = (): void => {
      if (field === null) return;
      try {
        setText(preview, shown(JSON.stringify({ execute: command, arguments: field.read() })));
      } catch (error) {
        if (!(error instanceof FieldError)) throw error;
        setText(preview, error.message);
      }
    };
    const context: FormContext = {
      suggestionsFor: (member) => suggestionsFor(command, member),
      changed: update,
    };
    const type = FORM_TYPES[about.args];
    if (type?.kind === 'object')
      field = createObjectField(about.args, type, { ...BEGINNINGS[command], ...initial }, context);
    update();
    const send = h('button', { type: 'submit', class: 'primary' }, 'Run');
    const cancel = h('button', { type: 'button' }, 'Close');
    const title = TITLES[command] ?? command;
    const form = h(
      'form',
      { novalidate: true },
      h(
        'header',
        { class: 'dialog-head' },
        h('h2', {}, title),
        h('p', {}, h('code', {}, command), ` ${about.about}`),
      ),
      problem,
      h('div', { class: 'dialog-body' }, field?.element ?? h('p', {}, 'It takes no arguments.')),
      h(
        'footer',
        { class: 'dialog-foot' },
        h('details', { class: 'preview' }, h('summary', {}, 'As it is sent'), preview),
        h('div', { class: 'dialog-buttons' }, cancel, send),
      ),
    );
    const dialog = h('dialog', { class: 'form-dialog', 'aria-label': title }, form);
    const fail = (text: string, at: HTMLElement | null): void => {
      setText(problem, shown(text));
      problem.hidden = false;
      problem.scrollIntoView({ block: 'nearest' });
      (at ?? namedIn(form, text) ?? form.querySelector<HTMLElement>('input, select'))?.focus();
    };
    const submit = async (): Promise<void> => {
      problem.hidden = true;
      send.disabled = true;
      try {
        const args = field?.read();
        await client.execute(command as never, args as never);
        dialog.close();
        tellDone(`${title}: done`);
      } catch (error) {
        send.disabled = false;
        fail(
          error instanceof Error ? error.message : String(error),
          error instanceof FieldError ? error.element : null,
        );
      }
      hurry();
    };
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      void submit();
    });
    cancel.addEventListener('click', () => dialog.close());
    dialog.addEventListener('close', () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    // The first thing that has to be filled in, not the choice above it that has been made.
    const empty = [...form.querySelectorAll<HTMLInputElement>('.dialog-body input')].find(
      ({ value }) => value === '',
    );
    (empty ?? form.querySelector<HTMLElement>('input, select, button'))?.focus();
  };

  return { open };
}
