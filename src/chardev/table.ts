/**
 * The character devices by name: creation, replacement and removal.
 *
 * Here: the table and the choice of the backend. Not here: what the backends do, and the commands
 * (src/commands/char.ts).
 */

import type {
  ChardevBackend as BackendOptions,
  ChardevBackendKind,
  ChardevReturn,
} from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import type { QomObject } from '../objects/qom.ts';
import type { ObjectTree } from '../objects/tree.ts';
import type { ChardevBackend } from './backend.ts';
import { Chardev, openLogFile } from './chardev.ts';
import { isMux, openMux } from './mux.ts';
import { openNull } from './null.ts';
import { openRingbuf } from './ringbuf.ts';
import { openSocket } from './socket.ts';

export interface ChardevTableSettings {
  /** The process has no terminal and no standard streams of its own. */
  readonly daemonized: boolean;
  /** Tells the log or standard error of trouble that no command reports. */
  readonly warn: (message: string) => void;
  /** Ends the daemon: there is a key for that in multiplexers. */
  readonly requestShutdown: () => void;
}

/** How a device is made: on behalf of a command, or from the command line. */
export interface CreateSettings {
  /** Inherited file descriptors may be named: by whoever starts the daemon. */
  readonly allowInheritedFd?: boolean;
}

export const CHARDEV_BACKEND_KINDS: readonly ChardevBackendKind[] = [
  'mux',
  'pipe',
  'null',
  'ringbuf',
  'stdio',
  'socket',
  'file',
  'memory',
  'udp',
  'pty',
  'hub',
  'serial',
  'parallel',
];

export class ChardevTable {
  readonly #objects: ObjectTree;
  readonly #settings: ChardevTableSettings;
  readonly #devices = new Map<string, Chardev>();
  /** Names of devices that are being made. */
  readonly #reserved = new Set<string>();
  readonly #aborted: Promise<never>;
  #abort: () => void = () => undefined;
  #stdioTaken = false;

  constructor(objects: ObjectTree, settings: ChardevTableSettings) {
    this.#objects = objects;
    this.#settings = settings;
    this.#aborted = new Promise((_resolve, reject) => {
      this.#abort = () => reject(new BlockError('the daemon ends'));
    });
    this.#aborted.catch(() => undefined); // mostly nobody waits
  }

  /** The device, or null. */
  find(id: string): Chardev | null {
    return this.#devices.get(id) ?? null;
  }

  has(id: string): boolean {
    return this.#devices.has(id) || this.#reserved.has(id);
  }

  /** All devices, oldest first. */
  list(): readonly Chardev[] {
    return [...this.#devices.values()];
  }

  /** Makes a device. The id must be free: callers check, since they report it in different words. */
  async add(id: string, options: BackendOptions, settings: CreateSettings = {}): Promise<ChardevReturn> {
    this.#reserved.add(id);
    try {
      const { backend, logFd } = await this.#open(id, options, settings);
      this.#devices.set(id, new Chardev(id, backend, logFd, options.data.logtimestamp === true));
      this.#objects.publish('chardevs', id, qomObject(backend));
      return backend.pty === undefined ? {} : { pty: backend.pty };
    } finally {
      this.#reserved.delete(id);
    }
  }

  /** The device, if its backend may be replaced. */
  checkChange(id: string): Chardev {
    const device = this.#devices.get(id);
    if (device === undefined) throw new BlockError(`Chardev '${id}' does not exist`);
    if (isMux(device.backend)) throw new BlockError('Mux device hotswap not supported yet');
    if (device.inUse) throw new BlockError('Chardev user does not support chardev hotswap');
    return device;
  }

  /** Replaces the backend of a device that nobody uses. When that fails the device stays as it was. */
  async change(id: string, options: BackendOptions): Promise<ChardevReturn> {
    this.checkChange(id);
    const { backend, logFd } = await this.#open(id, options, {});
    try {
      // Somebody may have come, or the device may have gone, while the new backend was opened.
      const device = this.checkChange(id);
      this.#release(device.backend);
      device.replaceBackend(backend, logFd, options.data.logtimestamp === true);
    } catch (error) {
      this.#release(backend);
      backend.close();
      throw error;
    }
    this.#objects.replace('chardevs', id, qomObject(backend));
    return backend.pty === undefined ? {} : { pty: backend.pty };
  }

  remove(id: string): void {
    const device = this.#devices.get(id);
    if (device === undefined) throw new BlockError(`Chardev '${id}' not found`);
    if (device.inUse) throw new BlockError(`Chardev '${id}' is busy`);
    this.#delete(device);
  }

  /** Closes every device, used or not: the daemon ends. */
  closeAll(): void {
    this.#abort();
    for (const device of this.list()) this.#delete(device);
  }

  #delete(device: Chardev): void {
    this.#devices.delete(device.id);
    this.#objects.withdraw('chardevs', device.id);
    this.#release(device.backend);
    device.close();
  }

  #release(backend: ChardevBackend): void {
    if (backend.kind === 'stdio') this.#stdioTaken = false;
  }

  async #open(
    id: string,
    options: BackendOptions,
    settings: CreateSettings,
  ): Promise<{ backend: ChardevBackend; logFd: number | null }> {
    const backend = await this.#openBackend(id, options, settings);
    try {
      return { backend, logFd: openLogFile(options.data) };
    } catch (error) {
      this.#release(backend);
      backend.close();
      throw error;
    }
  }

  /** The kinds that most runs can do without are loaded when first wanted. */
  async #openBackend(id: string, options: BackendOptions, settings: CreateSettings): Promise<ChardevBackend> {
    switch (options.type) {
      case 'null':
        return openNull();
      case 'mux':
        return this.#openMux(options.data.chardev);
      case 'ringbuf':
      case 'memory':
        return openRingbuf(options.data, options.type);
      case 'socket':
        return openSocket(options.data, {
          id,
          objects: this.#objects,
          warn: this.#settings.warn,
          allowInheritedFd: settings.allowInheritedFd ?? false,
          aborted: this.#aborted,
        });
      case 'stdio':
        return this.#openStdio(options.data);
      case 'file':
        return (await import('./files.ts')).openFile(options.data);
      case 'pipe':
        return (await import('./files.ts')).openPipe(options.data);
      case 'pty':
        return (await import('./files.ts')).openPty(options.data);
      case 'serial':
        return (await import('./files.ts')).openSerial(options.data);
      case 'parallel':
        return (await import('./files.ts')).openParallel(options.data);
      case 'hub':
        return this.#openHub(options.data.chardevs);
      case 'udp':
        return (await import('./udp.ts')).openUdp(options.data);
    }
  }

  #openMux(baseId: string): ChardevBackend {
    const base = this.#devices.get(baseId);
    if (base === undefined) throw new BlockError(`mux: base chardev ${baseId} not found`);
    if (base.inUse) throw new BlockError(`Device '${baseId}' is in use`);
    return openMux(base, this.#settings.requestShutdown);
  }

  async #openHub(ids: readonly string[]): Promise<ChardevBackend> {
    const { openHub } = await import('./hub.ts');
    const devices = ids.map((id) => {
      const device = this.#devices.get(id);
      if (device === undefined) throw new BlockError(`hub: base chardev '${id}' not found`);
      return device;
    });
    return openHub(devices);
  }

  /** Whether a device uses the process's standard input and output. */
  get usesStdio(): boolean {
    return this.#stdioTaken;
  }

  async #openStdio(options: Extract<BackendOptions, { type: 'stdio' }>['data']): Promise<ChardevBackend> {
    if (this.#settings.daemonized) throw new BlockError('cannot use stdio with -daemonize');
    if (this.#stdioTaken) throw new BlockError('cannot use stdio by multiple character devices');
    this.#stdioTaken = true;
    return (await import('./stdio.ts')).openStdio(options);
  }
}

function qomObject({ typeName, accessors }: ChardevBackend): QomObject {
  return { typeName, accessors };
}
