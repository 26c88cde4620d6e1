/** Rows of the tables of `npm run bench:network`: ours and the original's side by side. */

/** What was measured of one side. */
export interface Side {
  /** The larger the better: MiB or requests a second. */
  readonly speed: number;
  /** CPU time, as it is to be printed. */
  readonly cpu: string;
}

/** A row, which is also told on standard error at once: a run takes long. */
export function sideBySide(name: string, ours: Side, theirs: Side): string[] {
  const row = [
    name,
    ours.speed.toFixed(0),
    theirs.speed.toFixed(0),
    `${(ours.speed / theirs.speed).toFixed(2)}x`,
    ours.cpu,
    theirs.cpu,
  ];
  process.stderr.write(`${row.join('  ')}\n`);
  return row;
}
