/**
 * Tables of what fio found: requests a second, and CPU microseconds a request, which is what a server is judged by.
 *
 * A fast server makes the client the limit, and then requests a second say how fast the client is. Such rows are
 * marked; their CPU figures hold.
 */

import { type Figures, ratio, thousands } from './fio.ts';
import { markdownTable, median } from './measure.ts';

/** From this share of its processor on the client counts as the limit. */
const CLIENT_LIMIT = 0.9;

/** Row name -> server name -> what each round found. */
export class FiguresTable {
  readonly #rows = new Map<string, Map<string, Figures[]>>();

  add(row: string, server: string, figures: Figures): void {
    const servers = this.#rows.get(row) ?? new Map<string, Figures[]>();
    servers.set(server, [...(servers.get(server) ?? []), figures]);
    this.#rows.set(row, servers);
  }

  /** Median of one figure; NaN where the server was not measured. */
  median(row: string, server: string, figure: (each: Figures) => number): number {
    return median((this.#rows.get(row)?.get(server) ?? []).map(figure));
  }

  /** Everything, for --json. */
  toJSON(): unknown {
    return Object.fromEntries([...this.#rows].map(([row, servers]) => [row, Object.fromEntries(servers)]));
  }

  get #serverNames(): string[] {
    return [...new Set([...this.#rows.values()].flatMap((servers) => [...servers.keys()]))];
  }

  /**
   * Both tables and the line that explains the mark. `ours` is compared with the better of the servers whose name begins
   * with 'qemu', and with every one of `others`.
   */
  format(ours: string, others: readonly string[]): string {
    const servers = this.#serverNames;
    const requests = this.#format('requests a second (median)', servers, ours, others, {
      value: ({ requestsPerSecond }) => requestsPerSecond,
      cell: (row, server) => {
        const mark = this.median(row, server, (each) => each.clientShare) >= CLIENT_LIMIT ? ' *' : '';
        return `${thousands(this.median(row, server, (each) => each.requestsPerSecond))}${mark}`;
      },
      higherIsBetter: true,
    });
    const cpu = this.#format('server CPU us a request: user + kernel', servers, ours, others, {
      value: ({ userUs, kernelUs }) => userUs + kernelUs,
      cell: (row, server) => {
        const of = (figure: (each: Figures) => number): string => this.median(row, server, figure).toFixed(1);
        return this.#rows.get(row)?.has(server)
          ? `${of(({ userUs, kernelUs }) => userUs + kernelUs)} (${of((each) => each.userUs)} + ${of((each) => each.kernelUs)})`
          : '-';
      },
      higherIsBetter: false,
    });
    const client = servers.map((server) => {
      const shares = [...this.#rows.keys()].map((row) =>
        this.median(row, server, (each) => each.clientShare),
      );
      return `${server} ${Math.round(Math.max(...shares.filter(Number.isFinite)) * 100)} %`;
    });
    return (
      `${requests}\n\n${cpu}\n\n` +
      `*: the client used ${CLIENT_LIMIT * 100} % of its processor or more, and was the limit: CPU a request is the ` +
      `measure there. Its largest share: ${client.join(', ')}.\n`
    );
  }

  #format(
    title: string,
    servers: readonly string[],
    ours: string,
    others: readonly string[],
    column: {
      readonly value: (each: Figures) => number;
      readonly cell: (row: string, server: string) => string;
      readonly higherIsBetter: boolean;
    },
  ): string {
    const { value, cell, higherIsBetter } = column;
    const compares = servers.includes(ours);
    const shown = compares ? others.filter((other) => servers.includes(other)) : [];
    const header = [
      title,
      ...servers,
      ...(compares ? ['to best qemu'] : []),
      ...shown.map((other) => `to ${other}`),
    ];
    const better = (us: number, them: number): string => (higherIsBetter ? ratio(us, them) : ratio(them, us));
    const rows = [...this.#rows.keys()].map((row) => {
      const us = this.median(row, ours, value);
      const qemu = servers
        .filter((server) => server.startsWith('qemu'))
        .map((server) => this.median(row, server, value))
        .filter(Number.isFinite);
      const best = higherIsBetter ? Math.max(...qemu) : Math.min(...qemu);
      return [
        row,
        ...servers.map((server) => cell(row, server)),
        ...(compares ? [better(us, best)] : []),
        ...shown.map((other) => better(us, this.median(row, other, value))),
      ];
    });
    return markdownTable(header, rows);
  }
}
