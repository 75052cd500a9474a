/** What AWS errors mean: those of KMS, of STS (assume-role) and the common ones of both. Names as on the wire (`__type` without namespace). */
import { type ErrorMeaning, type ErrorTable, type KmsError, badAnswer, errorChain, meaningToError, networkError } from './errors.ts';

const CREDENTIAL =
  "the key manager's own AWS credential is not accepted; renew it (access key, session, role or its trust). Counts as unreachable: the customer has denied nothing";
const RETRY = 'AWS cannot serve the call now; retried';
const THROTTLED = 'the request quota of KMS is used up; retried. Raise the quota of cryptographic operations if it stays so';

export const AWS_ERRORS: ErrorTable = {
  DisabledException: ['DENIED', 'the key is disabled; enable it with kms:EnableKey'],
  KMSInvalidStateException: [
    'DENIED',
    "the key's state forbids use (pending deletion, pending import of material, external key store disabled); cancel the deletion and enable it, or import the material again",
  ],
  NotFoundException: ['DENIED', 'there is no such key in this account and region; it was deleted, or the ARN is wrong'],
  AccessDeniedException: [
    'DENIED',
    "permission is missing: allow kms:Encrypt, kms:Decrypt and kms:DescribeKey for the key manager's principal in the key policy, and check its conditions on the encryption context",
  ],
  AccessDenied: [
    'DENIED',
    "the role may not be assumed: allow sts:AssumeRole for the key manager's principal in the role's trust policy, and check the external id",
  ],
  NotAuthorized: ['DENIED', 'permission is missing; allow kms:Encrypt, kms:Decrypt and kms:DescribeKey'],
  OptInRequired: ['DENIED', 'the AWS account may not use KMS in this region; enable the service or the region'],
  RegionDisabledException: ['DENIED', 'STS is switched off for this region in the account of the role; switch it on'],
  InvalidCiphertextException: [
    'DENIED',
    'the wrapped key does not open under this context: it belongs to another project or version, or was altered',
  ],
  IncorrectKeyException: ['DENIED', 'the wrapped key was wrapped by another key; configure the one that wrapped it'],
  InvalidGrantTokenException: ['DENIED', 'the grant is no longer valid; create it again'],
  KeyUnavailableException: ['UNREACHABLE', RETRY],
  KMSInternalException: ['UNREACHABLE', RETRY],
  KMSInternal: ['UNREACHABLE', RETRY],
  DependencyTimeoutException: ['UNREACHABLE', RETRY],
  InternalFailure: ['UNREACHABLE', RETRY],
  InternalError: ['UNREACHABLE', RETRY],
  InternalServerError: ['UNREACHABLE', RETRY],
  InternalServerException: ['UNREACHABLE', RETRY],
  ServiceUnavailable: ['UNREACHABLE', RETRY],
  ServiceUnavailableException: ['UNREACHABLE', RETRY],
  RequestTimeout: ['UNREACHABLE', RETRY],
  RequestTimeoutException: ['UNREACHABLE', RETRY],
  ThrottlingException: ['UNREACHABLE', THROTTLED],
  Throttling: ['UNREACHABLE', THROTTLED],
  ThrottledException: ['UNREACHABLE', THROTTLED],
  TooManyRequestsException: ['UNREACHABLE', THROTTLED],
  RequestLimitExceeded: ['UNREACHABLE', THROTTLED],
  LimitExceededException: ['UNREACHABLE', THROTTLED],
  SlowDown: ['UNREACHABLE', THROTTLED],
  CloudHsmClusterNotActiveException: ['UNREACHABLE', 'the CloudHSM cluster of the key store is not active; start it'],
  CloudHsmClusterInvalidConfigurationException: [
    'UNREACHABLE',
    'the CloudHSM cluster of the key store is set up wrongly; its owner must repair it',
  ],
  CustomKeyStoreInvalidStateException: ['UNREACHABLE', 'the custom key store is not connected; connect it'],
  UnrecognizedClientException: ['UNAUTHENTICATED', CREDENTIAL],
  InvalidClientTokenId: ['UNAUTHENTICATED', CREDENTIAL],
  ExpiredTokenException: ['UNAUTHENTICATED', CREDENTIAL],
  ExpiredToken: ['UNAUTHENTICATED', CREDENTIAL],
  InvalidSignatureException: ['UNAUTHENTICATED', `${CREDENTIAL}. Check the clock too`],
  SignatureDoesNotMatch: ['UNAUTHENTICATED', `${CREDENTIAL}. Check the clock too`],
  RequestExpired: ['UNAUTHENTICATED', `${CREDENTIAL}. Check the clock too`],
  RequestTimeTooSkewed: ['UNAUTHENTICATED', `${CREDENTIAL}. Check the clock too`],
  IncompleteSignature: ['UNAUTHENTICATED', CREDENTIAL],
  IncompleteSignatureException: ['UNAUTHENTICATED', CREDENTIAL],
  MissingAuthenticationToken: ['UNAUTHENTICATED', CREDENTIAL],
  MissingAuthenticationTokenException: ['UNAUTHENTICATED', CREDENTIAL],
  ExpiredTokenIdentityException: ['UNAUTHENTICATED', CREDENTIAL],
  IDPCommunicationError: ['UNREACHABLE', 'the identity provider does not answer STS; retried'],
  InvalidIdentityToken: ['UNAUTHENTICATED', CREDENTIAL],
  IDPRejectedClaim: ['UNAUTHENTICATED', CREDENTIAL],
  CredentialsProviderError: [
    'UNAUTHENTICATED',
    'the key manager finds no AWS credential; give the machine a role, set AWS_* for the key manager, or set accessKeyId and secretAccessKey',
  ],
  TokenProviderError: ['UNAUTHENTICATED', CREDENTIAL],
  InvalidKeyUsageException: [
    'INVALID',
    'the key is not for encryption; make one with KeyUsage ENCRYPT_DECRYPT and KeySpec SYMMETRIC_DEFAULT',
  ],
  InvalidArnException: ['INVALID', 'KMS does not accept the ARN; name a key (arn:aws:kms:<region>:<account>:key/<id>)'],
  ValidationException: ['INVALID', 'KMS refuses the request; is the key symmetric (SYMMETRIC_DEFAULT), and the ARN that of a key?'],
  ValidationError: ['INVALID', 'STS refuses the request; check roleArn and externalId'],
  UnsupportedOperationException: ['INVALID', 'this key cannot wrap; make one with KeyUsage ENCRYPT_DECRYPT and KeySpec SYMMETRIC_DEFAULT'],
};

/** States in which a key is not taken away but not ready either. */
const STATE_PASSES = /\b(creating|updating|unavailable)\b/i;

export function awsError(error: unknown): KmsError {
  for (const inner of errorChain(error)) {
    const { name, message } = inner as { name?: string; message?: string };
    const code = (name ?? '').split('#').pop() ?? '';
    const meaning = Object.hasOwn(AWS_ERRORS, code) ? (AWS_ERRORS[code] as ErrorMeaning) : undefined;
    if (meaning === undefined) continue;
    // A provider of credentials that gave up because nothing answered is a matter of the network.
    const network = code === 'CredentialsProviderError' ? networkError('AWS_KMS', error) : null;
    if (network !== null) return network;
    const passes = code === 'KMSInvalidStateException' && STATE_PASSES.test(message ?? '');
    return meaningToError(
      'AWS_KMS',
      code,
      passes ? ['UNREACHABLE', 'the key or its key store is not ready; retried'] : meaning,
      message ?? '',
      error,
    );
  }
  const network = networkError('AWS_KMS', error);
  if (network !== null) return network;
  const { name, message, $metadata } = (error ?? {}) as { name?: string; message?: string; $metadata?: { httpStatusCode?: number } };
  if (name === 'TimeoutError') return meaningToError('AWS_KMS', 'Timeout', ['UNREACHABLE', RETRY], message ?? '', error);
  return badAnswer(
    'AWS_KMS',
    `${name ?? 'an error'} with HTTP status ${$metadata?.httpStatusCode ?? 'unknown'}: ${(message ?? '').slice(0, 200)}`,
    error,
  );
}
