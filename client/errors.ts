/** What a client's calls fail with. */

/** The daemon's answer to a command is an error. */
export class QmpError extends Error {
  /** GenericError, CommandNotFound, DeviceNotActive, DeviceNotFound or KVMMissingCap. */
  readonly errorClass: string;
  readonly command: string;

  constructor(command: string, errorClass: string, description: string) {
    super(description);
    this.name = 'QmpError';
    this.command = command;
    this.errorClass = errorClass;
  }
}

/** The connection ended before the answer came: whether the command was carried out is not known. */
export class ConnectionLostError extends Error {
  constructor(message = 'The connection to the daemon was lost') {
    super(message);
    this.name = 'ConnectionLostError';
  }
}

/** A job ended with an error, or was cancelled. */
export class JobError extends Error {
  readonly jobId: string;
  readonly cancelled: boolean;

  constructor(jobId: string, message: string, cancelled: boolean) {
    super(`Job '${jobId}': ${message}`);
    this.name = 'JobError';
    this.jobId = jobId;
    this.cancelled = cancelled;
  }
}
