/** What Google Cloud errors mean: the canonical status, refined by the reason of its details and, where Google puts nothing else, its text. */
import { type ErrorMeaning, type ErrorTable, KmsError, badAnswer, meaningToError, networkError } from './errors.ts';

const CREDENTIAL =
  "the key manager's own Google credential is not accepted; renew the service account key or the workload identity. Counts as unreachable: the customer has denied nothing";
const RETRY = 'Cloud KMS cannot serve the call now; retried';
const ROLE = 'roles/cloudkms.cryptoKeyEncrypterDecrypter (and cloudkms.cryptoKeys.get, as in roles/cloudkms.viewer)';

/** Canonical status → meaning; finer ones are below. */
export const GOOGLE_ERRORS: ErrorTable = {
  FAILED_PRECONDITION: [
    'DENIED',
    'the key version is not enabled (disabled, scheduled for destruction or destroyed); enable or restore it',
  ],
  PERMISSION_DENIED: [
    'DENIED',
    `permission is missing: grant the key manager's service account ${ROLE} on the key, and check IAM conditions and VPC Service Controls`,
  ],
  NOT_FOUND: ['DENIED', 'there is no such key or key version; it was destroyed with its project, or the name is wrong'],
  UNAUTHENTICATED: ['UNAUTHENTICATED', CREDENTIAL],
  INVALID_ARGUMENT: [
    'INVALID',
    'Cloud KMS refuses the request; is the purpose of the key ENCRYPT_DECRYPT, and is this the name of a key (projects/…/cryptoKeys/…)?',
  ],
  OUT_OF_RANGE: ['INVALID', 'Cloud KMS refuses the request'],
  UNIMPLEMENTED: ['INVALID', 'this endpoint does not offer Cloud KMS, or not for this key'],
  RESOURCE_EXHAUSTED: [
    'UNREACHABLE',
    'the request quota of Cloud KMS is used up; retried. Raise the quota of cryptographic requests if it stays so',
  ],
  UNAVAILABLE: ['UNREACHABLE', RETRY],
  DEADLINE_EXCEEDED: ['UNREACHABLE', RETRY],
  INTERNAL: ['UNREACHABLE', RETRY],
  UNKNOWN: ['UNREACHABLE', RETRY],
  ABORTED: ['UNREACHABLE', RETRY],
  CANCELLED: ['UNREACHABLE', RETRY],
  DATA_LOSS: ['UNREACHABLE', RETRY],
};

/** Reasons of google.rpc.ErrorInfo. */
export const GOOGLE_REASONS: ErrorTable = {
  SERVICE_DISABLED: [
    'DENIED',
    'the Cloud KMS API is disabled in the project of the key or of the credential; enable cloudkms.googleapis.com',
  ],
  BILLING_DISABLED: ['DENIED', 'billing is off for the project of the key'],
  CONSUMER_SUSPENDED: ['DENIED', 'the project of the key is suspended'],
  CONSUMER_INVALID: ['DENIED', 'the project of the key does not exist or is being deleted'],
  IAM_PERMISSION_DENIED: ['DENIED', `permission is missing: grant the key manager's service account ${ROLE} on the key`],
  SECURITY_POLICY_VIOLATED: ['DENIED', 'VPC Service Controls shut the key manager out; allow it in the perimeter of the key'],
  ACCESS_TOKEN_SCOPE_INSUFFICIENT: ['UNAUTHENTICATED', `${CREDENTIAL}. The token lacks the scope cloudkms or cloud-platform`],
  ACCESS_TOKEN_EXPIRED: ['UNAUTHENTICATED', CREDENTIAL],
  CREDENTIALS_MISSING: ['UNAUTHENTICATED', CREDENTIAL],
  RATE_LIMIT_EXCEEDED: ['UNREACHABLE', 'the request quota of Cloud KMS is used up; retried'],
  KEY_DESTROYED: ['DENIED', 'the key version is destroyed; what it wrapped cannot be opened again'],
  KEY_DISABLED: ['DENIED', 'the key version is disabled; enable it'],
};

/** Where only the text tells: status, pattern, name of the case, meaning. */
export const GOOGLE_TEXTS: readonly (readonly [string, RegExp, string, ErrorMeaning])[] = [
  [
    'FAILED_PRECONDITION',
    /current state is: (PENDING_GENERATION|PENDING_IMPORT)/,
    'KeyVersionPending',
    ['UNREACHABLE', 'the key version is being made; retried'],
  ],
  [
    'FAILED_PRECONDITION',
    /current state is: DESTROYED/,
    'KeyVersionDestroyed',
    ['DENIED', 'the key version is destroyed; what it wrapped cannot be opened again'],
  ],
  [
    'FAILED_PRECONDITION',
    /current state is: DESTROY_SCHEDULED/,
    'KeyVersionDestroyScheduled',
    ['DENIED', 'the key version is scheduled for destruction; restore and enable it'],
  ],
  ['FAILED_PRECONDITION', /current state is: DISABLED/, 'KeyVersionDisabled', ['DENIED', 'the key version is disabled; enable it']],
  ['FAILED_PRECONDITION', /purpose/i, 'KeyPurpose', ['INVALID', 'make a key with the purpose ENCRYPT_DECRYPT']],
  [
    'INVALID_ARGUMENT',
    /decryption failed/i,
    'DecryptionFailed',
    [
      'DENIED',
      'the wrapped key does not open with this key and context: it belongs to another project or version, another key wrapped it, or it was altered',
    ],
  ],
  ['INVALID_ARGUMENT', /checksum|crc32c/i, 'ChecksumMismatch', ['UNREACHABLE', 'the request was damaged on the way; retried']],
];

const STATUS: readonly string[] = [
  'OK',
  'CANCELLED',
  'UNKNOWN',
  'INVALID_ARGUMENT',
  'DEADLINE_EXCEEDED',
  'NOT_FOUND',
  'ALREADY_EXISTS',
  'PERMISSION_DENIED',
  'RESOURCE_EXHAUSTED',
  'FAILED_PRECONDITION',
  'ABORTED',
  'OUT_OF_RANGE',
  'UNIMPLEMENTED',
  'INTERNAL',
  'UNAVAILABLE',
  'DATA_LOSS',
  'UNAUTHENTICATED',
];
/** Where google-gax leaves the body of an error answer. */
const RAW_PAYLOAD = Symbol.for('google-gax.rawHttpResponsePayload');

interface GoogleErrorShape {
  readonly name?: string;
  readonly message?: string;
  readonly code?: unknown;
  readonly reason?: string;
  readonly httpStatusCode?: number;
  readonly [RAW_PAYLOAD]?: unknown;
}

export function googleError(error: unknown): KmsError {
  if (error instanceof KmsError) return error;
  const network = networkError('GCP_KMS', error);
  if (network !== null) return network;
  const shape = (error ?? {}) as GoogleErrorShape;
  const message = shape.message ?? '';
  const status = typeof shape.code === 'number' ? STATUS[shape.code] : undefined;
  if (status !== undefined && (shape.httpStatusCode === undefined || isServiceError(shape[RAW_PAYLOAD]))) {
    const reason = shape.reason ?? '';
    if (Object.hasOwn(GOOGLE_REASONS, reason))
      return meaningToError('GCP_KMS', `${status}/${reason}`, GOOGLE_REASONS[reason] as ErrorMeaning, message, error);
    for (const [of, pattern, code, meaning] of GOOGLE_TEXTS)
      if (of === status && pattern.test(message)) return meaningToError('GCP_KMS', `${status}/${code}`, meaning, message, error);
    if (Object.hasOwn(GOOGLE_ERRORS, status))
      return meaningToError('GCP_KMS', status, GOOGLE_ERRORS[status] as ErrorMeaning, message, error);
  }
  return badAnswer(
    'GCP_KMS',
    `${shape.name ?? 'an error'} with HTTP status ${shape.httpStatusCode ?? 'unknown'}: ${message.slice(0, 200)}`,
    error,
  );
}

/** Google's own error body, not that of a proxy: google-gax maps any 403 or 404 to a status. */
function isServiceError(payload: unknown): boolean {
  let body: unknown = payload;
  if (Buffer.isBuffer(body) || body instanceof Uint8Array) body = Buffer.from(body).toString('utf8');
  if (typeof body === 'string')
    try {
      body = JSON.parse(body);
    } catch {
      return false;
    }
  const error = (body as { error?: { code?: unknown; status?: unknown } } | null | undefined)?.error;
  return typeof error === 'object' && error !== null && (typeof error.status === 'string' || typeof error.code === 'number');
}

/** Failures of the login, before anything is asked of KMS. */
export function googleLoginError(error: unknown): KmsError {
  if (error instanceof KmsError) return error;
  const network = networkError('GCP_KMS', error);
  if (network !== null) return network;
  const { message, status, response } = (error ?? {}) as { message?: string; status?: unknown; response?: { status?: unknown } };
  const http = Number(status ?? response?.status ?? 0);
  if (http >= 500 || http === 429)
    return meaningToError(
      'GCP_KMS',
      'TokenServiceUnavailable',
      ['UNREACHABLE', 'Google does not issue tokens now; retried'],
      message ?? '',
      error,
    );
  const advice = /default credentials/i.test(message ?? '')
    ? 'the key manager finds no Google credential; run it with a service account, or set serviceAccountKey'
    : CREDENTIAL;
  return meaningToError('GCP_KMS', 'LoginFailed', ['UNAUTHENTICATED', advice], message ?? '', error);
}
