/** Quantities and names as people read them. */

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'] as const;

/** Three digits, as far as they say anything. */
function threeDigits(value: number): string {
  if (value >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(value >= 10 ? 1 : 2);
}

/** 1536 is "1.50 KiB". */
export function formatBytes(bytes: number): string {
  let value = Math.abs(bytes);
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${bytes < 0 ? '-' : ''}${threeDigits(value)} ${UNITS[unit]}`;
}

/** 12345 is "12.3k". */
export function formatCount(count: number): string {
  if (count < 1000) return count < 10 && !Number.isInteger(count) ? count.toFixed(1) : count.toFixed(0);
  if (count < 1e6) return `${threeDigits(count / 1000)}k`;
  return `${threeDigits(count / 1e6)}M`;
}

/** Microseconds as "85 us", "1.20 ms", "3.00 s". */
export function formatMicroseconds(us: number): string {
  if (us < 1000) return `${threeDigits(Math.round(us))} us`;
  if (us < 1e6) return `${threeDigits(us / 1000)} ms`;
  return `${threeDigits(us / 1e6)} s`;
}

/** Seconds as "12 s", "3 min 5 s", "2 h 10 min". */
export function formatDuration(seconds: number): string {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** The time of day of an event. */
export function formatTime(timeMs: number): string {
  const date = new Date(timeMs);
  const two = (value: number): string => String(value).padStart(2, '0');
  const ms = String(date.getMilliseconds()).padStart(3, '0');
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${ms}`;
}

/** Characters that are not seen, or that turn the direction of what is around them. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** A stranger's text with what would not be seen written out: two names that look alike are told apart. */
export function shown(text: string): string {
  return text.replace(
    UNSEEN,
    (character) => `<U+${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}>`,
  );
}

const SIZE = /^([+-]?\d+(?:\.\d+)?)\s*([kmgtpe])?i?b?$/i;

/** Reads "64k", "1.5G", "512" as a whole number; null when it is none that can be said exactly. */
export function parseWhole(text: string): number | null {
  const match = SIZE.exec(text.trim());
  if (match === null) return null;
  const power = match[2] === undefined ? 0 : 'kmgtpe'.indexOf(match[2].toLowerCase()) + 1;
  const value = Number(match[1]) * 1024 ** power;
  return Number.isSafeInteger(value) ? value : null;
}
