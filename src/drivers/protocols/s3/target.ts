/**
 * Where an object is and how requests for it are signed (AWS Signature Version 4, by aws4fetch, which is loaded when it
 * is first needed). Credentials come from options, or from the environment as with every tool of AWS; without any,
 * requests are not signed, as for public buckets.
 */

import { createHash } from 'node:crypto';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';

export interface S3Options {
  readonly bucket: string;
  readonly key: string;
  readonly endpoint?: string;
  readonly region?: string;
  readonly 'path-style'?: boolean;
  readonly 'access-key-id'?: string;
  readonly 'secret-access-key'?: string;
  readonly 'session-token'?: string;
}

interface Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
}

export type Method = 'GET' | 'HEAD' | 'PUT' | 'POST' | 'DELETE';

export interface S3Target {
  /** The object's address. */
  readonly url: URL;
  /** Headers that sign the request, with those given. */
  sign(
    method: Method,
    url: URL,
    headers: Readonly<Record<string, string>>,
    body?: Buffer,
  ): Promise<Record<string, string>>;
}

const DEFAULT_REGION = 'us-east-1';
const EMPTY_BODY = Buffer.alloc(0);

type Environment = Readonly<Record<string, string | undefined>>;

/** `layer` knows the secrets; their ids are what the options name. */
export function s3Target(options: S3Options, layer: BlockLayer, env: Environment): S3Target {
  const region = options.region ?? env.AWS_REGION ?? env.AWS_DEFAULT_REGION ?? DEFAULT_REGION;
  const url = objectUrl(options, region, env);
  const credentials = credentialsOf(options, layer, env);
  const cache = new Map<string, ArrayBuffer>();
  return {
    url,
    async sign(method, to, headers, body = EMPTY_BODY) {
      if (credentials === null) return { ...headers };
      const { AwsV4Signer } = await import('aws4fetch');
      // TLS keeps the body as it is; without it the signature does.
      const digest =
        to.protocol === 'https:' ? 'UNSIGNED-PAYLOAD' : createHash('sha256').update(body).digest('hex');
      const signer = new AwsV4Signer({
        method,
        url: to.href,
        headers: { ...headers, 'x-amz-content-sha256': digest },
        service: 's3',
        region,
        cache,
        ...credentials,
      });
      const signed = await signer.sign();
      const all = Object.fromEntries(signed.headers.entries());
      delete all.host;
      return all;
    },
  };
}

function objectUrl(options: S3Options, region: string, env: Environment): URL {
  const { bucket, key } = options;
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$/.test(bucket)) throw invalid('bucket', bucket);
  if (key === '' || Buffer.byteLength(key) > 1024) throw invalid('key', key);
  const named = options.endpoint ?? env.AWS_ENDPOINT_URL_S3 ?? env.AWS_ENDPOINT_URL;
  const endpoint = named ?? `https://s3.${region}.amazonaws.com`;
  if (!/^https?:\/\/[^/?#@]+\/*$/.test(endpoint) || !URL.canParse(endpoint))
    throw invalid('endpoint', endpoint);
  // A bucket as a host name needs a certificate for it, and a name without dots.
  const isPath = options['path-style'] ?? (named !== undefined || bucket.includes('.'));
  const url = new URL(endpoint);
  const path = key.split('/').map(encodeSegment).join('/');
  if (isPath) url.pathname = `/${bucket}/${path}`;
  else {
    url.hostname = `${bucket}.${url.hostname}`;
    url.pathname = `/${path}`;
  }
  return url;
}

/** As Signature Version 4 wants it: everything but unreserved characters is encoded. */
function encodeSegment(segment: string): string {
  if (segment === '.' || segment === '..') throw invalid('key', segment);
  return encodeURIComponent(segment).replace(
    /[!'()*]/g,
    (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

function invalid(name: string, value: string): BlockError {
  return new BlockError(`Parameter '${name}' does not accept value '${value}'`, { errno: E.EINVAL });
}

function credentialsOf(options: S3Options, layer: BlockLayer, env: Environment): Credentials | null {
  const secret = (id: string | undefined): string | undefined =>
    id === undefined ? undefined : layer.secret(id).toString('utf8').trim();
  const isGiven = options['access-key-id'] !== undefined || options['secret-access-key'] !== undefined;
  const accessKeyId = isGiven ? options['access-key-id'] : env.AWS_ACCESS_KEY_ID;
  const secretAccessKey = isGiven ? secret(options['secret-access-key']) : env.AWS_SECRET_ACCESS_KEY;
  const sessionToken = isGiven ? secret(options['session-token']) : env.AWS_SESSION_TOKEN;
  if (!accessKeyId && !secretAccessKey) return null;
  if (!accessKeyId || !secretAccessKey)
    throw new BlockError("Parameters 'access-key-id' and 'secret-access-key' must be used together", {
      errno: E.EINVAL,
    });
  return { accessKeyId, secretAccessKey, ...(sessionToken && { sessionToken }) };
}
