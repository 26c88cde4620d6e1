/**
 * Every limit of the NBD code, with its reason. Sizes in bytes.
 */

/** Longest payload of READ, WRITE and CACHE: advertised in NBD_INFO_BLOCK_SIZE, as the original does. */
export const MAX_PAYLOAD = 32 * 1024 * 1024;

/** Longest option payload: beyond it the connection is closed. Payloads are parsed as they arrive, never stored. */
export const MAX_OPTION_LENGTH = 32 * 1024 * 1024;

/**
 * What the requests of one connection may occupy from their arrival until their reply has been sent. Reading stops
 * above it, so this is also what a client that never reads its replies can hold. Room for two of the largest
 * requests, and for more than 5,000 of the smallest.
 */
export const MAX_IN_FLIGHT_BYTES = 2 * MAX_PAYLOAD;

/**
 * The same over all connections of a server. Above it a connection may have one request at a time, so that many
 * greedy clients cannot take all memory, and no client is starved by others.
 */
export const MAX_TOTAL_IN_FLIGHT_BYTES = 512 * 1024 * 1024;

/** What a request counts besides its payload: its record, alignment and header room of its buffer. */
export const REQUEST_OVERHEAD = 12 * 1024;

/** First size of a connection's receive buffer: two hundred idle clients should cost little. */
export const RECEIVE_BUFFER_MIN = 8 * 1024;

/** It doubles each time a read fills it, up to this: about what a UNIX socket holds. */
export const RECEIVE_BUFFER_MAX = 256 * 1024;

/** A write request whose missing payload is at least this long is received straight into its own buffer. */
export const DIRECT_RECEIVE_MIN = 16 * 1024;

/** Most segments of one write to a socket: IOV_MAX of Linux. */
export const MAX_REPLY_SEGMENTS = 1024;

/** Most extents in one BLOCK_STATUS reply per context: a reply of 1 MiB with compact headers. */
export const MAX_EXTENTS = (1024 * 1024) / 8;

/** Freed request buffers kept for reuse, over all connections of a server. */
export const POOL_MAX_FREE_BYTES = 64 * 1024 * 1024;

/** How often unused buffers of the pool are given back, in milliseconds. */
export const POOL_TRIM_INTERVAL_MS = 5000;

/** Connections the kernel queues until they are accepted: room for many clients that start at once. */
export const LISTEN_BACKLOG = 1024;

/** Connections that wait for a free place above max-connections; further ones are refused. */
export const MAX_WAITING_CONNECTIONS = 128;

/** Defaults of nbd-server-start. */
export const DEFAULT_MAX_CONNECTIONS = 100;
export const DEFAULT_HANDSHAKE_MAX_SECONDS = 10;
