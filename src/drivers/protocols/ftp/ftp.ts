/**
 * ftp and ftps (TLS from the first byte on): a file on an FTP server, read only.
 *
 * Options (QMP reference, BlockdevOptionsCurlFtp(s)): url, readahead (accepted: transfers read on by themselves),
 * timeout, username, password-secret, proxy-username and proxy-password-secret (accepted: there are no proxies here),
 * sslverify. Beyond the original's: connections, retries, retry-delay. Names are those of http (../http/names.ts).
 */

import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoOf } from '../../../errors/error.ts';
import { percentDecoded } from '../../net/percent.ts';
import { retryPolicy } from '../../net/retry.ts';
import { createReadWindows } from '../../prefetch/windows.ts';
import { becomeReadOnly, type RemoteState, readOnlyRemote } from '../http/http.ts';
import { curlNames, ftpNames, ftpsNames } from '../http/names.ts';
import {
  checkUrl,
  connectionsOf,
  type HttpOptions,
  openError,
  readaheadOf,
  secretText,
  timeoutOf,
} from '../http/options.ts';
import { type FtpSettings, openFtp } from './source.ts';

const FTP_PORT = 21;
const FTPS_PORT = 990;
const DEFAULT_CONNECTIONS = 4;
/** What libcurl logs in as when it is not told. */
const ANONYMOUS = { user: 'anonymous', password: 'ftp@example.com' } as const;

/** Nothing may end the command that it is in. */
const CONTROL_CHARACTER = /\p{Cc}/u;

function ftpSettings(node: BlockNode, scheme: 'ftp' | 'ftps', context: OpenContext): FtpSettings {
  const options = context.options as HttpOptions;
  readaheadOf(options.readahead);
  const timeoutMs = timeoutOf(options.timeout);
  const url = checkUrl(scheme, options.url);
  const user = options.username ?? percentDecoded(url.username);
  const password = secretText(node, options['password-secret']) ?? percentDecoded(url.password);
  const isAnonymous = user === '' && password === '';
  // One slash is the one behind the host: paths start at the login's folder, as with curl(1).
  const path = percentDecoded(url.pathname.slice(1));
  if ([path, user, password].some((text) => CONTROL_CHARACTER.test(text)))
    throw new BlockError('URL using bad/illegal format or missing URL', { errno: E.EINVAL });
  return {
    target: {
      host: url.hostname.replace(/^\[(.*)\]$/, '$1'),
      port: Number(url.port) || (scheme === 'ftp' ? FTP_PORT : FTPS_PORT),
      user: isAnonymous ? ANONYMOUS.user : user,
      password: isAnonymous ? ANONYMOUS.password : password,
      path,
      tls: scheme === 'ftps',
      verifiesTls: options.sslverify ?? true,
      timeoutMs,
    },
    connections: connectionsOf(options.connections ?? DEFAULT_CONNECTIONS),
    policy: retryPolicy(context.options),
    warn: (text) => node.layer.report(`warning: Node '${node.name}': ${text}\n`),
  };
}

function makeOpen(scheme: 'ftp' | 'ftps') {
  return async function open(node: BlockNode<RemoteState>, context: OpenContext): Promise<RemoteState> {
    becomeReadOnly(node, context);
    const settings = ftpSettings(node, scheme, context);
    try {
      const source = await node.layer.whileOpening(openFtp(settings, node.layer.endSignal));
      const { sizeBytes } = source.file;
      const windows = createReadWindows({ firstBytes: 0, maxBytes: 0 }, source.read, () => sizeBytes);
      return { sizeBytes, windows, cancel: source.cancel, close: source.close };
    } catch (error) {
      throw openError(error instanceof Error ? error.message : String(error), errnoOf(error));
    }
  };
}

function ftpDriver(scheme: 'ftp' | 'ftps'): BlockDriver<RemoteState> {
  return {
    name: scheme,
    ...readOnlyRemote,
    ...curlNames,
    ...(scheme === 'ftp' ? ftpNames : ftpsNames),
    open: makeOpen(scheme),
  };
}

export const ftp = ftpDriver('ftp');
export const ftps = ftpDriver('ftps');
