/** What errors of Azure Blob Storage mean. Names as in `x-ms-error-code`. */
import { LakebaseError } from '@lakebase/base';
import { type StoreErrorTable, errorChain, meaningOf, networkCode, storeError } from './store-errors.ts';

const AGAIN = 'it is tried again';
const BUSY = `the store does not serve the request now; ${AGAIN}`;
const CREDENTIALS = "the credentials are not accepted; check the account's key, the signature or the identity, and this machine's clock";
const PERMISSION = 'permission is missing: give the identity "Storage Blob Data Contributor" on the container';

export const AZURE_ERRORS: StoreErrorTable = {
  BlobNotFound: ['NOT_FOUND', 'there is no such object'],
  ResourceNotFound: ['NOT_FOUND', 'there is no such object'],
  ContainerNotFound: ['UNAVAILABLE', 'there is no such container; create it, or correct "container" in the configuration'],
  ContainerBeingDeleted: ['UNAVAILABLE', 'the container is being deleted; create it again, or correct "container" in the configuration'],
  ContainerDisabled: ['PERMISSION_DENIED', 'the container is disabled'],
  BlobAlreadyExists: ['ALREADY_EXISTS', 'it exists'],
  ConditionNotMet: ['CONFLICT', 'the object has changed'],
  TargetConditionNotMet: ['CONFLICT', 'the object has changed'],
  InvalidRange: ['INVALID_ARGUMENT', 'the object has no such bytes'],
  InvalidResourceName: ['INVALID_ARGUMENT', 'the store does not accept the name'],
  RequestBodyTooLarge: ['INVALID_ARGUMENT', 'the object is larger than the store takes'],
  BlobArchived: ['PERMISSION_DENIED', 'the object is archived; rehydrate it, and keep this container out of archiving rules'],
  BlobImmutableDueToPolicy: ['PERMISSION_DENIED', 'an immutability policy forbids it'],
  LeaseIdMissing: ['PERMISSION_DENIED', 'somebody holds a lease on the object; break it'],
  AuthenticationFailed: ['PERMISSION_DENIED', CREDENTIALS],
  InvalidAuthenticationInfo: ['PERMISSION_DENIED', CREDENTIALS],
  NoAuthenticationInformation: ['PERMISSION_DENIED', CREDENTIALS],
  AuthenticationError: ['PERMISSION_DENIED', CREDENTIALS],
  AggregateAuthenticationError: ['PERMISSION_DENIED', CREDENTIALS],
  CredentialUnavailableError: [
    'PERMISSION_DENIED',
    'no credentials are found; give the machine an identity, set AZURE_* for the services, or name a "credentialsFile"',
  ],
  AuthorizationFailure: ['PERMISSION_DENIED', PERMISSION],
  AuthorizationPermissionMismatch: ['PERMISSION_DENIED', PERMISSION],
  InsufficientAccountPermissions: ['PERMISSION_DENIED', PERMISSION],
  AccountIsDisabled: ['PERMISSION_DENIED', 'the storage account is disabled'],
  KeyBasedAuthenticationNotPermitted: ['PERMISSION_DENIED', 'the account refuses its own key; use an identity'],
  ServerBusy: ['RESOURCE_EXHAUSTED', `the store limits the rate of requests; ${AGAIN}`],
  TooManyRequests: ['RESOURCE_EXHAUSTED', `the store limits the rate of requests; ${AGAIN}`],
  IngressExceedsAccountLimit: ['RESOURCE_EXHAUSTED', `the store limits the rate of bytes; ${AGAIN}`],
  EgressExceedsAccountLimit: ['RESOURCE_EXHAUSTED', `the store limits the rate of bytes; ${AGAIN}`],
  InternalError: ['UNAVAILABLE', BUSY],
  OperationTimedOut: ['UNAVAILABLE', BUSY],
  AbortError: ['UNAVAILABLE', 'the call was ended'],
  REQUEST_SEND_ERROR: ['UNAVAILABLE', BUSY],
  InvalidBlockList: ['UNAVAILABLE', `a block was lost; ${AGAIN}`],
  InvalidBlobOrBlock: ['UNAVAILABLE', `a block was lost; ${AGAIN}`],
  Md5Mismatch: ['UNAVAILABLE', `the body was damaged on its way; ${AGAIN}`],
  Crc64Mismatch: ['UNAVAILABLE', `the body was damaged on its way; ${AGAIN}`],
};

export function azureError(error: unknown, what: string): LakebaseError {
  if (error instanceof LakebaseError) return error;
  const { message = '', statusCode: status } = (error ?? {}) as { message?: string; statusCode?: number };
  for (const inner of errorChain(error)) {
    const details = inner['details'] as { errorCode?: unknown } | undefined;
    const code = [details?.errorCode, inner['code'], inner['name']].find(
      (n): n is string => typeof n === 'string' && Object.hasOwn(AZURE_ERRORS, n),
    );
    if (code === undefined) continue;
    const network = networkCode(error);
    if (network !== undefined && /Authentication|Credential/.test(code)) break;
    const failure = { code, status, message };
    return storeError(what, failure, meaningOf(AZURE_ERRORS, failure), error);
  }
  const { code, name } = (error ?? {}) as { code?: unknown; name?: string };
  const failure = { code: networkCode(error) ?? (typeof code === 'string' ? code : name), status, message };
  return storeError(what, failure, meaningOf(AZURE_ERRORS, failure), error);
}
