/** What Azure errors mean: `error.code/error.innererror.code` of Key Vault and Managed HSM, the classes of @azure/identity, and the checks
 *  the SDK makes on a key's attributes before it sends anything. The inner code is looked up first. */
import { type ErrorMeaning, type ErrorTable, KmsError, badAnswer, errorChain, meaningToError, networkError } from './errors.ts';

const CREDENTIAL =
  "the key manager's own Azure credential is not accepted; renew the client secret or certificate, or give the machine its managed identity back. Counts as unreachable: the customer has denied nothing";
const RETRY = 'the vault cannot serve the call now; retried';

export const AZURE_ERRORS: ErrorTable = {
  KeyDisabled: ['DENIED', 'the key version is disabled; enable it'],
  KeyExpired: [
    'DENIED',
    'the key version has expired; move its expiry date, or rotate the key and put a new expiry date on the old version',
  ],
  KeyNotYetValid: ['DENIED', 'the key version is not valid yet; change its activation date'],
  AccessDenied: [
    'DENIED',
    "permission is missing: give the key manager's identity get, wrapKey and unwrapKey in the vault's access policy",
  ],
  ForbiddenByPolicy: [
    'DENIED',
    "permission is missing: give the key manager's identity get, wrapKey and unwrapKey in the vault's access policy",
  ],
  ForbiddenByRbac: [
    'DENIED',
    'permission is missing: give the key manager\'s identity the role "Key Vault Crypto Service Encryption User" on the key',
  ],
  ForbiddenByFirewall: ['DENIED', "the vault's firewall shuts the key manager out; allow its address or virtual network"],
  ForbiddenByConnection: ['DENIED', 'the vault takes no connections from public networks; allow them, or use its private endpoint'],
  ForbiddenByNsp: ['DENIED', "the vault's network security perimeter shuts the key manager out; allow it there"],
  Forbidden: [
    'DENIED',
    'the vault forbids the use of the key: check that it is enabled and in its dates, and that get, wrapKey and unwrapKey are allowed',
  ],
  KeyNotFound: ['DENIED', 'there is no such key or version; recover it if it was deleted, or correct the URL'],
  VaultNotFound: ['DENIED', 'there is no such vault; recover it if it was deleted, or correct the URL'],
  NotFound: ['DENIED', 'there is no such key or version; recover it if it was deleted, or correct the URL'],
  ResourceNotFound: ['DENIED', 'there is no such key or version; recover it if it was deleted, or correct the URL'],
  ObjectIsDeletedButRecoverable: ['DENIED', 'the key is deleted; recover it'],
  ObjectIsBeingDeleted: ['DENIED', 'the key is being deleted; recover it afterwards'],
  ObjectIsBeingRecovered: ['UNREACHABLE', 'the key is being recovered; retried'],
  SubscriptionDisabled: ['DENIED', 'the Azure subscription of the vault is disabled'],
  /** Not Azure's: the hash inside the plaintext does not match. */
  ContextMismatch: ['DENIED', 'the wrapped key belongs to another project or version, or was altered'],
  UnwrapFailed: ['DENIED', 'this key version does not open the wrapped key: it was wrapped by another, or was altered'],
  Unauthorized: ['UNAUTHENTICATED', `${CREDENTIAL}. Check that tenantId is the vault's tenant`],
  InvalidToken: ['UNAUTHENTICATED', CREDENTIAL],
  AuthenticationError: ['UNAUTHENTICATED', CREDENTIAL],
  AggregateAuthenticationError: ['UNAUTHENTICATED', CREDENTIAL],
  AuthenticationRequiredError: ['UNAUTHENTICATED', CREDENTIAL],
  CredentialUnavailableError: [
    'UNAUTHENTICATED',
    'the key manager finds no Azure credential; give the machine a managed identity, or set tenantId, clientId and clientSecret',
  ],
  Throttled: ['UNREACHABLE', 'the request quota of the vault is used up; retried. Use another vault for this key if it stays so'],
  TooManyRequests: ['UNREACHABLE', 'the request quota of the vault is used up; retried. Use another vault for this key if it stays so'],
  InternalServerError: ['UNREACHABLE', RETRY],
  InternalError: ['UNREACHABLE', RETRY],
  ServiceUnavailable: ['UNREACHABLE', RETRY],
  ServerBusy: ['UNREACHABLE', RETRY],
  RequestTimeout: ['UNREACHABLE', RETRY],
  GatewayTimeout: ['UNREACHABLE', RETRY],
  BadGateway: ['UNREACHABLE', RETRY],
  OperationNotAllowed: ['INVALID', 'the key does not permit wrapKey and unwrapKey; add them to its key operations'],
  KeyOperationForbidden: ['INVALID', 'the key does not permit wrapKey and unwrapKey; add them to its key operations'],
  KeyTypeNotSupported: ['INVALID', 'use an RSA key of 2048 bits or more, or an AES key (oct-HSM) of a Managed HSM'],
  NotSupported: ['INVALID', 'the key cannot wrap with this algorithm; use an RSA key, or an AES key (oct-HSM) of a Managed HSM'],
  AlgorithmNotSupported: ['INVALID', 'the key cannot wrap with this algorithm; use an RSA key, or an AES key (oct-HSM) of a Managed HSM'],
  BadParameter: ['INVALID', 'the vault refuses the request; check the URL and the type of the key'],
  BadRequest: ['INVALID', 'the vault refuses the request; check the URL and the type of the key'],
};

/** Made by the SDK from the attributes of the key, without a request. */
const LOCAL_CHECKS: readonly (readonly [RegExp, string])[] = [
  [/ expired at /, 'KeyExpired'],
  [/ can't be used before /, 'KeyNotYetValid'],
  [/is not supported on key /, 'KeyOperationForbidden'],
];

interface RestErrorShape {
  readonly name?: string;
  readonly message?: string;
  readonly statusCode?: number;
  /** The body as the SDK parsed it. */
  readonly details?: { readonly error?: { readonly code?: unknown; readonly innerError?: { readonly code?: unknown } } };
}

export const azureFailure = (code: string, detail: string, cause?: unknown): KmsError =>
  meaningToError('AZURE_KEY_VAULT', code, AZURE_ERRORS[code] as ErrorMeaning, detail, cause);

export function azureError(error: unknown): KmsError {
  if (error instanceof KmsError) return error;
  const network = networkError('AZURE_KEY_VAULT', error);
  if (network !== null) return network;
  for (const inner of errorChain(error)) {
    const shape = inner as RestErrorShape;
    if (shape.name !== undefined && Object.hasOwn(AZURE_ERRORS, shape.name)) return azureFailure(shape.name, shape.message ?? '', error);
    for (const code of serviceCodes(shape))
      if (Object.hasOwn(AZURE_ERRORS, code.split('/').pop() as string)) {
        const last = code.split('/').pop() as string;
        return meaningToError('AZURE_KEY_VAULT', code, AZURE_ERRORS[last] as ErrorMeaning, shape.message ?? '', error);
      }
    for (const [pattern, code] of LOCAL_CHECKS)
      if (pattern.test(shape.message ?? '')) return azureFailure(code, shape.message ?? '', error);
  }
  const { name, message, statusCode } = error as RestErrorShape;
  return badAnswer(
    'AZURE_KEY_VAULT',
    `${name ?? 'an error'} with HTTP status ${statusCode ?? 'unknown'}: ${(message ?? '').slice(0, 200)}`,
    error,
  );
}

/** `outer/inner` and `outer` of the error body; none when the body is not the vault's own JSON. */
function serviceCodes(error: RestErrorShape): string[] {
  const outer = error.details?.error;
  if (typeof outer?.code !== 'string') return [];
  const inner = outer.innerError?.code;
  return typeof inner === 'string' ? [`${outer.code}/${inner}`, outer.code] : [outer.code];
}
