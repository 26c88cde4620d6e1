/**
 * Certificates and keys for tests, made by certtool(1), good ones and all kinds of bad ones.
 *
 * Everything is made once below a folder; each case is a folder of its own, as a `dir` of tls-creds-x509.
 */

import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

const CA = 'cn = Test CA\nca\ncert_signing_key\n';

function leaf(role: 'server' | 'client', extra = ''): string {
  return `organization = Test\ncn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_${role}\n${extra}`;
}

const USUAL = 'encryption_key\nsigning_key\n';
const PAST = 'activation_date = "2020-01-01 00:00:00"\nexpiration_date = "2021-01-01 00:00:00"\n';
const FUTURE = 'activation_date = "2090-01-01 00:00:00"\nexpiration_date = "2091-01-01 00:00:00"\n';

/** Names of the folders that makeCertificates makes. */
export const CERTIFICATE_CASES = [
  'full',
  'empty',
  'no-ca',
  'no-key',
  'no-cert',
  'bad-ca',
  'bad-cert',
  'bad-key',
  'bad-crl',
  'bad-dh',
  'mismatch',
  'unknown-issuer',
  'expired',
  'future',
  'expired-ca',
  'future-ca',
  'ca-is-no-ca',
  'ca-may-not-sign',
  'no-signature-usage',
  'signature-only',
  'server-is-ca',
  'client-purpose',
  'intermediate-missing',
  'intermediate',
  'encrypted-key',
] as const;

export type CertificateCase = (typeof CERTIFICATE_CASES)[number];

/** The password of the key in `encrypted-key`. */
export const KEY_PASSWORD = 'correct horse';

class Workshop {
  readonly #dir: string;
  #count = 0;

  constructor(dir: string) {
    this.#dir = dir;
  }

  file(name: string): string {
    return path.join(this.#dir, name);
  }

  run(...args: readonly string[]): void {
    execFileSync('certtool', args, { stdio: ['ignore', 'ignore', 'pipe'] });
  }

  key(name: string): string {
    this.run('--generate-privkey', '--key-type=ecdsa', '--outfile', this.file(name));
    return this.file(name);
  }

  template(text: string): string {
    const file = this.file(`template-${this.#count++}`);
    writeFileSync(file, text);
    return file;
  }

  selfSigned(template: string, key: string, out: string): string {
    this.run(
      '--generate-self-signed',
      '--load-privkey',
      key,
      '--template',
      this.template(template),
      '--outfile',
      out,
    );
    return out;
  }

  signed(template: string, key: string, ca: { cert: string; key: string }, out: string): string {
    this.run(
      ...['--generate-certificate', '--load-ca-certificate', ca.cert, '--load-ca-privkey', ca.key],
      ...['--load-privkey', key, '--template', this.template(template), '--outfile', out],
    );
    return out;
  }
}

/** Makes all cases below `dir`. */
export function makeCertificates(dir: string): void {
  const shop = new Workshop(dir);
  const caKey = shop.key('ca-key');
  const ca = { key: caKey, cert: shop.selfSigned(CA, caKey, shop.file('ca-cert')) };
  const serverKey = shop.key('server-key');
  const clientKey = shop.key('client-key');
  const serverCert = shop.signed(leaf('server', USUAL), serverKey, ca, shop.file('server-cert'));
  const clientCert = shop.signed(leaf('client', USUAL), clientKey, ca, shop.file('client-cert'));

  /** A folder like `full`, but for the files given: another file, or text, or nothing. */
  const make = (
    name: CertificateCase,
    changes: Record<string, string | { text: string } | null> = {},
  ): string => {
    const folder = shop.file(name);
    mkdirSync(folder);
    const files: Record<string, string | { text: string } | null> = {
      'ca-cert.pem': ca.cert,
      'server-cert.pem': serverCert,
      'server-key.pem': serverKey,
      'client-cert.pem': clientCert,
      'client-key.pem': clientKey,
      ...changes,
    };
    for (const [file, source] of Object.entries(files)) {
      if (typeof source === 'string') copyFileSync(source, path.join(folder, file));
      else if (source !== null) writeFileSync(path.join(folder, file), source.text);
    }
    return folder;
  };
  /** A folder whose server certificate is made from this template. */
  const withServer = (name: CertificateCase, template: string, issuer = ca): string =>
    make(name, { 'server-cert.pem': shop.signed(template, serverKey, issuer, shop.file(`${name}-server`)) });
  const withCa = (name: CertificateCase, template: string): string =>
    make(name, { 'ca-cert.pem': shop.selfSigned(template, caKey, shop.file(`${name}-ca`)) });
  const junk = { text: 'junk\n' };

  make('full');
  mkdirSync(shop.file('empty'));
  make('no-ca', { 'ca-cert.pem': null });
  make('no-key', { 'server-key.pem': null, 'client-key.pem': null });
  make('no-cert', { 'server-cert.pem': null, 'client-cert.pem': null });
  make('bad-ca', { 'ca-cert.pem': junk });
  make('bad-cert', { 'server-cert.pem': junk, 'client-cert.pem': junk });
  make('bad-key', { 'server-key.pem': junk, 'client-key.pem': junk });
  make('bad-crl', { 'ca-crl.pem': junk });
  make('bad-dh', { 'dh-params.pem': junk });
  make('mismatch', { 'server-key.pem': clientKey, 'client-key.pem': serverKey });
  const otherKey = shop.key('other-ca-key');
  make('unknown-issuer', { 'ca-cert.pem': shop.selfSigned(CA, otherKey, shop.file('other-ca')) });
  withServer('expired', leaf('server', USUAL + PAST));
  withServer('future', leaf('server', USUAL + FUTURE));
  withCa('expired-ca', CA + PAST);
  withCa('future-ca', CA + FUTURE);
  make('ca-is-no-ca', { 'ca-cert.pem': serverCert });
  withCa('ca-may-not-sign', 'cn = Test CA\nca\nsigning_key\n');
  withServer('no-signature-usage', leaf('server', 'encryption_key\n'));
  withServer('signature-only', leaf('server', 'signing_key\n'));
  withServer('server-is-ca', leaf('server', `ca\ncert_signing_key\n${USUAL}`));
  withServer('client-purpose', leaf('client', USUAL));
  const middleKey = shop.key('middle-key');
  const middle = {
    key: middleKey,
    cert: shop.signed('cn = Middle CA\nca\ncert_signing_key\n', middleKey, ca, shop.file('middle-cert')),
  };
  withServer('intermediate-missing', leaf('server', USUAL), middle);
  const chained = withServer('intermediate', leaf('server', USUAL), middle);
  const chain = execFileSync('cat', [ca.cert, middle.cert]);
  writeFileSync(path.join(chained, 'ca-cert.pem'), chain);
  const encrypted = make('encrypted-key');
  shop.run(
    ...['--to-p8', '--load-privkey', serverKey, '--pkcs-cipher=aes-256', '--password', KEY_PASSWORD],
    ...['--outfile', path.join(encrypted, 'server-key.pem')],
  );
}
