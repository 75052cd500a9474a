/** The one way to a KMS: opens adapters, sets deadlines, checks what comes back, and reports every use (audit, metrics).
 *  Invariant: a KEK that a KMS answers with is compared with the record's check value; a wrong one is wiped and counts as denied. */
import { timingSafeEqual } from 'node:crypto';
import type { CheckResult, KmsKeyConfig } from '@lakebase/api';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { copySecret, hkdf32, randomSecret, wipe } from '@lakebase/envelope';
import { type KmsEnvironment, KmsError, type KmsKey, type KmsOutcome, type WrapContext, type WrappedKey, openKmsKey } from '@lakebase/kms';
import { type KekRecord, type ProjectRecord, type StoredWrapping, wrappedKeyOf } from '../store/project-record.ts';

export type KmsOperation = 'wrap' | 'unwrap' | 'version' | 'check';
/** Told of every call that reached for a KMS. */
export type KmsObserver = (use: {
  readonly operation: KmsOperation;
  readonly provider: string;
  readonly outcome: 'OK' | KmsOutcome;
  readonly seconds: number;
}) => void;

export interface KmsAccessOptions {
  readonly env: KmsEnvironment;
  readonly timeoutMs: number;
  readonly observe: KmsObserver;
  /** Tests put a scripted KMS here. */
  readonly open?: (config: KmsKeyConfig, env: KmsEnvironment) => KmsKey;
}

export interface Wrapping {
  readonly wrapped: StoredWrapping;
  readonly keyId: string;
  readonly keyVersion: string;
}

export class KmsAccess {
  readonly #o: KmsAccessOptions;
  /** Open adapters by configuration: SDK clients keep connections and credentials. */
  readonly #keys = new Map<string, KmsKey>();

  constructor(options: KmsAccessOptions) {
    this.#o = options;
  }

  async wrap(record: Pick<ProjectRecord, 'project' | 'account'>, config: KmsKeyConfig, version: number, kek: Buffer): Promise<Wrapping> {
    const { blob, algorithm, keyId, keyVersion } = await this.#call('wrap', config, (key, signal) =>
      key.wrap(kek, contextOf(record, version), signal),
    );
    return { wrapped: { blob: blob.toString('base64'), algorithm }, keyId, keyVersion };
  }

  /** In memory of its own, the caller's to wipe. Throws KmsError. */
  async unwrap(record: ProjectRecord, kek: KekRecord, config: KmsKeyConfig = record.kms): Promise<Buffer> {
    const wrapped = wrappedKeyOf(kek) as WrappedKey;
    const opened = await this.#call('unwrap', config, (key, signal) => key.unwrap(wrapped, contextOf(record, kek.version), signal));
    const secret = copySecret(opened); // an adapter may answer with a slice of a pool
    wipe(opened);
    if (timingSafeEqual(Buffer.from(kekCheck(secret), 'hex'), Buffer.from(kek.check, 'hex'))) return secret;
    wipe(secret);
    throw new KmsError(
      'DENIED',
      config.provider,
      'WrongKey',
      `${config.provider} answered with another key than the one that was wrapped; nothing was opened with it`,
    );
  }

  currentVersion(config: KmsKeyConfig): Promise<string> {
    return this.#call('version', config, (key, signal) => key.currentVersion(signal));
  }

  /** A live wrap and unwrap of a throw-away key, with a client of its own; nothing is stored. */
  async check(config: KmsKeyConfig, account: string): Promise<CheckResult> {
    const probe = randomSecret();
    let key: KmsKey | undefined;
    try {
      const context: WrapContext = { project: NO_PROJECT, account, purpose: 'check', kekVersion: 1 };
      const open = (): KmsKey => (key = (this.#o.open ?? openKmsKey)(config, this.#o.env));
      const { keyId, keyVersion } = await this.#timed('check', config, open, async (opened, signal) => {
        const wrapped = await opened.wrap(probe, context, signal);
        wipe(await opened.unwrap(wrapped, context, signal));
        return wrapped;
      });
      return { ok: true, outcome: 'OK', message: '', keyId, keyVersion };
    } catch (error) {
      const { outcome, message } = error as KmsError;
      return { ok: false, outcome, message, keyId: '', keyVersion: '' };
    } finally {
      wipe(probe);
      key?.close();
    }
  }

  /** Forgets the client of a configuration that is not used any more. */
  forget(config: KmsKeyConfig): void {
    const name = nameOf(config);
    this.#keys.get(name)?.close();
    this.#keys.delete(name);
  }

  close(): void {
    for (const key of this.#keys.values()) key.close();
    this.#keys.clear();
  }

  #call<T>(operation: KmsOperation, config: KmsKeyConfig, run: (key: KmsKey, signal: AbortSignal) => Promise<T>): Promise<T> {
    return this.#timed(operation, config, () => this.#open(config), run);
  }

  async #timed<T>(
    operation: KmsOperation,
    config: KmsKeyConfig,
    open: () => KmsKey,
    run: (key: KmsKey, signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    let startedAt = performance.now();
    let outcome: 'OK' | KmsOutcome = 'OK';
    try {
      const key = open();
      await key.load?.(); // the first use of an SDK must not look like a KMS that does not answer
      startedAt = performance.now();
      const signal = AbortSignal.timeout(this.#o.timeoutMs);
      const { promise: late, reject } = Promise.withResolvers<never>();
      const timer = setTimeout(
        () =>
          reject(
            new KmsError('UNREACHABLE', config.provider, 'Timeout', `${config.provider} did not answer within ${this.#o.timeoutMs} ms`),
          ),
        this.#o.timeoutMs + 250, // an adapter that does not listen to its signal
      );
      try {
        return await Promise.race([run(key, signal), late]);
      } finally {
        clearTimeout(timer);
      }
    } catch (error) {
      const known = asKmsError(error, config);
      outcome = known.outcome;
      throw known;
    } finally {
      this.#o.observe({ operation, provider: config.provider, outcome, seconds: (performance.now() - startedAt) / 1_000 });
    }
  }

  #open(config: KmsKeyConfig): KmsKey {
    const name = nameOf(config);
    let key = this.#keys.get(name);
    if (key === undefined) this.#keys.set(name, (key = (this.#o.open ?? openKmsKey)(config, this.#o.env)));
    return key;
  }
}

export const sameKey = (a: KmsKeyConfig, b: KmsKeyConfig): boolean => nameOf(a) === nameOf(b);
const nameOf = (c: KmsKeyConfig): string =>
  JSON.stringify([c.provider, c.key, Object.entries(c.options ?? {}).sort(([a], [b]) => (a < b ? -1 : 1))]);

const CHECK_INFO = Buffer.from('lakebase kek check v1');
/** Context of checks, which belong to no project. */
const NO_PROJECT = '0'.repeat(32);
const NO_SALT = Buffer.alloc(0);
export const kekCheck = (kek: Buffer): string => hkdf32(kek, NO_SALT, CHECK_INFO).toString('hex');

const contextOf = (record: Pick<ProjectRecord, 'project' | 'account'>, kekVersion: number): WrapContext => ({
  project: record.project,
  account: record.account,
  purpose: 'kek',
  kekVersion,
});

/** A defect of an adapter is no reason to revoke: unreachable, which alarms and ends by itself. */
function asKmsError(error: unknown, config: KmsKeyConfig): KmsError {
  if (error instanceof KmsError) return error;
  const detail = error instanceof LakebaseError ? error.message : `unexpected failure: ${errorMessage(error)}`;
  return new KmsError('UNREACHABLE', config.provider, 'Unexpected', detail, { cause: error });
}
