/** From a configuration to a key: the one place that knows every adapter, and the checks that are the same for all. */
import { timingSafeEqual } from 'node:crypto';
import type { KmsAdapter } from './adapter.ts';
import { Options } from './adapter.ts';
import { withAttempts } from './attempts.ts';
import { openAwsKey, awsError } from './aws.ts';
import { azureError, openAzureKey } from './azure.ts';
import { KEK_BYTES, contextPairs } from './context.ts';
import { KmsError, badAnswer, meaningToError } from './errors.ts';
import { googleError, openGoogleKey } from './google.ts';
import { openLocalKey } from './local.ts';
import type { KmsEnvironment, KmsKey, KmsKeyConfig, KmsProvider, WrapContext, WrappedKey } from './types.ts';
import { openVaultKey, vaultError } from './vault.ts';

/** What a provider may return or a store may hold as one wrapped KEK. */
const BLOB_BYTES_MAX = 16 * 1024;
const KEY_NAME_MAX = 2_048;

type Opener = (key: string, options: Options, env: KmsEnvironment) => KmsAdapter;

const ADAPTERS: Readonly<Record<KmsProvider, { readonly open: Opener; readonly classify: (error: unknown) => KmsError }>> = {
  AWS_KMS: { open: openAwsKey, classify: awsError },
  AZURE_KEY_VAULT: { open: openAzureKey, classify: azureError },
  GCP_KMS: { open: openGoogleKey, classify: googleError },
  VAULT_TRANSIT: { open: openVaultKey, classify: vaultError },
  LOCAL: { open: openLocalKey, classify: (error) => badAnswer('LOCAL', 'unexpected failure', error) },
};

/** Checks the configuration (`INVALID` when it cannot be right); sends nothing yet. */
export function openKmsKey(config: KmsKeyConfig, env: KmsEnvironment): KmsKey {
  const { provider } = config;
  if (!Object.hasOwn(ADAPTERS, provider))
    throw new KmsError(
      'INVALID',
      provider,
      'UnknownProvider',
      `no KMS adapter for ${String(provider)}; there are ${Object.keys(ADAPTERS).join(', ')}`,
    );
  if (config.key === '' || config.key.length > KEY_NAME_MAX)
    throw new KmsError('INVALID', provider, 'KeyName', `${provider} KeyName: name the key; docs/operating/kms.md says how`);
  const options = new Options(config.options);
  const adapter = ADAPTERS[provider].open(config.key, options, env);
  const unknown = options.unknown();
  if (unknown.length > 0)
    throw new KmsError(
      'INVALID',
      provider,
      'UnknownOption',
      `${provider} UnknownOption: there is no option ${unknown.join(', ')} for this provider`,
    );
  return new CheckedKey(provider, adapter, env);
}

/** A KEK is handed out as wrapped only after it was unwrapped again: a wrapping that nobody can undo must never be stored. */
class CheckedKey implements KmsKey {
  readonly #provider: KmsProvider;
  readonly #adapter: KmsAdapter;
  readonly #env: KmsEnvironment;

  constructor(provider: KmsProvider, adapter: KmsAdapter, env: KmsEnvironment) {
    this.#provider = provider;
    this.#adapter = adapter;
    this.#env = env;
  }

  load(): Promise<void> {
    return this.#adapter.load();
  }

  async wrap(plain: Buffer, context: WrapContext, signal: AbortSignal): Promise<WrappedKey> {
    contextPairs(context);
    if (plain.length !== KEK_BYTES)
      throw new KmsError(
        'INVALID',
        this.#provider,
        'KeyLength',
        `${this.#provider} KeyLength: a KEK to wrap has ${KEK_BYTES} bytes, this one has ${plain.length}`,
      );
    const wrapped = await this.#attempts(signal, (s) => this.#adapter.wrap(plain, context, s));
    if (wrapped.blob.length === 0 || wrapped.blob.length > BLOB_BYTES_MAX)
      throw badAnswer(this.#provider, `a wrapped key of ${wrapped.blob.length} bytes`);
    const again = await this.#attempts(signal, (s) => this.#adapter.unwrap(wrapped, context, s));
    const same = again.plain.length === plain.length && timingSafeEqual(again.plain, plain);
    again.plain.fill(0);
    if (!same) throw badAnswer(this.#provider, 'what was wrapped comes back as something else');
    return wrapped.keyVersion === '' ? { ...wrapped, keyVersion: again.keyVersion } : wrapped;
  }

  async unwrap(wrapped: WrappedKey, context: WrapContext, signal: AbortSignal): Promise<Buffer> {
    contextPairs(context);
    if (wrapped.blob.length === 0 || wrapped.blob.length > BLOB_BYTES_MAX)
      throw meaningToError(this.#provider, 'WrappedKeyMalformed', ['DENIED', 'the stored wrapped key is damaged'], '');
    return await this.#attempts(signal, async (s) => {
      const { plain } = await this.#adapter.unwrap(wrapped, context, s);
      if (plain.length === KEK_BYTES) return plain;
      plain.fill(0);
      throw badAnswer(this.#provider, `an unwrapped key of ${plain.length} bytes`);
    });
  }

  currentVersion(signal: AbortSignal): Promise<string> {
    return this.#attempts(signal, (s) => this.#adapter.currentVersion(s));
  }

  close(): void {
    this.#adapter.close();
  }

  async #attempts<T>(signal: AbortSignal, attempt: (signal: AbortSignal) => Promise<T>): Promise<T> {
    await this.#adapter.load();
    return await withAttempts(this.#provider, this.#env, signal, ADAPTERS[this.#provider].classify, attempt);
  }
}
