/** What Vault and OpenBao errors mean. They have no codes: the HTTP status and the text of `errors` are all there is. */
import { type ErrorMeaning, KmsError, badAnswer, meaningToError, networkError } from './errors.ts';

const CREDENTIAL =
  "the key manager's Vault token is not accepted any more and cannot be renewed; give it a new token or AppRole secret id. Counts as unreachable: policy and key have denied nothing";
const RETRY = 'Vault cannot serve the call now; retried';

/** First match wins: status, pattern of the text, our name for the case, meaning. */
export const VAULT_ERRORS: readonly (readonly [status: number, text: RegExp, code: string, meaning: ErrorMeaning])[] = [
  [400, /encryption key not found/i, 'KeyNotFound', ['DENIED', 'there is no such transit key; it was deleted, or the name is wrong']],
  [
    400,
    /disallowed by policy \(too old\)/i,
    'VersionTooOld',
    ['DENIED', 'min_decryption_version of the key is above the version that wrapped; lower it'],
  ],
  [
    400,
    /disallowed by policy|version is disallowed/i,
    'VersionDisallowed',
    ['DENIED', 'the policy of the key forbids this version; lower min_decryption_version or min_encryption_version'],
  ],
  [
    400,
    /message authentication failed|authentication tag/i,
    'WrongContext',
    [
      'DENIED',
      'the wrapped key does not open under this context: it belongs to another project or version, another key wrapped it, or it was altered',
    ],
  ],
  [
    400,
    /invalid ciphertext|could not decode|ciphertext version|unable to decrypt|no prefix/i,
    'InvalidCiphertext',
    ['DENIED', 'the wrapped key is not one of this transit key'],
  ],
  [400, /soft-deleted|soft deleted/i, 'KeySoftDeleted', ['DENIED', 'the transit key is soft-deleted; restore it']],
  [400, /missing 'context' for key derivation/i, 'KeyDerived', ['INVALID', 'the transit key is derived; make one with derived=false']],
  [
    400,
    /does not support|not supported|unsupported|associated_data|associated data/i,
    'KeyType',
    ['INVALID', 'use a transit key of type aes256-gcm96 or chacha20-poly1305 (they take associated_data)'],
  ],
  [400, /missing client token/i, 'TokenMissing', ['UNAUTHENTICATED', CREDENTIAL]],
  [400, /invalid (role or )?secret[ _-]?id|invalid role|failed to (validate|look up)/i, 'LoginRefused', ['UNAUTHENTICATED', CREDENTIAL]],
  [401, /./s, 'Unauthorized', ['UNAUTHENTICATED', CREDENTIAL]],
  [403, /invalid token|bad token|token expired|lease not found/i, 'InvalidToken', ['UNAUTHENTICATED', CREDENTIAL]],
  [403, /namespace/i, 'NamespaceDenied', ['DENIED', 'the namespace does not exist or is locked; check option namespace']],
  [
    403,
    /./s,
    'PermissionDenied',
    [
      'DENIED',
      "permission is missing: allow update on <mount>/encrypt/<key> and <mount>/decrypt/<key>, and read on <mount>/keys/<key>, in a policy of the key manager's token",
    ],
  ],
  [
    404,
    /no handler for route|unsupported path|not found|^$/i,
    'NotFound',
    [
      'DENIED',
      'there is no transit engine at this mount, no such key, or no such namespace; it was removed, or key and namespace are wrong',
    ],
  ],
  [405, /./s, 'UnsupportedOperation', ['INVALID', 'the mount is not a transit engine; name the key as <mount>/<key>']],
  [412, /./s, 'StaleReplica', ['UNREACHABLE', RETRY]],
  [429, /./s, 'RateLimited', ['UNREACHABLE', 'a rate limit quota of Vault applies, or the node is a standby; retried']],
  [472, /./s, 'RecoveryReplica', ['UNREACHABLE', 'the node is a disaster recovery secondary; name the active cluster']],
  [473, /./s, 'PerformanceStandby', ['UNREACHABLE', 'the node is a performance standby; name the active node']],
  [500, /./s, 'InternalError', ['UNREACHABLE', RETRY]],
  [501, /./s, 'NotInitialized', ['UNREACHABLE', 'Vault is not initialised']],
  [502, /./s, 'BadGateway', ['UNREACHABLE', RETRY]],
  [503, /sealed/i, 'Sealed', ['UNREACHABLE', 'Vault is sealed; unseal it']],
  [503, /./s, 'Unavailable', ['UNREACHABLE', RETRY]],
  [504, /./s, 'GatewayTimeout', ['UNREACHABLE', RETRY]],
];

/** An error answer of Vault, before its meaning is decided. */
export class VaultAnswer extends Error {
  readonly status: number;
  /** Texts of `errors`, or null when the body is not Vault's. */
  readonly errors: readonly string[] | null;

  constructor(status: number, errors: readonly string[] | null) {
    super(`HTTP ${status}: ${errors === null ? 'not an answer of Vault' : errors.join('; ')}`);
    this.status = status;
    this.errors = errors;
  }
}

export function vaultError(error: unknown): KmsError {
  if (error instanceof KmsError) return error;
  if (error instanceof VaultAnswer) {
    if (error.status >= 300 && error.status < 400)
      return meaningToError(
        'VAULT_TRANSIT',
        'Redirected',
        ['UNREACHABLE', 'the node is a standby that does not forward; name the active node or the cluster'],
        '',
        error,
      );
    // Load balancers answer 5xx and 429 in their own words; the outcome is the same. They must not deny.
    if (error.errors !== null || error.status >= 429) {
      const text = error.errors?.join('; ') ?? '';
      for (const [status, pattern, code, meaning] of VAULT_ERRORS)
        if (status === error.status && (pattern.test(text) || pattern.source === '.'))
          return meaningToError('VAULT_TRANSIT', code, meaning, text, error);
      if (error.status >= 500) return meaningToError('VAULT_TRANSIT', `Http${error.status}`, ['UNREACHABLE', RETRY], text, error);
    }
    return badAnswer('VAULT_TRANSIT', error.message.slice(0, 300), error);
  }
  return (
    networkError('VAULT_TRANSIT', error) ??
    badAnswer('VAULT_TRANSIT', `${(error as Error | null)?.message ?? 'an error'}`.slice(0, 300), error)
  );
}
