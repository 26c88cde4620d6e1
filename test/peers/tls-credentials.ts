/** Credentials for tests of TLS: certificates in folder `pki` and a pre-shared key in folder `psk`. */

import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

const TEMPLATES = {
  ca: 'cn = Test CA\nca\ncert_signing_key\nexpiration_days = 10\n',
  server:
    'organization = Test\ncn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nencryption_key\nsigning_key\nexpiration_days = 10\n',
  client:
    'country = DE\norganization = Test\ncn = client1\ntls_www_client\nencryption_key\nsigning_key\nexpiration_days = 10\n',
};

/** A certificate authority with a certificate for a server and one for a client, in `dir`; keys.psk beside it. */
export function makeCredentials(dir: string): void {
  mkdirSync(path.join(dir, 'pki'));
  mkdirSync(path.join(dir, 'psk'));
  const file = (name: string) => path.join(dir, 'pki', name);
  const certtool = (...args: string[]) => execFileSync('certtool', args, { stdio: 'ignore' });
  for (const [name, template] of Object.entries(TEMPLATES)) {
    writeFileSync(file(`${name}.info`), template);
    certtool('--generate-privkey', '--key-type=ecdsa', '--outfile', file(`${name}-key.pem`));
    const subject = [
      '--load-privkey',
      file(`${name}-key.pem`),
      '--template',
      file(`${name}.info`),
      '--outfile',
      file(`${name}-cert.pem`),
    ];
    if (name === 'ca') certtool('--generate-self-signed', ...subject);
    else {
      const ca = ['--load-ca-certificate', file('ca-cert.pem'), '--load-ca-privkey', file('ca-key.pem')];
      certtool('--generate-certificate', ...ca, ...subject);
    }
  }
  execFileSync('psktool', ['-u', 'alice', '-p', path.join(dir, 'psk/keys.psk')], { stdio: 'ignore' });
}
