/** Errors of the public API: our stable code decides the HTTP status, the public code is the one Databricks clients know. */
import { type ErrorCode, LakebaseError } from '@lakebase/base';

export type PublicCode =
  | 'INVALID_PARAMETER_VALUE'
  | 'BAD_REQUEST'
  | 'UNAUTHENTICATED'
  | 'PERMISSION_DENIED'
  | 'NOT_FOUND'
  | 'ALREADY_EXISTS'
  | 'RESOURCE_CONFLICT'
  | 'QUOTA_EXCEEDED'
  | 'RESOURCE_EXHAUSTED'
  | 'TEMPORARILY_UNAVAILABLE'
  | 'DEADLINE_EXCEEDED'
  | 'NOT_IMPLEMENTED'
  | 'INTERNAL_ERROR'
  | 'ENDPOINT_NOT_FOUND';

const PUBLIC_CODE: Readonly<Record<ErrorCode, PublicCode>> = {
  INVALID_LSN: 'INVALID_PARAMETER_VALUE',
  INVALID_ID: 'INVALID_PARAMETER_VALUE',
  INVALID_ARGUMENT: 'INVALID_PARAMETER_VALUE',
  UNAUTHENTICATED: 'UNAUTHENTICATED',
  PERMISSION_DENIED: 'PERMISSION_DENIED',
  NOT_FOUND: 'NOT_FOUND',
  ALREADY_EXISTS: 'ALREADY_EXISTS',
  CONFLICT: 'RESOURCE_CONFLICT',
  FENCED: 'RESOURCE_CONFLICT',
  UNAVAILABLE: 'TEMPORARILY_UNAVAILABLE',
  TIMEOUT: 'DEADLINE_EXCEEDED',
  CORRUPT: 'INTERNAL_ERROR',
  UNSUPPORTED: 'NOT_IMPLEMENTED',
  RESOURCE_EXHAUSTED: 'RESOURCE_EXHAUSTED',
  CLOSED: 'TEMPORARILY_UNAVAILABLE',
  KEY_REVOKED: 'PERMISSION_DENIED',
  CONFIG: 'INTERNAL_ERROR',
  INTERNAL: 'INTERNAL_ERROR',
};

export interface PublicErrorBody {
  readonly error_code: PublicCode;
  readonly message: string;
  readonly details: readonly unknown[];
}

export class ApiError extends LakebaseError {
  readonly publicCode: PublicCode;
  readonly details: readonly unknown[];

  constructor(code: ErrorCode, publicCode: PublicCode, message: string, details: readonly unknown[] = []) {
    super(code, message);
    this.publicCode = publicCode;
    this.details = details;
  }
}

export const invalid = (message: string): ApiError => new ApiError('INVALID_ARGUMENT', 'INVALID_PARAMETER_VALUE', message);
export const badRequest = (message: string, details: readonly unknown[] = []): ApiError =>
  new ApiError('INVALID_ARGUMENT', 'BAD_REQUEST', message, details);
export const notFound = (message: string): ApiError => new ApiError('NOT_FOUND', 'NOT_FOUND', message);

/** Marker by which declarative clients recognise an object that goes away with its parent, and swallow the error. */
export const managedByParent = {
  '@type': 'type.googleapis.com/google.rpc.ErrorInfo',
  reason: 'RESOURCE_CONFLICT',
  domain: 'databricks.com',
  metadata: { declarative_context: 'MANAGED_BY_PARENT' },
};

export function publicError(error: LakebaseError): PublicErrorBody {
  if (error instanceof ApiError) return { error_code: error.publicCode, message: error.message, details: error.details };
  return { error_code: PUBLIC_CODE[error.code], message: error.message, details: [] };
}
