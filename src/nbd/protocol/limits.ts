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

/** What a request counts besides its payload: its record, alignment and header room of its buffer. */
export const REQUEST_OVERHEAD = 12 * 1024;

/** First size of a connection's receive buffer: two hundred idle clients should cost little. */
export const RECEIVE_BUFFER_MIN = 8 * 1024;

/** It doubles each time a read fills it, up to this: about what a UNIX socket holds. */
export const RECEIVE_BUFFER_MAX = 256 * 1024;

/** A write request whose missing payload is at least this long is received straight into its own buffer. */
export const DIRECT_RECEIVE_MIN = 16 * 1024;

/**
 * A read of at least this length is sent before the next one is read, by the pages of the file where those may be lent.
 * Shorter ones cost less together.
 */
export const STRAIGHT_READ_MIN = 48 * 1024;

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

// ---- the client ----------------------------------------------------------------------------------------------

/** Longest payload of a request to a server that names no limit, and the longest ever used. */
export const DEFAULT_MAX_PAYLOAD = MAX_PAYLOAD;

/** Longest payload of an option reply: two of the protocol's longest strings and their lengths fit. */
export const CLIENT_MAX_REPLY_BYTES = 8192 - 24;

/** Most replies to one option: a server may have this many exports. */
export const CLIENT_MAX_REPLIES = 100_000;

/** Largest export: what the protocol's signed file offsets reach is more than a number holds exactly. */
export const CLIENT_MAX_SIZE_BYTES = Number.MAX_SAFE_INTEGER;

/** How long a server may take for its part of the handshake, in milliseconds. */
export const CLIENT_HANDSHAKE_MAX_MS = 30_000;

/** Requests of a client under way on one connection; further ones wait for a place. */
export const CLIENT_MAX_REQUESTS = 256;

/** Connections of a client to a server that promises that several see the same data. */
export const CLIENT_MAX_CONNECTIONS = 4;

/** Longest chunk without data of a read: a text, or extents, of which one is looked at. */
export const CLIENT_MAX_CHUNK_BYTES = 1024 * 1024;

/** Most error chunks in one answer. */
export const CLIENT_MAX_ERROR_CHUNKS = 1024;

/** How long a server may take to read that we leave, in milliseconds. */
export const CLIENT_CLOSE_MAX_MS = 1000;

/** Requests on one connection from which another one is opened, if the server promises to allow that. */
export const CLIENT_CONNECTION_LOAD = 24;

/** How long one more connection may take: without it the work goes on as well. */
export const CLIENT_EXTRA_CONNECT_MAX_MS = 2000;

/** Connections that may break the protocol under a request before it is taken for the cause. */
export const CLIENT_MAX_SPOILT = 4;

/** Pauses between attempts to connect, in milliseconds: the first, doubled with each, and the longest. */
export const CLIENT_RETRY_MIN_MS = 100;
export const CLIENT_RETRY_MAX_MS = 1000;
