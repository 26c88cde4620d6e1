/** Man pages and completions: made from the tables of --help, without complaints, and right when they are used. */

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { PROGRAMS } from '../../docs/generator/programs.ts';
import { makeScratchDir, repositoryRoot } from '../peers/daemons.ts';
import { requirePeer } from '../peers/requires.ts';

const share = path.join(repositoryRoot, 'dist/share');
const page = (name: string): string => path.join(share, `man/man1/${name}.1`);
/** How a terminal without attributes shows bold text: a character, a backspace, and the character again. */
const OVERSTRUCK = new RegExp(`.${String.fromCharCode(8)}`, 'g');
let dir = '';

beforeAll(() => {
  dir = makeScratchDir();
  mkdirSync(path.join(dir, 'disks'));
  writeFileSync(path.join(dir, 'disks/only.img'), '');
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('man pages', () => {
  test.for(PROGRAMS)('$name: neither groff nor mandoc complains', ({ name }, context) => {
    requirePeer(context, 'man');
    const man = spawnSync('man', ['--warnings', '-E', 'UTF-8', '-l', '-Tutf8', '-Z', page(name)], {
      encoding: 'utf8',
      env: { ...process.env, MANWIDTH: '80' },
    });
    expect([man.status, man.stderr]).toEqual([0, '']);
    const lint = spawnSync('mandoc', ['-Tlint', '-W', 'warning', page(name)], { encoding: 'utf8' });
    expect([lint.status, lint.stdout]).toEqual([0, '']);
  });

  test('a page that is wrong is complained about', (context) => {
    requirePeer(context, 'man');
    const file = path.join(dir, 'wrong.1');
    writeFileSync(file, '.TH WRONG 1\n.SH NAME\n.NOSUCHMACRO x\n');
    const man = spawnSync('man', ['--warnings', '-E', 'UTF-8', '-l', '-Tutf8', '-Z', file], {
      encoding: 'utf8',
    });
    expect(man.stderr).toContain('NOSUCHMACRO');
  });

  test.for(PROGRAMS)(
    '$name: the page, read as a user does, has every option and exit status',
    (program, context) => {
      requirePeer(context, 'man');
      const text = execFileSync('mandoc', ['-Tascii', '-Owidth=200', page(program.name)], {
        encoding: 'utf8',
      }).replaceAll(OVERSTRUCK, '');
      for (const command of [program, ...program.commands]) {
        expect(text).toContain(command.name);
        expect(command.options.length).toBeGreaterThan(0);
        for (const { long, short } of command.options)
          expect(text).toContain(long === undefined ? `-${short}` : `--${long}`);
        expect(command.statuses.map(([status]) => status)).toEqual(expect.arrayContaining(['0', '1']));
        for (const [, meaning] of command.statuses) expect(text.replace(/\s+/g, ' ')).toContain(meaning);
      }
    },
  );

  test('--help of each program and command names the same options', () => {
    for (const program of PROGRAMS) {
      for (const command of [program, ...program.commands]) {
        const words = command === program ? ['--help'] : [command.name, '--help'];
        const help = execFileSync(path.join(repositoryRoot, 'daemon/bin', program.name), words, {
          encoding: 'utf8',
        });
        for (const { long, short } of command.options)
          expect(help).toContain(long === undefined ? `-${short}` : `--${long}`);
      }
    }
  });
});

describe('completions', () => {
  /** What is typed; the line that comes of it; words that are offered meanwhile. */
  const cases: readonly (readonly [typed: string, line: string | RegExp, offered?: readonly string[]])[] = [
    ['qblock-img cre\t', 'qblock-img create '],
    ['qblock-img co\t\t', /^qblock-img com?/, ['commit', 'compare', 'convert']],
    ['qblock-img create -f qco\t\t', /^qblock-img create -f qcow/, ['qcow', 'qcow2']],
    ['qblock-img convert -O par\t', 'qblock-img convert -O parallels '],
    ['qblock-img create --back\t\t', /--backing/, ['--backing', '--backing-format', '--backing-unsafe']],
    ['qblock-img create -f qcow2 -o clus\t', 'qblock-img create -f qcow2 -o cluster_size='],
    ['qblock-img create -f qcow2 -o cluster_size=64k,la\t', /cluster_size=64k,lazy_refcounts=$/],
    ['qblock-img check -r le\t', 'qblock-img check -r leaks '],
    ['qblock-img info --output=j\t', 'qblock-img info --output=json '],
    ['qblock-img info disks/on\t', 'qblock-img info disks/only.img '],
    ['qblock-img convert -t dir\t', 'qblock-img convert -t directsync '],
    ['qblockd --nbd\t\t', /^qblockd --nbd-server/],
    ['qblockd --engine io\t', 'qblockd --engine io_uring '],
    ['qblockd --blockdev driver=qco\t\t', /driver=qcow/, ['qcow', 'qcow2']],
    ['qblockd --blockdev qcow2,la\t', 'qblockd --blockdev qcow2,lazy-refcounts='],
    ['qblockd --blockdev driver=qcow2,discard=\t\t', /discard=/, ['ignore', 'unmap']],
    ['qblockd --blockdev driver=file,filename=disks/on\t', /filename=disks\/only\.img/],
    ['qblockd --export vh\t', /^qblockd --export vhost-user-blk/],
    ['qblockd --object throt\t', /^qblockd --object throttle-group/],
    ['qblockd --chardev sock\t', /^qblockd --chardev socket/],
    ['qblockd --qmp unix:disks/on\t', 'qblockd --qmp unix:disks/only.img '],
    ['qblockd --config dis\t', /^qblockd --config disks\//],
    ['qblock-nbd -f v\t\t', /^qblock-nbd -f v/, ['vdi', 'vhdx', 'vmdk', 'vpc']],
    ['qblock-io -f qe\t', 'qblock-io -f qed '],
    ['qblock-shell --pre\t', 'qblock-shell --pretty '],
  ];

  test.for([
    ['bash', 'bash-completion/completions'],
    ['zsh', 'zsh/vendor-completions'],
  ])('typed into %s', ([shell = '', folder = ''], context) => {
    requirePeer(context, 'python3');
    if (shell === 'zsh') requirePeer(context, 'zsh');
    const { status, stdout, stderr } = spawnSync(
      'python3',
      [path.join(import.meta.dirname, 'type-in-shell.py'), shell, path.join(share, folder)],
      { cwd: dir, encoding: 'utf8', input: JSON.stringify(cases.map(([typed]) => typed)) },
    );
    expect([status, stderr]).toEqual([0, '']);
    const answers = JSON.parse(stdout) as { readonly line: string; readonly words: readonly string[] }[];
    for (const [index, [typed, line, offered = []]] of cases.entries()) {
      const answer = answers[index]!;
      if (typeof line === 'string') expect([typed, answer.line]).toEqual([typed, line]);
      else expect(answer.line).toMatch(line);
      expect([typed, answer.words]).toEqual([typed, expect.arrayContaining([...offered])]);
    }
  });

  test.for([
    ['bash', 'bash-completion/completions', ''],
    ['zsh', 'zsh/vendor-completions', '_'],
  ])(
    '%s: there is a file for each program, which the shell can read',
    ([shell = '', folder = '', prefix = ''], context) => {
      if (shell === 'zsh') requirePeer(context, 'zsh');
      expect(readdirSync(path.join(share, folder)).sort()).toEqual(
        PROGRAMS.map(({ name }) => prefix + name).sort(),
      );
      for (const name of readdirSync(path.join(share, folder))) {
        const { status, stderr } = spawnSync(shell, ['-n', path.join(share, folder, name)], {
          encoding: 'utf8',
        });
        expect([name, status, stderr]).toEqual([name, 0, '']);
      }
    },
  );

  test('all formats and drivers of the tables are in them', () => {
    const text = readFileSync(path.join(share, 'bash-completion/completions/qblockd'), 'utf8');
    for (const name of ['copy-before-write', 'virtio-blk-vhost-user', 's3', 'rbd'])
      expect(text).toContain(` ${name} `);
  });
});
