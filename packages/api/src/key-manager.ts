/** Key manager HTTP surface (services/keymanager; docs/flows/key-path.md). JSON, except where keys pass: those are
 *  octets, because a string cannot be wiped. Token: `service`.
 *  A reference has 97 bytes (docs/formats/envelope.md), a DEK 32; arrays of them have no separators; one that does not unwrap is answered
 *  with zeros in its place.
 *
 *    PUT    /v1/projects/:project            CreateProjectKey   -> ProjectKeyStatus    (idempotent; makes KEK version 1)
 *    GET    /v1/projects/:project            -> ProjectKeyStatus
 *    GET    /v1/projects                     -> { projects: ProjectKeyStatus[] }
 *    DELETE /v1/projects/:project            { actor }          -> ShredReport         (destroys every wrapped KEK)
 *    PATCH  /v1/projects/:project            { graceSeconds, actor } -> ProjectKeyStatus
 *    PUT    /v1/projects/:project/binding    RebindRequest      -> ProjectKeyStatus    (another CMK; KEKs wrapped again, no data touched)
 *    POST   /v1/projects/:project/rotate     { actor }          -> ProjectKeyStatus    (new KEK version)
 *    POST   /v1/projects/:project/rewrap-kek { actor }          -> ProjectKeyStatus    (wrap the KEKs with the CMK's newest version)
 *    POST   /v1/projects/:project/probe      -> ProjectKeyStatus                       (probe now)
 *    POST   /v1/projects/:project/deks       { count }          -> octets: count × (DEK · reference)        count 1..256
 *    POST   /v1/projects/:project/unwrap     octets: references -> octets: DEKs, in the same order          up to 1024
 *    POST   /v1/projects/:project/rewrap     octets: references -> octets: references under the newest KEK  up to 1024
 *    POST   /v1/projects/:project/retire     { service, below } -> ProjectKeyStatus    `service` holds no reference of a KEK version < below
 *    POST   /v1/projects/:project/re-encrypt { actor }          -> ProjectKeyStatus    (new KEK version; then every object from before gets a new DEK)
 *    POST   /v1/projects/:project/re-encryption  ReEncryptionReport -> ProjectKeyStatus (how far a storage service is)
 *    POST   /v1/installation/deks            { count }          -> octets: count × (DEK · reference)        count 1..16; wrapped by the installation root key
 *    POST   /v1/installation/unwrap          octets: references -> octets: DEKs; CONFIG when this root key did not wrap them
 *    POST   /v1/check                        CheckRequest       -> CheckResult         (live wrap and unwrap with a throw-away key; stores nothing)
 *    GET    /v1/watch                        NDJSON of WatchLine, see there
 *    GET    /v1/audit?after=N                NDJSON of audit lines (services/keymanager/src/audit.ts)
 *    POST   /v1/audit                        AuditEntry         -> { sequence }        (others record what they did: terminations, binds) */
import { LakebaseError } from '@lakebase/base';
import { copyOffHeap } from '@lakebase/bytes';
import type { ProjectUid } from '@lakebase/ids';
import { binaryCall } from './binary-call.ts';
import { HttpClient, type HttpClientOptions } from './http-client.ts';
import { ndjson } from './ndjson.ts';

/** `LOCAL` is the installation root key. */
export type KmsProvider = 'AWS_KMS' | 'AZURE_KEY_VAULT' | 'GCP_KMS' | 'VAULT_TRANSIT' | 'LOCAL';

/** Where a CMK is and how to reach it. `options` are provider-specific (docs/operating/kms.md); secrets in them are write-only at the public API. */
export interface KmsKeyConfig {
  readonly provider: KmsProvider;
  /** AWS: key ARN. Azure: key URL, with or without version. Google: cryptoKeys resource name. Vault: `<mount>/<key>`. Local: path of a key file, or `root`. */
  readonly key: string;
  readonly options?: Readonly<Record<string, string>>;
}

export type KeyState = 'ACTIVE' | 'UNREACHABLE' | 'SUSPENDED' | 'REVOKED' | 'SHREDDED';
/** May storage serve a project whose key is in this state? */
export const keyUsable = (state: KeyState): boolean => state === 'ACTIVE' || state === 'UNREACHABLE';

export interface CreateProjectKey {
  readonly account: string;
  /** Id of the account's key configuration; null: the installation root key. */
  readonly configurationId: string | null;
  readonly kms: KmsKeyConfig;
  readonly actor: string;
  /** Seconds an unreachable KMS is ridden out; default 600. */
  readonly graceSeconds?: number;
}
export interface RebindRequest extends CreateProjectKey {}

export interface KekVersionStatus {
  readonly version: number;
  readonly createTime: string;
  /** What wrapped it, as the provider names it. */
  readonly keyId: string;
  readonly keyVersion: string;
  readonly state: 'CURRENT' | 'OLD' | 'DESTROYED';
}
export interface KeyStateChange {
  readonly time: string;
  readonly state: KeyState;
  readonly reason: string;
}
export interface ProjectKeyStatus {
  readonly project: ProjectUid;
  readonly account: string;
  readonly configurationId: string | null;
  readonly provider: KmsProvider;
  readonly key: string;
  readonly state: KeyState;
  /** Why it is not ACTIVE; empty when it is. */
  readonly reason: string;
  readonly keks: readonly KekVersionStatus[];
  readonly lastCheck: string | null;
  readonly lastSuccess: string | null;
  /** Newest last, at most 50. */
  readonly history: readonly KeyStateChange[];
  readonly graceSeconds: number;
  /** The last one that was asked for; absent: none ever was. */
  readonly reEncryption?: ReEncryptionStatus;
}

/** How far a storage service is with rewriting the objects whose DEK was made under a KEK version below `below`. Counts are of this service's
 *  objects; `total` may change as others make objects unnecessary. */
export interface ReEncryptionReport {
  readonly service: string;
  readonly below: number;
  readonly done: number;
  readonly total: number;
  /** Bytes written. */
  readonly bytes: number;
  /** None is left. */
  readonly finished: boolean;
}
export interface ReEncryptionStatus {
  readonly below: number;
  readonly requestTime: string;
  readonly actor: string;
  /** When the last service had finished. */
  readonly finishTime: string | null;
  /** By name; `time` of the last report. Services that did not report yet are missing. */
  readonly services: Readonly<Record<string, Omit<ReEncryptionReport, 'service' | 'below'> & { readonly time: string }>>;
  /** Who has to finish. */
  readonly waitingFor: readonly string[];
}

export const KEY_BYTES = 32;
/** docs/formats/envelope.md; the same number is DEK_REFERENCE_BYTES in envelope, which this package does not see. */
export const REFERENCE_BYTES = 97;
export const FRESH_DEKS_MAX = 256;
export const REFERENCES_MAX = 1024;
/** Of a DEK that the installation root key wraps: the Manager's catalog in the object store. Fingerprint of the root key (8 bytes), then what it wrapped (61). */
export const INSTALLATION_REFERENCE_BYTES = 69;
export const INSTALLATION_DEKS_MAX = 16;

/** Memory of its own each; the receiver's to wipe. */
export interface FreshDek {
  readonly dek: Buffer;
  readonly reference: Buffer;
}
export interface CheckRequest {
  readonly account: string;
  readonly kms: KmsKeyConfig;
  readonly actor: string;
}
export interface CheckResult {
  readonly ok: boolean;
  readonly outcome: 'OK' | 'DENIED' | 'UNREACHABLE' | 'INVALID';
  /** What is wrong and which permission or state is missing. */
  readonly message: string;
  readonly keyId: string;
  readonly keyVersion: string;
}
export interface ShredReport {
  readonly project: ProjectUid;
  readonly time: string;
  readonly destroyedKeks: readonly {
    readonly version: number;
    readonly keyId: string;
    readonly keyVersion: string;
    readonly sha256: string;
  }[];
  readonly statement: string;
}

/** First line: `snapshot`; afterwards `change` when a project's state, KEK version or existence changes; `heartbeat` every second. */
export type WatchLine =
  | { readonly kind: 'snapshot'; readonly projects: readonly WatchedProject[]; readonly leaseSeconds: number }
  | ({ readonly kind: 'change' } & WatchedProject)
  | { readonly kind: 'heartbeat' };
export interface WatchedProject {
  readonly project: ProjectUid;
  readonly state: KeyState;
  readonly reason: string;
  readonly kekVersion: number;
  /** Objects whose DEK was made under a KEK version below this one are to be rewritten. */
  readonly reEncryptBelow?: number;
}

export interface AuditEntry {
  readonly actor: string;
  readonly action: string;
  readonly account: string;
  readonly subject: string;
  readonly result: 'OK' | 'DENIED' | 'UNREACHABLE' | 'FAILED';
  readonly detail: string;
}

export class KeyManagerClient {
  readonly http: HttpClient;
  readonly #options: HttpClientOptions;
  constructor(options: HttpClientOptions) {
    this.http = new HttpClient(options);
    this.#options = options;
  }
  createProject(p: ProjectUid, body: CreateProjectKey): Promise<ProjectKeyStatus> {
    return this.http.call('PUT', `/v1/projects/${p}`, body);
  }
  status(p: ProjectUid): Promise<ProjectKeyStatus> {
    return this.http.call('GET', `/v1/projects/${p}`);
  }
  projects(): Promise<{ projects: readonly ProjectKeyStatus[] }> {
    return this.http.call('GET', '/v1/projects');
  }
  shred(p: ProjectUid, actor: string): Promise<ShredReport> {
    return this.http.call('DELETE', `/v1/projects/${p}`, { actor });
  }
  rebind(p: ProjectUid, body: RebindRequest): Promise<ProjectKeyStatus> {
    return this.http.call('PUT', `/v1/projects/${p}/binding`, body);
  }
  setGrace(p: ProjectUid, graceSeconds: number, actor: string): Promise<ProjectKeyStatus> {
    return this.http.call('PATCH', `/v1/projects/${p}`, { graceSeconds, actor });
  }
  rotate(p: ProjectUid, actor: string): Promise<ProjectKeyStatus> {
    return this.http.call('POST', `/v1/projects/${p}/rotate`, { actor });
  }
  rewrapKek(p: ProjectUid, actor: string): Promise<ProjectKeyStatus> {
    return this.http.call('POST', `/v1/projects/${p}/rewrap-kek`, { actor });
  }
  probe(p: ProjectUid): Promise<ProjectKeyStatus> {
    return this.http.call('POST', `/v1/projects/${p}/probe`, {});
  }
  async deks(p: ProjectUid, count: number): Promise<FreshDek[]> {
    const each = KEY_BYTES + REFERENCE_BYTES;
    return freshDeks(await this.#octets(p, 'deks', { count }, count * each), each);
  }
  /** In the order of `references`; each in memory of its own. */
  async unwrap(p: ProjectUid, references: readonly Buffer[]): Promise<Buffer[]> {
    return ownDeks(await this.#octets(p, 'unwrap', Buffer.concat(references), references.length * KEY_BYTES));
  }
  /** DEKs of no project, under the installation root key. */
  async installationDeks(count: number): Promise<FreshDek[]> {
    const each = KEY_BYTES + INSTALLATION_REFERENCE_BYTES;
    return freshDeks(await this.#octetsOf('/v1/installation/deks', { count }, count * each), each);
  }
  async installationUnwrap(references: readonly Buffer[]): Promise<Buffer[]> {
    return ownDeks(await this.#octetsOf('/v1/installation/unwrap', Buffer.concat(references), references.length * KEY_BYTES));
  }
  async rewrap(p: ProjectUid, references: readonly Buffer[]): Promise<Buffer[]> {
    return pieces(await this.#octets(p, 'rewrap', Buffer.concat(references), references.length * REFERENCE_BYTES), REFERENCE_BYTES);
  }
  retire(p: ProjectUid, service: string, below: number): Promise<ProjectKeyStatus> {
    return this.http.call('POST', `/v1/projects/${p}/retire`, { service, below });
  }
  reEncrypt(p: ProjectUid, actor: string): Promise<ProjectKeyStatus> {
    return this.http.call('POST', `/v1/projects/${p}/re-encrypt`, { actor });
  }
  reportReEncryption(p: ProjectUid, report: ReEncryptionReport): Promise<ProjectKeyStatus> {
    return this.http.call('POST', `/v1/projects/${p}/re-encryption`, report);
  }
  check(body: CheckRequest): Promise<CheckResult> {
    return this.http.call('POST', '/v1/check', body);
  }
  audit(entry: AuditEntry): Promise<{ sequence: number }> {
    return this.http.call('POST', '/v1/audit', entry);
  }

  /** Lines of the watch until the connection or `signal` ends it. */
  watch(signal: AbortSignal): AsyncGenerator<WatchLine> {
    return ndjson<WatchLine>({ ...this.#options, path: '/v1/watch', signal });
  }
  /** Audit lines after sequence number `after`, as stored. */
  auditLines(after: number, signal: AbortSignal): AsyncGenerator<Record<string, unknown>> {
    return ndjson({ ...this.#options, path: `/v1/audit?after=${after}`, signal });
  }

  #octets(p: ProjectUid, verb: string, body: unknown, bytes: number): Promise<Buffer> {
    return this.#octetsOf(`/v1/projects/${p}/${verb}`, body, bytes);
  }
  async #octetsOf(path: string, body: unknown, bytes: number): Promise<Buffer> {
    const answer = await binaryCall({
      baseUrl: this.http.baseUrl,
      token: this.#options.token,
      method: 'POST',
      path,
      body,
      bytesMax: Math.max(bytes, 64 * 1024),
      ...(this.#options.timeoutMs === undefined ? {} : { timeoutMs: this.#options.timeoutMs }),
    });
    if (answer.length !== bytes)
      throw new LakebaseError('UNAVAILABLE', `the key manager answered ${path} with ${answer.length} bytes instead of ${bytes}`);
    return answer;
  }
}

function pieces(bytes: Buffer, each: number): Buffer[] {
  return Array.from({ length: bytes.length / each }, (_, i) => bytes.subarray(i * each, (i + 1) * each));
}

/** Each key in memory of its own; `answer` is zeros afterwards. */
function ownDeks(answer: Buffer): Buffer[] {
  const deks = pieces(answer, KEY_BYTES).map(copyOffHeap);
  answer.fill(0);
  return deks;
}

/** The same of `DEK · reference`, `each` bytes long. */
function freshDeks(answer: Buffer, each: number): FreshDek[] {
  const keys = pieces(answer, each).map((piece) => ({
    dek: copyOffHeap(piece.subarray(0, KEY_BYTES)),
    reference: Buffer.from(piece.subarray(KEY_BYTES)),
  }));
  answer.fill(0);
  return keys;
}
