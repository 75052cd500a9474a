/** What errors of Google Cloud Storage mean: by the reason in the body, else by status. */
import { LakebaseError } from '@lakebase/base';
import { type StoreErrorTable, meaningOf, networkCode, storeError } from './store-errors.ts';

const AGAIN = 'it is tried again';
const BUSY = `the store does not serve the request now; ${AGAIN}`;
const THROTTLED = `the store limits the rate of requests; ${AGAIN}`;
const PERMISSION = 'permission is missing: give the service account "Storage Object User" on the bucket';
const CREDENTIALS = "the credentials are not accepted; check the service account's key and this machine's clock";

export const GCS_ERRORS: StoreErrorTable = {
  notFound: ['NOT_FOUND', 'there is no such object'],
  noSuchBucket: ['UNAVAILABLE', 'there is no such bucket; create it, or correct "bucket" in the configuration'],
  conditionNotMet: ['CONFLICT', 'the object has changed'],
  conflict: ['UNAVAILABLE', `another request is in its way; ${AGAIN}`],
  requestedRangeNotSatisfiable: ['INVALID_ARGUMENT', 'the object has no such bytes'],
  uploadTooLarge: ['INVALID_ARGUMENT', 'the object is larger than the store takes'],
  forbidden: ['PERMISSION_DENIED', PERMISSION],
  insufficientPermissions: ['PERMISSION_DENIED', PERMISSION],
  retentionPolicyNotMet: ['PERMISSION_DENIED', 'a retention policy forbids it'],
  objectUnderActiveHold: ['PERMISSION_DENIED', 'somebody holds the object; release the hold'],
  accountDisabled: ['PERMISSION_DENIED', 'the project of the bucket is disabled; check its billing'],
  userProjectAccountProblem: ['PERMISSION_DENIED', 'the project of the bucket is disabled; check its billing'],
  authError: ['PERMISSION_DENIED', CREDENTIALS],
  required: ['PERMISSION_DENIED', CREDENTIALS],
  rateLimitExceeded: ['RESOURCE_EXHAUSTED', THROTTLED],
  userRateLimitExceeded: ['RESOURCE_EXHAUSTED', THROTTLED],
  quotaExceeded: ['RESOURCE_EXHAUSTED', THROTTLED],
  backendError: ['UNAVAILABLE', BUSY],
  internalError: ['UNAVAILABLE', BUSY],
  uploadBrokenConnection: ['UNAVAILABLE', BUSY],
  invalid: ['INVALID_ARGUMENT', 'the store refuses the request'],
  /** What the library says when it found none. */
  noCredentials: [
    'PERMISSION_DENIED',
    'no credentials are found; run as a service account, set GOOGLE_APPLICATION_CREDENTIALS for the services, or name a "credentialsFile"',
  ],
};

/** A body whose hash is not the one sent with it comes as "invalid" as well. */
const DAMAGED = /(md5|crc32c)[ \w]*hash|does not match.*(md5|crc32c)|provided (md5|crc32c)/i;

export function gcsError(error: unknown, what: string): LakebaseError {
  if (error instanceof LakebaseError) return error;
  const { message = '', code, errors } = (error ?? {}) as { message?: string; code?: unknown; errors?: readonly { reason?: unknown }[] };
  const status = typeof code === 'number' ? code : undefined;
  if ((status === 400 || status === 412) && DAMAGED.test(message))
    return storeError(what, { code: undefined, status, message }, ['UNAVAILABLE', `the body was damaged on its way; ${AGAIN}`], error);
  const failure = { code: networkCode(error) ?? reasonOf(status, message, errors?.[0]?.reason), status, message };
  return storeError(what, failure, meaningOf(GCS_ERRORS, failure), error);
}

function reasonOf(status: number | undefined, message: string, reason: unknown): string | undefined {
  if (status === 404) return /bucket does not exist|bucket not found/i.test(message) ? 'noSuchBucket' : 'notFound';
  if (status === 412) return 'conditionNotMet';
  if (status === 304) return 'conditionNotMet';
  if (/Could not load the default credentials|invalid_grant|invalid_client/i.test(message)) return 'noCredentials';
  return typeof reason === 'string' ? reason : undefined;
}
