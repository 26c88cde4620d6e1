/**
 * The little of telnet (RFC 854) that a monitor needs: the options a server announces, and taking the commands of
 * the client out of its input.
 */

const IAC = 255;
const DONT = 254;
const SB = 250;
const SE = 240;
const WILL = 251;

const ECHO = 1;
const SUPPRESS_GO_AHEAD = 3;
const BINARY = 0;
const DO = 253;

/** Sent to a client at once: we echo, we never go half duplex, both directions are binary. */
export const TELNET_GREETING = Buffer.from([
  IAC,
  WILL,
  ECHO,
  IAC,
  WILL,
  SUPPRESS_GO_AHEAD,
  IAC,
  WILL,
  BINARY,
  IAC,
  DO,
  BINARY,
]);

/** A filter over the input of one connection: data in, data without telnet commands out. */
export function telnetFilter(): (data: Buffer) => Buffer {
  // Where the parser is: in data, after IAC, before the option of a command, in a subnegotiation, after IAC in one.
  let state: 'data' | 'command' | 'option' | 'sub' | 'sub-command' = 'data';
  return (data) => {
    const kept: number[] = [];
    for (const byte of data) {
      switch (state) {
        case 'data':
          if (byte === IAC) state = 'command';
          else kept.push(byte);
          break;
        case 'command':
          if (byte === IAC) kept.push(byte); // a doubled IAC is the byte itself
          state = byte === SB ? 'sub' : byte >= WILL && byte <= DONT ? 'option' : 'data';
          break;
        case 'option':
          state = 'data';
          break;
        case 'sub':
          if (byte === IAC) state = 'sub-command';
          break;
        case 'sub-command':
          state = byte === SE ? 'data' : 'sub';
          break;
      }
    }
    return Buffer.from(kept);
  };
}
