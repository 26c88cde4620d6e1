/** What a client needs of a connection: texts out, complete messages in. Sockets are node.ts, web pages web.ts. */

/** Called by the transport; never after `closed`. */
export interface TransportUser {
  /** One JSON value as text. */
  message(text: string): void;
  /** The connection has ended; `error` is null when one side closed it. */
  closed(error: Error | null): void;
}

export interface Transport {
  send(text: string): void;
  /** Ends the connection; `closed` follows. */
  close(): void;
}

/** Opens a connection; rejects when nobody answers or the signal is aborted. */
export type Connect = (user: TransportUser, signal: AbortSignal) => Promise<Transport>;

/** Cuts a stream of lines into messages. Each character is looked at once, however the stream is cut. */
export function createLineSplitter(message: (line: string) => void): (chunk: string) => void {
  let parts: string[] = [];
  return (chunk) => {
    let start = 0;
    for (let end = chunk.indexOf('\n'); end >= 0; end = chunk.indexOf('\n', start)) {
      parts.push(chunk.slice(start, end));
      const line = parts.join('').trim();
      parts = [];
      start = end + 1;
      if (line !== '') message(line);
    }
    if (start < chunk.length) parts.push(chunk.slice(start));
  };
}
