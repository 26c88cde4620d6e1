/**
 * Signatures of s3's requests against a calculation of the test's own, by the steps of AWS Signature Version 4: the test
 * server of test/peers does not check them.
 */

import { createHash, createHmac } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { expect, test } from 'vitest';
import type { BlockLayer } from '../../../src/block/layer.ts';
import { s3Target } from '../../../src/drivers/protocols/s3/target.ts';
import { openRemote } from './remote-node.ts';
import { startWebServer } from './web-server.ts';

const SECRET = 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY';

function hmac(key: Buffer | string, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest();
}

/** The signature that the request should carry. */
function signatureOf(
  method: string,
  url: URL,
  headers: Readonly<Record<string, string | string[] | undefined>>,
  secret: string,
): string {
  const authorization = String(headers.authorization);
  const [, scope = '', signedHeaders = ''] =
    /^AWS4-HMAC-SHA256 Credential=[^/]+\/(\S+), SignedHeaders=(\S+), Signature=[0-9a-f]{64}$/.exec(
      authorization,
    ) ?? [];
  const [day = '', region = '', service = ''] = scope.split('/');
  const query = url.search
    .slice(1)
    .split('&')
    .filter((pair) => pair !== '')
    .map((pair) => (pair.includes('=') ? pair : `${pair}=`))
    .sort()
    .join('&');
  const names = signedHeaders.split(';');
  const canonical = [
    method,
    url.pathname,
    query,
    ...names.map((name) => `${name}:${name === 'host' ? url.host : String(headers[name]).trim()}`),
    '',
    signedHeaders,
    String(headers['x-amz-content-sha256']),
  ].join('\n');
  const digest = createHash('sha256').update(canonical).digest('hex');
  const toSign = ['AWS4-HMAC-SHA256', String(headers['x-amz-date']), scope, digest].join('\n');
  const key = ['aws4_request'].reduce(hmac, hmac(hmac(hmac(`AWS4${secret}`, day), region), service));
  return hmac(key, toSign).toString('hex');
}

const BASE = {
  bucket: 'images',
  'access-key-id': 'AKID',
  'secret-access-key': 'key',
  region: 'eu-west-1',
} as const;
const layer = { secret: () => Buffer.from(`${SECRET}\n`) } as unknown as BlockLayer;

test.each([
  ['GET', 'plain.img', '', undefined],
  ['PUT', "dir with space/ü+%&=?#'()*!~.img", 'partNumber=3&uploadId=a%2Fb%3D', Buffer.from('data')],
  ['POST', 'x', 'uploads=', undefined],
] as const)('%s of %s', async (method, key, query, body) => {
  const target = s3Target({ ...BASE, key, endpoint: 'http://127.0.0.1:9000' }, layer, {});
  const url = new URL(target.url.href);
  if (query !== '') url.search = query;
  const headers = await target.sign(method, url, { 'content-type': 'text/plain' }, body);
  expect(headers['x-amz-content-sha256']).toBe(
    createHash('sha256')
      .update(body ?? '')
      .digest('hex'),
  );
  expect(headers.authorization).toContain('Credential=AKID/');
  expect(headers.authorization).toContain('/eu-west-1/s3/aws4_request');
  const [, signature] = /Signature=([0-9a-f]{64})$/.exec(headers.authorization!)!;
  expect(signature).toBe(signatureOf(method, url, headers, SECRET));
});

test('where objects are', () => {
  const at = (more: object, env = {}): string =>
    s3Target({ ...BASE, key: 'a b/c', ...more }, layer, env).url.href;
  expect(at({})).toBe('https://images.s3.eu-west-1.amazonaws.com/a%20b/c');
  expect(at({ bucket: 'my.images' })).toBe('https://s3.eu-west-1.amazonaws.com/my.images/a%20b/c');
  expect(at({ endpoint: 'http://localhost:9000/' })).toBe('http://localhost:9000/images/a%20b/c');
  expect(at({ endpoint: 'http://s.example', 'path-style': false })).toBe('http://images.s.example/a%20b/c');
  expect(at({}, { AWS_ENDPOINT_URL: 'http://e:1' })).toBe('http://e:1/images/a%20b/c');
});

test('the requests that a server gets carry it, ranges too, and a redirect does not take it along', async () => {
  const data = Buffer.alloc(100_000, 9);
  const server = await startWebServer(data);
  const other = await startWebServer(data);
  server.bend = (request, response) => {
    if (request.method !== 'GET') return false;
    response.writeHead(307, { location: other.url }).end();
    return true;
  };
  const remote = await openRemote(
    { driver: 's3', ...BASE, key: 'disk.img', endpoint: `http://127.0.0.1:${server.port}` },
    { secrets: { key: SECRET } },
  );
  await remote.read(512, 1024);
  await remote.close();
  const check = ({ method, url, headers }: IncomingMessage): void => {
    const [, signature] = /Signature=([0-9a-f]{64})$/.exec(headers.authorization ?? '') ?? [];
    expect(signature).toBe(signatureOf(method!, new URL(url!, `http://${headers.host}`), headers, SECRET));
  };
  expect(server.requests.map(({ method }) => method)).toEqual(['HEAD', 'GET']);
  server.requests.forEach(check);
  expect(other.requests.map(({ headers }) => headers.authorization)).toEqual([undefined, undefined]);
  await server.stop();
  await other.stop();
});
