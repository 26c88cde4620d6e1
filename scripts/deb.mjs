// Makes a Debian package in dist/: the npm package with its dependencies for this kind of machine under /usr/lib/qblockd,
// links in /usr/bin, man pages, completions of shells, the documentation, systemd units, a system user. Usage: npm run deb      Needs dpkg-deb, and the registry for dependencies.
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const { version, description, bin, engines } = JSON.parse(
  readFileSync(path.join(root, 'package.json'), 'utf8'),
);
const units = path.join(root, 'packaging/systemd');

const run = (program, args, cwd = root) =>
  execFileSync(program, args, { cwd, stdio: ['ignore', 'pipe', 2], encoding: 'utf8' }).trim();

function put(tree, from, to, mode = 0o644) {
  const file = path.join(tree, to);
  mkdirSync(path.dirname(file), { recursive: true });
  copyFileSync(from, file);
  chmodSync(file, mode);
}

/** Installs the npm package as it would be for a user, without scripts. */
function installPackage(scratch, tree) {
  const output = run('npm', ['pack', '--json', '--pack-destination', scratch]);
  const [{ filename }] = JSON.parse(output.slice(output.indexOf('[')));
  const place = path.join(scratch, 'prefix');
  const quiet = ['--no-audit', '--no-fund', '--prefer-offline', '--omit=dev', '--ignore-scripts'];
  run('npm', ['install', '-g', '--prefix', place, ...quiet, path.join(scratch, filename)]);
  mkdirSync(path.join(tree, 'usr/lib'), { recursive: true });
  run('cp', ['-a', path.join(place, 'lib/node_modules/qblockd'), path.join(tree, 'usr/lib/qblockd')]);
  mkdirSync(path.join(tree, 'usr/bin'), { recursive: true });
  for (const [name, file] of Object.entries(bin))
    symlinkSync(`../lib/qblockd/${file}`, path.join(tree, 'usr/bin', name));
}

const POSTINST = `#!/bin/sh
set -e
if [ "$1" = configure ]; then
  # DPKG_ROOT is empty but for an image of a system that is being made.
  if ! grep -qs '^qblockd:' "$DPKG_ROOT/etc/passwd" && { [ -n "$DPKG_ROOT" ] || ! getent passwd qblockd >/dev/null; }; then
    if command -v systemd-sysusers >/dev/null; then systemd-sysusers --root="$DPKG_ROOT/" qblockd.conf
    else useradd --root "$DPKG_ROOT/" --system --user-group --home-dir /var/lib/qblockd --no-create-home --shell /usr/sbin/nologin qblockd; fi
  fi
  if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
fi
`;

// Disks and their configuration are the user's: they stay when the package goes.
const PRERM = `#!/bin/sh
set -e
if [ "$1" = remove ] && [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then systemctl stop qblockd.socket qblockd.service || true; fi
`;

function writeControl(tree) {
  const dir = path.join(tree, 'DEBIAN');
  mkdirSync(dir, { recursive: true });
  const sizeKib = run('du', ['-sk', path.join(tree, 'usr')]).split('\t')[0];
  const control = {
    Package: 'qblockd',
    Version: version,
    Architecture: run('dpkg', ['--print-architecture']),
    Maintainer: 'qblockd developers <qblockd@localhost>',
    'Installed-Size': sizeKib,
    Depends: 'libc6',
    // Node may come from elsewhere than Debian: the daemon says so itself when there is none.
    Recommends: `nodejs (${engines.node.replace('>=', '>= ')})`,
    Suggests: 'fuse3, prometheus',
    Section: 'admin',
    Priority: 'optional',
    Description: description,
  };
  const lines = Object.entries(control).map(([key, value]) => `${key}: ${value}\n`);
  writeFileSync(path.join(dir, 'control'), lines.join(''));
  writeFileSync(path.join(dir, 'postinst'), POSTINST, { mode: 0o755 });
  writeFileSync(path.join(dir, 'prerm'), PRERM, { mode: 0o755 });
}

const scratch = mkdtempSync(path.join(tmpdir(), 'qblockd-deb-'));
try {
  process.umask(0o022);
  const tree = path.join(scratch, 'tree');
  installPackage(scratch, tree);
  for (const name of ['qblockd.service', 'qblockd.socket'])
    put(tree, path.join(units, name), `usr/lib/systemd/system/${name}`);
  put(tree, path.join(units, 'qblockd.sysusers'), 'usr/lib/sysusers.d/qblockd.conf');
  run('cp', ['-a', path.join(tree, 'usr/lib/qblockd/dist/share'), path.join(tree, 'usr/share')]);
  run('rm', ['-r', path.join(tree, 'usr/lib/qblockd/dist/share')]);
  run('gzip', ['-9n', ...Object.keys(bin).map((name) => path.join(tree, `usr/share/man/man1/${name}.1`))]);
  run(process.execPath, [path.join(root, 'dist/docs/site/main.js')]);
  mkdirSync(path.join(tree, 'usr/share/doc/qblockd'), { recursive: true });
  run('cp', ['-a', path.join(root, 'dist/site'), path.join(tree, 'usr/share/doc/qblockd/html')]);
  put(tree, path.join(root, 'LICENSE'), 'usr/share/doc/qblockd/copyright');
  put(tree, path.join(root, 'CHANGELOG.md'), 'usr/share/doc/qblockd/changelog.md');
  mkdirSync(path.join(tree, 'etc/qblockd'), { recursive: true });
  writeControl(tree);
  chmodSync(tree, 0o755);
  const architecture = run('dpkg', ['--print-architecture']);
  const file = path.join(root, 'dist', `qblockd_${version}_${architecture}.deb`);
  run('dpkg-deb', ['--build', '--root-owner-group', '-Zxz', '-z2', tree, file]);
  process.stdout.write(`${file}\n`);
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
