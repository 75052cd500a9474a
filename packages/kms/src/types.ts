/** What the key manager sees of a customer's KMS: one key, held by `KmsKey`, that wraps and unwraps a 32-byte KEK.
 *
 *  Invariants
 *  - `wrap` and `unwrap` reach the provider on every call; nothing is cached, so a success proves that the key may be used now.
 *  - Every failure is a `KmsError` with an outcome; an AbortSignal that fires is `UNREACHABLE`, never `DENIED`.
 *  - A KEK comes back only under the context it was wrapped with. */
import type { TokenCredential } from '@azure/core-auth';
import type { AuthClient } from 'google-auth-library';

/** `LOCAL` is a key file of this installation. Structurally the same as in `@lakebase/api`, which this layer cannot import. */
export type KmsProvider = 'AWS_KMS' | 'AZURE_KEY_VAULT' | 'GCP_KMS' | 'VAULT_TRANSIT' | 'LOCAL';

export interface KmsKeyConfig {
  readonly provider: KmsProvider;
  /** AWS: key ARN. Azure: key URL, with or without version. Google: cryptoKeys resource name. Vault: `<mount>/<key>`. Local: path of a key file, or `root`. */
  readonly key: string;
  /** Provider-specific, docs/operating/kms.md. */
  readonly options?: Readonly<Record<string, string>>;
}

/** Bound to every wrapped KEK, so that it cannot be moved to another project or version. Shown in the provider's audit log. */
export interface WrapContext {
  readonly project: string;
  readonly account: string;
  readonly purpose: string;
  readonly kekVersion: number;
}

/** What is stored of a wrapped KEK. */
export interface WrappedKey {
  readonly blob: Buffer;
  /** The key as the provider names it in its answer. */
  readonly keyId: string;
  /** Version of the key that wrapped; '' where the provider hides it. */
  readonly keyVersion: string;
  readonly algorithm: string;
}

export interface KmsKey {
  /** Loads the provider's SDK, which takes seconds on a busy machine, and reaches nobody: for callers with a deadline, before it begins. */
  load?(): Promise<void>;
  /** `plain` is 32 bytes; it stays the caller's to wipe. */
  wrap(plain: Buffer, context: WrapContext, signal: AbortSignal): Promise<WrappedKey>;
  /** The caller wipes the result. */
  unwrap(wrapped: WrappedKey, context: WrapContext, signal: AbortSignal): Promise<Buffer>;
  /** Version the provider would wrap with now, '' when it cannot tell; uses no key material where the provider has metadata. */
  currentVersion(signal: AbortSignal): Promise<string>;
  close(): void;
}

/** What the operator, not the owner of the key, decides: the process's own credentials, where requests may go, how long they may take. */
export interface KmsEnvironment {
  /** The file behind LOCAL `root`; made when missing. */
  readonly rootKeyPath: string;
  /** May tenants name files with LOCAL? Default: only `root` and files in the directory of `rootKeyPath`. */
  readonly allowAnyLocalPath?: boolean;
  /** One attempt at the provider takes at most this long (default 3,000 ms); attempts repeat until the caller's signal fires or `attemptsMax`. */
  readonly attemptTimeoutMs?: number;
  /** Default 3. */
  readonly attemptsMax?: number;
  /** Requests go here instead of the provider's own host: private endpoints, emulators, tests. Plain HTTP is accepted here only and for loopback. */
  readonly endpoints?: Partial<Readonly<Record<KmsProvider, string>>>;
  /** PEM certificates trusted besides the system's. */
  readonly caCertificates?: string;
  /** Instead of what the SDKs find by themselves (environment, metadata service, workload identity). Options of a key go first. */
  readonly credentials?: {
    readonly aws?: { readonly accessKeyId: string; readonly secretAccessKey: string; readonly sessionToken?: string };
    readonly azure?: TokenCredential;
    readonly google?: AuthClient;
    /** Used only with the operator's own address (`endpoints.VAULT_TRANSIT`), never sent to an address that a tenant named. */
    readonly vaultToken?: string;
  };
  /** Says whether a tenant's key may be reached at this address; default: yes. */
  readonly mayConnect?: (url: URL) => boolean;
}
