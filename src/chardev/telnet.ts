/**
 * The little of telnet (RFC 854) that a monitor needs: the options a server announces, and taking the commands of
 * the client out of its input.
 */

const IAC = 255;
const DONT = 254;
const SB = 250;
const SE = 240;
const EOR = 239;
const WILL = 251;

const ECHO = 1;
const SUPPRESS_GO_AHEAD = 3;
const BINARY = 0;
const DO = 253;
const TERMINAL_TYPE = 24;
const END_OF_RECORD = 25;
const SEND = 1;

/** Sent to a client at once: we echo, we never go half duplex, both directions are binary. */
const TELNET = [IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, WILL, BINARY, IAC, DO, BINARY];

/** Sent to a client of tn3270 (RFC 1576): records have ends, both directions are binary; which terminal is it? */
const TN3270 = [
  ...[IAC, DO, END_OF_RECORD, IAC, WILL, END_OF_RECORD],
  ...[IAC, DO, BINARY, IAC, WILL, BINARY],
  ...[IAC, DO, TERMINAL_TYPE, IAC, SB, TERMINAL_TYPE, SEND, IAC, SE],
];

/** Commands that are the terminal's. */
const TERMINAL_COMMANDS: readonly number[] = [EOR, SB, SE];

export const TELNET_GREETINGS = { telnet: Buffer.from(TELNET), tn3270: Buffer.from(TN3270) } as const;

/**
 * A filter over the input of one connection: data in, data without telnet commands out. In tn3270 ends of records and
 * subnegotiations stay in, as with the original: they are the terminal's.
 */
export function telnetFilter(kind: keyof typeof TELNET_GREETINGS): (data: Buffer) => Buffer {
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
          if (kind === 'tn3270' && TERMINAL_COMMANDS.includes(byte)) kept.push(IAC, byte);
          state = byte === SB && kind === 'telnet' ? 'sub' : byte >= WILL && byte <= DONT ? 'option' : 'data';
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
