/** Every error that crosses a process or reaches a person has a stable code. The code names the reaction, not the place. */

export const ERROR_CODES = {
  INVALID_LSN: 'the text or number is not a log sequence number',
  INVALID_ID: 'an id does not match its pattern',
  INVALID_ARGUMENT: 'the request is malformed; do not retry it unchanged',
  UNAUTHENTICATED: 'the caller gave no valid credential',
  PERMISSION_DENIED: 'the caller may not do this',
  NOT_FOUND: 'no such object',
  ALREADY_EXISTS: 'an object of that name exists',
  CONFLICT: 'the object is in a state that does not allow this now',
  FENCED: 'a newer term exists: this caller must stop',
  UNAVAILABLE: 'a needed service does not answer; retry later',
  TIMEOUT: 'a deadline passed; retry later',
  CORRUPT: 'bytes on disk or wire failed a check; the message names the file or record',
  UNSUPPORTED: 'a legal input this version does not handle yet',
  RESOURCE_EXHAUSTED: 'a limit was reached: disk, memory or connections',
  CLOSED: 'the object is closed or shutting down',
  KEY_REVOKED: "the project's customer-managed key may not be used: revoked, shredded, or unreachable longer than its grace",
  CONFIG: 'the configuration is wrong; the message says which key and what to do',
  INTERNAL: 'a defect of ours',
} as const;

export type ErrorCode = keyof typeof ERROR_CODES;

export class LakebaseError extends Error {
  override readonly name = 'LakebaseError';
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}

export const isCode = (error: unknown, code: ErrorCode): error is LakebaseError => error instanceof LakebaseError && error.code === code;

/** HTTP status for each code; one table for all our HTTP surfaces. */
export const HTTP_STATUS: Readonly<Record<ErrorCode, number>> = {
  INVALID_LSN: 400,
  INVALID_ID: 400,
  INVALID_ARGUMENT: 400,
  UNAUTHENTICATED: 401,
  PERMISSION_DENIED: 403,
  NOT_FOUND: 404,
  ALREADY_EXISTS: 409,
  CONFLICT: 409,
  FENCED: 412,
  UNAVAILABLE: 503,
  TIMEOUT: 504,
  CORRUPT: 500,
  UNSUPPORTED: 501,
  RESOURCE_EXHAUSTED: 429,
  CLOSED: 503,
  KEY_REVOKED: 403,
  CONFIG: 500,
  INTERNAL: 500,
};
