/** How growing images of Bochs are known by their first bytes. */

const MAGIC = 'Bochs Virtual HD Image';

function textAt(start: Buffer, at: number, bytes: number): string {
  const text = start.toString('latin1', at, at + bytes);
  const end = text.indexOf('\0');
  return end < 0 ? text : text.slice(0, end);
}

/** 0..100: how sure it is that an image starting with `start` is one. */
export function probeBochs(start: Buffer): number {
  if (start.length < 512) return 0;
  const version = start.readUInt32LE(64);
  const isGrowing =
    textAt(start, 0, 32) === MAGIC &&
    textAt(start, 32, 16) === 'Redolog' &&
    textAt(start, 48, 16) === 'Growing';
  return isGrowing && (version === 0x10000 || version === 0x20000) ? 100 : 0;
}
