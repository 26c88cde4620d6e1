/**
 * The parts of an X.509 certificate that node:crypto does not show: key usage with its criticality, and the subject
 * in the text form that GnuTLS gives to authorisation.
 *
 * A small reader of DER (X.690) over RFC 5280 structures. Everything is checked against the bounds of the input;
 * what cannot be read is a thrown RangeError, which callers turn into their own error.
 */

interface DerElement {
  readonly tag: number;
  readonly content: Buffer;
}

const TAG_BOOLEAN = 0x01;
const TAG_BIT_STRING = 0x03;
const TAG_OCTET_STRING = 0x04;
const TAG_OID = 0x06;
const TAG_SEQUENCE = 0x30;
const TAG_VERSION = 0xa0;
const TAG_EXTENSIONS = 0xa3;

/** Reads one element at `offset`; RangeError when it does not fit. */
function readElement(der: Buffer, offset: number): { element: DerElement; next: number } {
  const tag = der.readUInt8(offset);
  let length = der.readUInt8(offset + 1);
  let start = offset + 2;
  if (length >= 0x80) {
    const lengthBytes = length & 0x7f;
    if (lengthBytes === 0 || lengthBytes > 4) throw new RangeError('unsupported DER length');
    length = der.readUIntBE(start, lengthBytes);
    start += lengthBytes;
  }
  const next = start + length;
  if (next > der.length) throw new RangeError('truncated DER element');
  return { element: { tag, content: der.subarray(start, next) }, next };
}

function children(content: Buffer): DerElement[] {
  const elements: DerElement[] = [];
  for (let offset = 0; offset < content.length; ) {
    const { element, next } = readElement(content, offset);
    elements.push(element);
    offset = next;
  }
  return elements;
}

function oidText(content: Buffer): string {
  const arcs: number[] = [];
  let value = 0;
  for (const byte of content) {
    value = value * 128 + (byte & 0x7f);
    if (byte < 0x80) {
      arcs.push(value);
      value = 0;
    }
  }
  const first = arcs.shift() ?? 0;
  const top = Math.min(Math.floor(first / 40), 2);
  return [top, first - top * 40, ...arcs].join('.');
}

/** Members of TBSCertificate. */
function tbsMembers(der: Buffer): DerElement[] {
  const certificate = readElement(der, 0).element;
  const tbs = children(certificate.content)[0];
  if (certificate.tag !== TAG_SEQUENCE || tbs?.tag !== TAG_SEQUENCE)
    throw new RangeError('not a certificate');
  return children(tbs.content);
}

interface Extension {
  readonly critical: boolean;
  readonly value: Buffer;
}

function findExtension(der: Buffer, oid: string): Extension | null {
  const wrapper = tbsMembers(der).find((member) => member.tag === TAG_EXTENSIONS);
  const list = wrapper === undefined ? undefined : children(wrapper.content)[0];
  for (const extension of list === undefined ? [] : children(list.content)) {
    const members = children(extension.content);
    const [id] = members;
    const value = members.at(-1);
    if (id?.tag !== TAG_OID || oidText(id.content) !== oid || value?.tag !== TAG_OCTET_STRING) continue;
    return { critical: members[1]?.tag === TAG_BOOLEAN && members[1].content[0] !== 0, value: value.content };
  }
  return null;
}

/** Bits of key usage (RFC 5280, 4.2.1.3), numbered as there. */
export const KeyUsage = { digitalSignature: 0, keyEncipherment: 2, keyCertSign: 5 } as const;

export interface KeyUsageExtension {
  readonly critical: boolean;
  has(bit: number): boolean;
}

/** Key usage; null when the certificate does not restrict it. */
export function keyUsage(der: Buffer): KeyUsageExtension | null {
  const extension = findExtension(der, '2.5.29.15');
  if (extension === null) return null;
  const { element } = readElement(extension.value, 0);
  if (element.tag !== TAG_BIT_STRING) throw new RangeError('key usage is not a bit string');
  const bits = element.content.subarray(1);
  const has = (bit: number): boolean => (((bits[bit >> 3] ?? 0) << (bit & 7)) & 0x80) !== 0;
  return { critical: extension.critical, has };
}

export const PURPOSE_TLS_SERVER = '1.3.6.1.5.5.7.3.1';
export const PURPOSE_TLS_CLIENT = '1.3.6.1.5.5.7.3.2';
export const PURPOSE_ANY = '2.5.29.37.0';

/** Extended key usage: object identifiers; null when the certificate does not restrict its purpose. */
export function extendedKeyUsage(der: Buffer): { critical: boolean; purposes: string[] } | null {
  const extension = findExtension(der, '2.5.29.37');
  if (extension === null) return null;
  const list = readElement(extension.value, 0).element;
  return {
    critical: extension.critical,
    purposes: children(list.content).map((item) => oidText(item.content)),
  };
}

/** The basic constraints' CA bit; null when the certificate has no basic constraints. */
export function basicConstraintsCa(der: Buffer): boolean | null {
  const extension = findExtension(der, '2.5.29.19');
  if (extension === null) return null;
  const [ca] = children(readElement(extension.value, 0).element.content);
  return ca?.tag === TAG_BOOLEAN && ca.content[0] !== 0;
}

// ---- the subject as text -------------------------------------------------------------------------------------

/** Short names of attributes (RFC 4514 and those GnuTLS knows besides). */
const ATTRIBUTE_NAMES: Readonly<Record<string, string>> = {
  '2.5.4.3': 'CN',
  '2.5.4.4': 'SN',
  '2.5.4.5': 'serialNumber',
  '2.5.4.6': 'C',
  '2.5.4.7': 'L',
  '2.5.4.8': 'ST',
  '2.5.4.9': 'street',
  '2.5.4.10': 'O',
  '2.5.4.11': 'OU',
  '2.5.4.12': 'title',
  '2.5.4.42': 'givenName',
  '2.5.4.43': 'initials',
  '2.5.4.65': 'pseudonym',
  '0.9.2342.19200300.100.1.1': 'UID',
  '0.9.2342.19200300.100.1.25': 'DC',
  '1.2.840.113549.1.9.1': 'EMAIL',
};

function attributeText(value: DerElement): string {
  const TAG_BMP_STRING = 0x1e;
  if (value.tag === TAG_BMP_STRING) return Buffer.from(value.content).swap16().toString('utf16le');
  return value.content.toString('utf8');
}

/** Escapes what RFC 4514 section 2.4 wants escaped. */
function escapeAttribute(text: string): string {
  return text
    .replace(/[,+"\\<>;]/g, '\\$&')
    .replace(/^[ #]/, '\\$&')
    .replace(/ $/, '\\ ');
}

/** The distinguished name of the subject, "CN=joe,O=Org"; the order is that of the certificate. */
export function distinguishedName(der: Buffer): string {
  const members = tbsMembers(der);
  // TBSCertificate: [version], serial number, signature, issuer, validity, subject, ...
  const subject = members[members[0]?.tag === TAG_VERSION ? 5 : 4];
  if (subject?.tag !== TAG_SEQUENCE) throw new RangeError('no subject');
  const parts = children(subject.content).map((set) =>
    children(set.content)
      .map((attribute) => {
        const [type, value] = children(attribute.content);
        if (type === undefined || value === undefined) throw new RangeError('bad name');
        const oid = oidText(type.content);
        return `${ATTRIBUTE_NAMES[oid] ?? oid}=${escapeAttribute(attributeText(value))}`;
      })
      .join('+'),
  );
  return parts.join(',');
}
