/** Where decompressed LZFSE and LZVN data goes: literals and matches, with checks that they stay inside. */

export class DamagedStream extends Error {}

export function damaged(): DamagedStream {
  return new DamagedStream('damaged LZFSE stream');
}

/** What has been decompressed so far. */
export interface Sink {
  readonly out: Buffer;
  at: number;
}

/** Copies `length` bytes from `distance` bytes before the end; the ranges may overlap. */
export function copyMatch(sink: Sink, distance: number, length: number): void {
  const { out, at } = sink;
  if (distance < 1 || distance > at || at + length > out.length) throw damaged();
  if (distance >= length) out.copyWithin(at, at - distance, at - distance + length);
  else for (let i = 0; i < length; i++) out[at + i] = out[at + i - distance]!;
  sink.at += length;
}

export function copyLiterals(sink: Sink, from: Buffer, start: number, length: number): void {
  if (start + length > from.length || sink.at + length > sink.out.length) throw damaged();
  from.copy(sink.out, sink.at, start, start + length);
  sink.at += length;
}
