/** What errors of S3 and of servers compatible with it mean. Names as on the wire. */
import { LakebaseError } from '@lakebase/base';
import { type StoreErrorTable, errorChain, meaningOf, networkCode, storeError } from './store-errors.ts';

const AGAIN = 'it is tried again';
const CREDENTIALS = "the credentials are not accepted; check the access key, its session, and this machine's clock";
const REGION = 'the bucket is in another region; set "region" in the configuration';
const THROTTLED = `the store limits the rate of requests; ${AGAIN}`;
const FULL = 'the store is full, or its quota is used up; make room there';
const BODY = `the body was damaged or cut off on its way; ${AGAIN}`;
const BUSY = `the store does not serve the request now; ${AGAIN}`;

export const S3_ERRORS: StoreErrorTable = {
  NoSuchKey: ['NOT_FOUND', 'there is no such object'],
  // What the SDK says of a 404 without a code, which any proxy may send; head() asks again by a GET.
  NotFound: ['UNAVAILABLE', 'something answers 404 that does not say what is missing; check "endpoint" in the configuration'],
  NoSuchBucket: ['UNAVAILABLE', 'there is no such bucket; create it, or correct "bucket" in the configuration'],
  PreconditionFailed: ['CONFLICT', 'the object has changed'],
  ConditionalRequestConflict: ['UNAVAILABLE', `another conditional write is under way; ${AGAIN}`],
  OperationAborted: ['UNAVAILABLE', `another request is in its way; ${AGAIN}`],
  NoSuchUpload: ['UNAVAILABLE', `the upload in parts was ended by somebody; ${AGAIN}`],
  InvalidPart: ['UNAVAILABLE', `a part was lost; ${AGAIN}`],
  InvalidRange: ['INVALID_ARGUMENT', 'the object has no such bytes'],
  KeyTooLongError: ['INVALID_ARGUMENT', 'its name is too long; use a shorter "prefix"'],
  EntityTooLarge: ['INVALID_ARGUMENT', 'the object is larger than the store takes'],
  EntityTooSmall: ['INVALID_ARGUMENT', 'the store wants larger parts'],
  NotImplemented: ['UNSUPPORTED', 'the server cannot do this; conditional writes (If-None-Match) are needed'],
  MethodNotAllowed: ['UNSUPPORTED', 'the server cannot do this'],
  AccessDenied: [
    'PERMISSION_DENIED',
    'permission is missing: s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket, s3:AbortMultipartUpload',
  ],
  AllAccessDisabled: ['PERMISSION_DENIED', 'the bucket is closed to everybody'],
  AccountProblem: ['PERMISSION_DENIED', 'the provider has closed the account'],
  InvalidObjectState: ['PERMISSION_DENIED', 'the object is archived; restore it, and keep this bucket out of archiving rules'],
  ObjectLocked: ['PERMISSION_DENIED', 'object lock forbids it'],
  InvalidAccessKeyId: ['PERMISSION_DENIED', CREDENTIALS],
  SignatureDoesNotMatch: ['PERMISSION_DENIED', CREDENTIALS],
  RequestTimeTooSkewed: ['PERMISSION_DENIED', CREDENTIALS],
  ExpiredToken: ['PERMISSION_DENIED', CREDENTIALS],
  InvalidToken: ['PERMISSION_DENIED', CREDENTIALS],
  TokenRefreshRequired: ['PERMISSION_DENIED', CREDENTIALS],
  NotSignedUp: ['PERMISSION_DENIED', CREDENTIALS],
  CredentialsProviderError: [
    'PERMISSION_DENIED',
    'no credentials are found; set AWS_* for the services, give the machine a role, or name a "credentialsFile"',
  ],
  TokenProviderError: ['PERMISSION_DENIED', CREDENTIALS],
  PermanentRedirect: ['PERMISSION_DENIED', REGION],
  TemporaryRedirect: ['UNAVAILABLE', BUSY],
  AuthorizationHeaderMalformed: ['PERMISSION_DENIED', REGION],
  IllegalLocationConstraintException: ['PERMISSION_DENIED', REGION],
  SlowDown: ['RESOURCE_EXHAUSTED', THROTTLED],
  SlowDownRead: ['RESOURCE_EXHAUSTED', THROTTLED],
  SlowDownWrite: ['RESOURCE_EXHAUSTED', THROTTLED],
  Throttling: ['RESOURCE_EXHAUSTED', THROTTLED],
  ThrottlingException: ['RESOURCE_EXHAUSTED', THROTTLED],
  ThrottledException: ['RESOURCE_EXHAUSTED', THROTTLED],
  RequestThrottled: ['RESOURCE_EXHAUSTED', THROTTLED],
  RequestThrottledException: ['RESOURCE_EXHAUSTED', THROTTLED],
  RequestLimitExceeded: ['RESOURCE_EXHAUSTED', THROTTLED],
  BandwidthLimitExceeded: ['RESOURCE_EXHAUSTED', THROTTLED],
  TooManyRequests: ['RESOURCE_EXHAUSTED', THROTTLED],
  TooManyRequestsException: ['RESOURCE_EXHAUSTED', THROTTLED],
  QuotaExceeded: ['RESOURCE_EXHAUSTED', FULL],
  XMinioStorageFull: ['RESOURCE_EXHAUSTED', FULL],
  XMinioAdminBucketQuotaExceeded: ['RESOURCE_EXHAUSTED', FULL],
  InternalError: ['UNAVAILABLE', BUSY],
  InternalFailure: ['UNAVAILABLE', BUSY],
  InternalServerError: ['UNAVAILABLE', BUSY],
  ServiceUnavailable: ['UNAVAILABLE', BUSY],
  ServiceUnavailableException: ['UNAVAILABLE', BUSY],
  Busy: ['UNAVAILABLE', BUSY],
  RequestTimeout: ['UNAVAILABLE', BUSY],
  RequestTimeoutException: ['UNAVAILABLE', BUSY],
  TimeoutError: ['UNAVAILABLE', BUSY],
  XMinioServerNotInitialized: ['UNAVAILABLE', BUSY],
  ServerNotInitialized: ['UNAVAILABLE', BUSY],
  XMinioBackendDown: ['UNAVAILABLE', BUSY],
  IncompleteBody: ['UNAVAILABLE', BODY],
  BadDigest: ['UNAVAILABLE', BODY],
  InvalidDigest: ['UNAVAILABLE', BODY],
  XAmzContentSHA256Mismatch: ['UNAVAILABLE', BODY],
  XAmzContentChecksumMismatch: ['UNAVAILABLE', BODY],
};

export function s3Error(error: unknown, what: string): LakebaseError {
  if (error instanceof LakebaseError) return error;
  const { message = '', $metadata } = (error ?? {}) as { message?: string; $metadata?: { httpStatusCode?: number } };
  const status = $metadata?.httpStatusCode;
  const network = networkCode(error);
  for (const inner of errorChain(error)) {
    const code = [inner['Code'], inner['name']].find((n): n is string => typeof n === 'string' && Object.hasOwn(S3_ERRORS, n));
    if (code === undefined) continue;
    // A search for credentials that failed because nothing answered is a matter of the network.
    if (code === 'CredentialsProviderError' && network !== undefined) break;
    const failure = { code, status, message };
    return storeError(what, failure, meaningOf(S3_ERRORS, failure), error);
  }
  // What the SDK says when the checksum that the store keeps does not fit the bytes that came.
  if (/^Checksum mismatch/i.test(message))
    return storeError(what, { code: undefined, status, message }, ['CORRUPT', 'the bytes do not have the checksum the store keeps'], error);
  const failure = { code: network ?? (error as { name?: string } | null)?.name, status, message };
  return storeError(what, failure, meaningOf(S3_ERRORS, failure), error);
}
