/**
 * TLS credentials with X.509 certificates, from PEM files with fixed names in the folder `dir`: ca-cert.pem, and
 * ENDPOINT-cert.pem with ENDPOINT-key.pem (a server must have them), ca-crl.pem and dh-params.pem (server, optional).
 *
 * With `sanity-check` (the default) the certificates are examined when the object is made, so that a mistake shows
 * there and not in a failed handshake. The order of the checks is the original's.
 */

import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import type { ObjectOptions, QCryptoTLSCredsEndpoint } from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import { booleanProperty, type QomObject, stringProperty } from './qom.ts';
import {
  checkTlsOptions,
  findCredential,
  GNUTLS,
  loadDhParams,
  pemBlocks,
  readCredential,
  type TlsX509Credentials,
  tlsCommonAccessors,
} from './tls-creds.ts';
import {
  basicConstraintsCa,
  extendedKeyUsage,
  KeyUsage,
  keyUsage,
  PURPOSE_ANY,
  PURPOSE_TLS_CLIENT,
  PURPOSE_TLS_SERVER,
} from './x509-extensions.ts';

export type TlsX509Options = Extract<ObjectOptions, { 'qom-type': 'tls-creds-x509' }>;

type Endpoint = QCryptoTLSCredsEndpoint;

const CERTIFICATE_LABEL = /^(X509 |TRUSTED )?CERTIFICATE$/;
const CRL_LABEL = /^X509 CRL$/;

/** The original stops here too. */
const MAX_CA_CERTIFICATES = 16;

interface Files {
  readonly ca: string;
  readonly crl: string | null;
  readonly cert: string | null;
  readonly key: string | null;
}

function findFiles(dir: string, endpoint: Endpoint): Files {
  const server = endpoint === 'server';
  return {
    ca: findCredential(dir, 'ca-cert.pem', true) ?? '',
    crl: server ? findCredential(dir, 'ca-crl.pem', false) : null,
    cert: findCredential(dir, `${endpoint}-cert.pem`, server),
    key: findCredential(dir, `${endpoint}-key.pem`, server),
  };
}

// ---- sanity checks -------------------------------------------------------------------------------------------

/** A certificate to be checked, and where it came from. */
interface Subject {
  readonly certificate: X509Certificate;
  readonly file: string;
  readonly isCa: boolean;
  readonly endpoint: Endpoint;
}

function checkTimes({ certificate, file, isCa, endpoint }: Subject): void {
  const what = isCa ? 'CA' : endpoint;
  const nowMs = Date.now();
  if (Date.parse(certificate.validTo) < nowMs)
    throw new BlockError(`The ${what} certificate ${file} has expired`);
  if (Date.parse(certificate.validFrom) > nowMs) {
    throw new BlockError(`The ${what} certificate ${file} is not yet active`);
  }
}

function checkBasicConstraints({ certificate, file, isCa, endpoint }: Subject): void {
  const ca = basicConstraintsCa(certificate.raw);
  if (ca === true && !isCa) {
    throw new BlockError(
      `The certificate ${file} basic constraints show a CA, but we need one for a ${endpoint}`,
    );
  }
  if (ca === false && isCa)
    throw new BlockError(`The certificate ${file} basic constraints do not show a CA`);
  if (ca === null && isCa)
    throw new BlockError(`The certificate ${file} is missing basic constraints for a CA`);
}

/** Restrictions count when they are marked critical; otherwise GnuTLS lets the handshake pass. */
function checkUsage({ certificate, file, isCa }: Subject): void {
  const usage = keyUsage(certificate.raw);
  if (usage === null || !usage.critical) return;
  if (isCa && !usage.has(KeyUsage.keyCertSign)) {
    throw new BlockError(`Certificate ${file} usage does not permit certificate signing`);
  }
  if (!isCa && !usage.has(KeyUsage.digitalSignature)) {
    throw new BlockError(`Certificate ${file} usage does not permit digital signature`);
  }
}

function checkPurpose({ certificate, file, isCa, endpoint }: Subject): void {
  const purpose = extendedKeyUsage(certificate.raw);
  if (isCa || purpose === null || !purpose.critical || purpose.purposes.includes(PURPOSE_ANY)) return;
  const needed = endpoint === 'server' ? PURPOSE_TLS_SERVER : PURPOSE_TLS_CLIENT;
  if (!purpose.purposes.includes(needed)) {
    throw new BlockError(`Certificate ${file} purpose does not allow use with a TLS ${endpoint}`);
  }
}

function checkCertificate(subject: Subject): void {
  checkTimes(subject);
  try {
    checkBasicConstraints(subject);
    checkUsage(subject);
    checkPurpose(subject);
  } catch (error) {
    if (error instanceof BlockError) throw error;
    throw new BlockError(`Unable to query certificate ${subject.file}: ${GNUTLS.parsing}`);
  }
}

/** Whether a chain of issuers in `authorities` ends in a self-signed one. */
function hasKnownIssuer(certificate: X509Certificate, authorities: readonly X509Certificate[]): boolean {
  let current = certificate;
  for (let depth = 0; depth <= authorities.length; depth++) {
    const issuer = authorities.find(
      (candidate) => current.checkIssued(candidate) && current.verify(candidate.publicKey),
    );
    if (issuer === undefined) return false;
    if (issuer.issuer === issuer.subject) return true;
    current = issuer;
  }
  return false;
}

function parseCertificate(pem: string | undefined): X509Certificate | null {
  if (pem === undefined) return null;
  try {
    return new X509Certificate(pem);
  } catch {
    return null;
  }
}

function importCertificate(file: string, endpoint: Endpoint): X509Certificate {
  const fail = (reason: string): BlockError =>
    new BlockError(`Unable to import ${endpoint} certificate ${file}: ${reason}`);
  const [pem] = pemBlocks(readCredential(file, fail), CERTIFICATE_LABEL);
  if (pem === undefined) throw fail(GNUTLS.unexpectedHeader);
  const certificate = parseCertificate(pem);
  if (certificate === null) throw fail(GNUTLS.decodingError);
  return certificate;
}

function importAuthorities(file: string): X509Certificate[] {
  const fail = (): BlockError => new BlockError(`Unable to import CA certificate list ${file}`);
  const blocks = pemBlocks(readCredential(file, fail), CERTIFICATE_LABEL);
  const certificates = blocks.map(parseCertificate).filter((certificate) => certificate !== null);
  const complete = certificates.length === blocks.length && certificates.length <= MAX_CA_CERTIFICATES;
  if (certificates.length === 0 || !complete) throw fail();
  return certificates;
}

function checkSanity(files: Files, endpoint: Endpoint): void {
  const own = files.cert === null ? null : importCertificate(files.cert, endpoint);
  const authorities = importAuthorities(files.ca);
  if (own !== null) checkCertificate({ certificate: own, file: files.cert ?? '', isCa: false, endpoint });
  for (const certificate of authorities)
    checkCertificate({ certificate, file: files.ca, isCa: true, endpoint });
  if (own !== null && !hasKnownIssuer(own, authorities)) {
    throw new BlockError(
      `Our own certificate ${files.cert} failed validation against ${files.ca}: The certificate hasn't got a known issuer`,
    );
  }
}

// ---- loading -------------------------------------------------------------------------------------------------

interface Identity {
  readonly cert: string;
  readonly key: string;
}

function parseKey(key: string, passphrase: string | null, fail: (reason: string) => BlockError): KeyObject {
  const [pem] = pemBlocks(key, /PRIVATE KEY$/);
  if (pem === undefined) throw fail(GNUTLS.notAvailable);
  const encrypted = /ENCRYPTED/.test(pem);
  // The original takes an encrypted key without a password for an encrypted key with a wrong one.
  if (encrypted && passphrase === null) throw fail(GNUTLS.decryptionFailed);
  try {
    return createPrivateKey(passphrase === null ? pem : { key: pem, passphrase });
  } catch {
    throw fail(encrypted ? GNUTLS.decryptionFailed : GNUTLS.parsing);
  }
}

/** Reads our certificate and key and checks that they belong together. */
function loadIdentity(certFile: string, keyFile: string, passphrase: string | null): Identity {
  const fail = (reason: string): BlockError =>
    new BlockError(`Cannot load certificate '${certFile}' & key '${keyFile}': ${reason}`);
  const cert = readCredential(certFile, fail);
  const key = readCredential(keyFile, fail);
  const certificate = parseCertificate(pemBlocks(cert, CERTIFICATE_LABEL)[0]);
  if (certificate === null) throw fail(GNUTLS.decodingError);
  const privateKey = parseKey(key, passphrase, fail);
  if (!certificate.checkPrivateKey(privateKey)) throw fail(GNUTLS.keyMismatch);
  return { cert, key };
}

function loadCrl(file: string): string {
  const fail = (reason: string): BlockError => new BlockError(`Cannot load CRL '${file}': ${reason}`);
  const blocks = pemBlocks(readCredential(file, fail), CRL_LABEL);
  if (blocks.length === 0) throw fail(GNUTLS.decodingError);
  return blocks.join('\n');
}

/** Loads the credentials and checks them; `findPassword` looks up the text of the secret that `passwordid` names. */
export function createTlsX509(
  options: TlsX509Options,
  findPassword: (id: string) => string,
): { credentials: TlsX509Credentials; qom: QomObject } {
  const dir = checkTlsOptions('tls-creds-x509', options);
  const endpoint = options.endpoint ?? 'client';
  const files = findFiles(dir, endpoint);
  const sanityCheck = options['sanity-check'] ?? true;
  if (sanityCheck) checkSanity(files, endpoint);
  const ca = readCredential(
    files.ca,
    (reason) => new BlockError(`Cannot load CA certificate '${files.ca}': ${reason}`),
  );
  const passphrase = options.passwordid === undefined ? null : findPassword(options.passwordid);
  const identity =
    files.cert === null || files.key === null ? null : loadIdentity(files.cert, files.key, passphrase);
  const credentials: TlsX509Credentials = {
    kind: 'x509',
    endpoint,
    verifyPeer: options['verify-peer'] ?? true,
    priority: options.priority ?? '',
    ca,
    crl: files.crl === null ? null : loadCrl(files.crl),
    cert: identity?.cert ?? null,
    key: identity?.key ?? null,
    passphrase,
    dhParams: endpoint === 'server' ? loadDhParams(dir) : null,
  };
  const shown = { sanityCheck, passwordid: options.passwordid ?? null };
  const accessors = {
    ...tlsCommonAccessors(options),
    'sanity-check': booleanProperty(shown, 'sanityCheck', 'sanity-check'),
    passwordid: stringProperty(shown, 'passwordid', 'passwordid'),
  };
  return { credentials, qom: { typeName: 'tls-creds-x509', accessors } };
}
