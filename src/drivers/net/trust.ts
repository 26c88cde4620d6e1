/**
 * Whom TLS clients of network drivers trust: the authorities that the system trusts, as other programs on it do, and not
 * only those that Node brings along. SSL_CERT_FILE names another list, as for OpenSSL's programs.
 */

import { readFileSync } from 'node:fs';
import { createSecureContext, rootCertificates, type SecureContext } from 'node:tls';

/** Where distributions keep their list. */
const SYSTEM_LIST = '/etc/ssl/certs/ca-certificates.crt';

/** Made once for a node: reading a hundred certificates takes a while. */
export function trustedAuthorities(env: Readonly<Record<string, string | undefined>>): SecureContext {
  const named = env.SSL_CERT_FILE;
  try {
    return createSecureContext({ ca: readFileSync(named || SYSTEM_LIST) });
  } catch {
    return createSecureContext({ ca: [...rootCertificates] });
  }
}
