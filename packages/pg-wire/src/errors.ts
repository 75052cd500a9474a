/** Errors of the wire layer. A malformed byte stream is a {@link ProtocolError}; an error report of the other side is a {@link PgError}.
 *  Both are LakebaseErrors, so callers that only switch on the code need not know this package. */
import { type ErrorCode, LakebaseError } from '@lakebase/base';

/** The peer broke the protocol: the connection is of no further use. */
export class ProtocolError extends LakebaseError {
  readonly sqlstate: string;
  constructor(message: string, sqlstate = '08P01') {
    super('INVALID_ARGUMENT', message);
    this.sqlstate = sqlstate;
  }
}

export type Severity = 'ERROR' | 'FATAL' | 'PANIC' | 'WARNING' | 'NOTICE' | 'DEBUG' | 'INFO' | 'LOG';

/** The fields of ErrorResponse and NoticeResponse that we use; the letters are those of the protocol. */
export interface ErrorFields {
  readonly severity: Severity;
  /** SQLSTATE, five characters. */
  readonly sqlstate: string;
  readonly message: string;
  readonly detail?: string | undefined;
  readonly hint?: string | undefined;
}

/** An ErrorResponse, received or to be sent. */
export class PgError extends LakebaseError {
  readonly fields: ErrorFields;
  constructor(fields: ErrorFields, options?: { cause?: unknown }) {
    super(codeOfSqlstate(fields.sqlstate), fields.message, options);
    this.fields = fields;
  }
  get sqlstate(): string {
    return this.fields.sqlstate;
  }
}

export const fatal = (sqlstate: string, message: string, more: { detail?: string; hint?: string } = {}): PgError =>
  new PgError({ severity: 'FATAL', sqlstate, message, ...more });

export function codeOfSqlstate(sqlstate: string): ErrorCode {
  switch (sqlstate.slice(0, 2)) {
    case '08':
    case '57':
      return 'UNAVAILABLE';
    case '28':
      return 'UNAUTHENTICATED';
    case '53':
      return 'RESOURCE_EXHAUSTED';
    case '0A':
      return 'UNSUPPORTED';
    case 'XX':
      return 'INTERNAL';
    default:
      break;
  }
  if (sqlstate === '42501') return 'PERMISSION_DENIED';
  if (sqlstate === '3D000' || sqlstate === '42704' || sqlstate === '42P01') return 'NOT_FOUND';
  return 'INVALID_ARGUMENT';
}

const SQLSTATE_OF_CODE: Partial<Record<ErrorCode, string>> = {
  INVALID_ARGUMENT: '22023',
  INVALID_LSN: '22023',
  INVALID_ID: '22023',
  UNAUTHENTICATED: '28000',
  PERMISSION_DENIED: '42501',
  NOT_FOUND: '42704',
  ALREADY_EXISTS: '42710',
  CONFLICT: '55000',
  FENCED: '55000',
  UNAVAILABLE: '57P03',
  TIMEOUT: '57P03',
  CLOSED: '57P01',
  UNSUPPORTED: '0A000',
  RESOURCE_EXHAUSTED: '53000',
};

/** What to tell a client about any error of ours. Messages of LakebaseErrors are for people; anything else stays in the log. */
export function errorFieldsOf(error: unknown, severity: Severity = 'ERROR'): ErrorFields {
  if (error instanceof PgError) return error.fields;
  if (error instanceof ProtocolError) return { severity, sqlstate: error.sqlstate, message: error.message };
  if (error instanceof LakebaseError) return { severity, sqlstate: SQLSTATE_OF_CODE[error.code] ?? 'XX000', message: error.message };
  return { severity, sqlstate: 'XX000', message: 'internal error; see the service log' };
}
