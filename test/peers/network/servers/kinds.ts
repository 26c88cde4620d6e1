/**
 * Every network driver beside the server it is tested with: one way to start one, to put an image there, to stop it and
 * to start it again. What is special to a driver is in its own test.
 */

import { writeFileSync } from 'node:fs';
import path from 'node:path';
import type { PeerName } from '../../requires.ts';
import { startCeph } from './ceph.ts';
import { startGanesha } from './ganesha.ts';
import { startGluster } from './gluster.ts';
import { startNginx } from './nginx.ts';
import { startS3 } from './s3.ts';
import { startSshd } from './sshd.ts';
import { startTgt } from './tgt.ts';
import { startVsftpd } from './vsftpd.ts';

export interface RemoteServer {
  /** Puts an image with this content there; options of a node for it. */
  make(name: string, content: Buffer): Promise<Record<string, unknown>>;
  /** Options of a node for an image that is not there yet; null: `blockdev-create` makes none with this driver. */
  place(name: string): Record<string, unknown> | null;
  /** Ends the server, with requests under way. */
  kill(): Promise<void>;
  /** Starts it again, with what it had. */
  start(): Promise<void>;
  /** Stops (or continues) it where it is. */
  freeze(frozen: boolean): void;
  /** The end of everything. */
  end(): unknown;
}

export interface NetworkKind {
  readonly needs: readonly PeerName[];
  readonly isWritable: boolean;
  /** Arguments that a daemon or tool needs for its nodes. */
  readonly args?: readonly string[];
  /** `folder` is empty, and the server's own. */
  start(folder: string): Promise<RemoteServer>;
}

/** Files in a folder that the server serves. */
function files(root: string, options: (name: string) => Record<string, unknown>, isWritable: boolean) {
  return {
    async make(name: string, content: Buffer) {
      writeFileSync(path.join(root, name), content);
      return options(name);
    },
    place: (name: string) => (isWritable ? options(name) : null),
  };
}

function web(scheme: 'http' | 'https'): NetworkKind {
  return {
    needs: ['nginx', 'openssl'],
    isWritable: false,
    async start(folder) {
      const server = await startNginx(folder, scheme === 'https');
      const options = (name: string): Record<string, unknown> => ({
        driver: scheme,
        url: `${scheme}://127.0.0.1:${server.port}/${name}`,
        ...(scheme === 'https' && { sslverify: false }),
        'retry-delay': 50,
      });
      return { ...server, ...files(server.root, options, false), end: server.kill };
    },
  };
}

function ftp(scheme: 'ftp' | 'ftps'): NetworkKind {
  return {
    needs: ['vsftpd', 'openssl'],
    isWritable: false,
    async start(folder) {
      const server = await startVsftpd(folder, scheme === 'ftps');
      const options = (name: string): Record<string, unknown> => ({
        driver: scheme,
        url: `${scheme}://127.0.0.1:${server.port}/${name}`,
        ...(scheme === 'ftps' && { sslverify: false }),
        'retry-delay': 50,
      });
      return { ...server, ...files(server.root, options, false), end: server.kill };
    },
  };
}

export const NETWORK_KINDS = {
  http: web('http'),
  https: web('https'),
  ftp: ftp('ftp'),
  ftps: ftp('ftps'),
  s3: {
    needs: [],
    isWritable: false,
    args: ['--object', 'secret,id=key,data=S3RVER'],
    async start(folder) {
      const server = await startS3(path.join(folder, 's3'));
      return {
        async make(name, content) {
          await server.put(name, content);
          return server.options(name);
        },
        place: server.options,
        kill: server.close,
        start: server.start,
        freeze: server.freeze,
        end: server.close,
      };
    },
  },
  ssh: {
    needs: ['sshd'],
    isWritable: true,
    async start(folder) {
      const server = await startSshd(folder);
      return { ...server, ...files(folder, server.options, true), end: server.kill };
    },
  },
  iscsi: {
    needs: ['tgtd', 'libiscsi'],
    isWritable: true,
    async start(folder) {
      const server = await startTgt(folder);
      const place = { driver: 'iscsi', transport: 'tcp', portal: `127.0.0.1:${server.port}`, lun: 1 };
      return {
        async make(name, content) {
          writeFileSync(path.join(folder, name), content);
          server.addTarget(`iqn.2026-01.test:${name}`, path.join(folder, name));
          return { ...place, target: `iqn.2026-01.test:${name}` };
        },
        place: () => null,
        kill: server.kill,
        start: server.start,
        freeze: server.freeze,
        end: server.kill,
      };
    },
  },
  nfs: {
    needs: ['nfs-ganesha', 'libnfs'],
    isWritable: true,
    async start(folder) {
      const server = await startGanesha(folder);
      const options = (name: string): Record<string, unknown> => ({
        driver: 'nfs',
        server: { type: 'inet', host: '127.0.0.1' },
        path: path.join(server.share, name),
      });
      return { ...server, ...files(server.share, options, true) };
    },
  },
  rbd: {
    needs: ['ceph', 'librbd'],
    isWritable: true,
    async start(folder) {
      const ceph = await startCeph(folder);
      const place = (image: string): Record<string, unknown> => {
        return { driver: 'rbd', pool: 'rbd', image, conf: ceph.conf };
      };
      return {
        async make(name, content) {
          writeFileSync(path.join(folder, name), content);
          ceph.run('rbd', 'import', path.join(folder, name), name);
          return place(name);
        },
        place,
        // It keeps its objects in memory: it stays away for a while instead.
        kill: async () => ceph.freezeOsd(true),
        start: async () => ceph.freezeOsd(false),
        freeze: ceph.freezeOsd,
        end: ceph.kill,
      };
    },
  },
  gluster: {
    needs: ['glusterd', 'libgfapi'],
    isWritable: true,
    async start(folder) {
      const server = await startGluster(folder);
      const options = (name: string): Record<string, unknown> => ({
        ...{ driver: 'gluster', volume: server.volume, path: name, logfile: '/dev/null' },
        server: [{ type: 'unix', path: server.socket }],
      });
      return {
        ...files(server.brick, options, true),
        kill: async () => server.killBrick(),
        start: async () => server.startBrick(),
        freeze: server.freezeBrick,
        end: server.kill,
      };
    },
  },
} as const satisfies Readonly<Record<string, NetworkKind>>;

export type NetworkKindName = keyof typeof NETWORK_KINDS;
