/** AWS KMS: Encrypt and Decrypt with the context as encryption context, which AWS binds and shows in CloudTrail.
 *
 *  Invariants
 *  - The region is the ARN's. Decrypt always names the key, so that a blob of another key is refused.
 *  - The SDK does not retry (attempts.ts does), and every request ends with its AbortSignal. */
import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import type { DecryptCommandOutput, KMSClient, KMSClientConfig } from '@aws-sdk/client-kms';
import type { KmsAdapter, Options, Unwrapped } from './adapter.ts';
import { contextPairs } from './context.ts';
import { tenantEndpoint, trustedAuthorities } from './endpoint.ts';
import { KmsError, badAnswer } from './errors.ts';
import type { KmsEnvironment, WrapContext, WrappedKey } from './types.ts';

export { awsError } from './aws-errors.ts';

const ALGORITHM = 'SYMMETRIC_DEFAULT';
const KEY_ARN = /^arn:(aws[a-z-]*):kms:([a-z]{2}[a-z0-9-]+):(\d{12}):key\/([A-Za-z0-9-]{1,128})$/;
const ROLE_ARN = /^arn:aws[a-z-]*:iam::\d{12}:role\/[\w+=,.@/-]{1,512}$/;

interface AwsSettings {
  readonly arn: string;
  readonly region: string;
  readonly endpoint: string | undefined;
  readonly stsEndpoint: string | undefined;
  readonly roleArn: string | undefined;
  readonly externalId: string | undefined;
  readonly accessKey: { readonly accessKeyId: string; readonly secretAccessKey: string; readonly sessionToken?: string } | undefined;
}

export function openAwsKey(key: string, options: Options, env: KmsEnvironment): KmsAdapter {
  const invalid = (code: string, advice: string): KmsError => new KmsError('INVALID', 'AWS_KMS', code, `AWS_KMS ${code}: ${advice}`);
  const parts = KEY_ARN.exec(key);
  if (parts === null)
    throw invalid(
      'InvalidArn',
      'name the key by its ARN, arn:aws:kms:<region>:<account>:key/<id>; an alias or a bare id can be pointed at another key',
    );
  const accessKeyId = options.get('accessKeyId');
  const secretAccessKey = options.get('secretAccessKey');
  const sessionToken = options.get('sessionToken');
  if ((accessKeyId === undefined) !== (secretAccessKey === undefined))
    throw invalid('InvalidOptions', 'accessKeyId and secretAccessKey belong together');
  const roleArn = options.get('roleArn');
  if (roleArn !== undefined && !ROLE_ARN.test(roleArn)) throw invalid('InvalidOptions', 'roleArn is arn:aws:iam::<account>:role/<name>');
  const externalId = options.get('externalId');
  if (externalId !== undefined && roleArn === undefined) throw invalid('InvalidOptions', 'externalId has a meaning only with roleArn');
  const settings: AwsSettings = {
    arn: key,
    region: parts[2] as string,
    endpoint: tenantEndpoint('AWS_KMS', options.get('endpoint'), env) ?? env.endpoints?.AWS_KMS,
    stsEndpoint: tenantEndpoint('AWS_KMS', options.get('stsEndpoint'), env),
    roleArn,
    externalId,
    accessKey:
      accessKeyId === undefined || secretAccessKey === undefined
        ? env.credentials?.aws
        : { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) },
  };
  return new AwsKey(settings, env);
}

class AwsKey implements KmsAdapter {
  readonly #settings: AwsSettings;
  readonly #env: KmsEnvironment;
  #opened: Promise<{ client: KMSClient; sdk: typeof import('@aws-sdk/client-kms') }> | null = null;
  #closed = false;

  constructor(settings: AwsSettings, env: KmsEnvironment) {
    this.#settings = settings;
    this.#env = env;
  }

  async wrap(plain: Buffer, context: WrapContext, signal: AbortSignal): Promise<WrappedKey> {
    const { client, sdk } = await this.#open();
    const answer = await client.send(
      new sdk.EncryptCommand({ KeyId: this.#settings.arn, Plaintext: plain, EncryptionContext: contextPairs(context) }),
      { abortSignal: signal },
    );
    if (answer.CiphertextBlob === undefined || answer.KeyId === undefined)
      throw badAnswer('AWS_KMS', 'Encrypt answers without a ciphertext');
    this.#checkKey(answer.KeyId);
    // Encrypt does not say which key material it used; Decrypt does, and the wrapped key is unwrapped at once (open.ts).
    return {
      blob: Buffer.from(answer.CiphertextBlob),
      keyId: answer.KeyId,
      keyVersion: '',
      algorithm: answer.EncryptionAlgorithm ?? ALGORITHM,
    };
  }

  async unwrap(wrapped: WrappedKey, context: WrapContext, signal: AbortSignal): Promise<Unwrapped> {
    const { client, sdk } = await this.#open();
    const answer: DecryptCommandOutput = await client.send(
      new sdk.DecryptCommand({ KeyId: this.#settings.arn, CiphertextBlob: wrapped.blob, EncryptionContext: contextPairs(context) }),
      { abortSignal: signal },
    );
    if (answer.Plaintext === undefined || answer.KeyId === undefined) throw badAnswer('AWS_KMS', 'Decrypt answers without a plaintext');
    this.#checkKey(answer.KeyId);
    const { buffer, byteOffset, byteLength } = answer.Plaintext;
    // A view, so that wiping it wipes what the SDK decoded.
    return { plain: Buffer.from(buffer, byteOffset, byteLength), keyVersion: answer.KeyMaterialId ?? '' };
  }

  async currentVersion(signal: AbortSignal): Promise<string> {
    const { client, sdk } = await this.#open();
    try {
      const answer = await client.send(new sdk.DescribeKeyCommand({ KeyId: this.#settings.arn }), { abortSignal: signal });
      return answer.KeyMetadata?.CurrentKeyMaterialId ?? '';
    } catch (error) {
      // DescribeKey may be left out of the policy: then versions are not seen, and everything else works.
      if ((error as { name?: string }).name === 'AccessDeniedException') return '';
      throw error;
    }
  }

  async load(): Promise<void> {
    await import('@aws-sdk/client-kms');
    if (this.#settings.roleArn !== undefined) await import('@aws-sdk/credential-providers');
  }

  close(): void {
    this.#closed = true;
    this.#opened?.then(({ client }) => client.destroy()).catch(() => {});
  }

  #checkKey(keyId: string): void {
    // A replica of a multi-region key may be asked for what another replica wrapped: the key's own id is what must agree.
    if (keyId.split('/').pop() !== this.#settings.arn.split('/').pop())
      throw badAnswer('AWS_KMS', `the answer is of key ${keyId.slice(0, 200)}, not of the one asked for`);
  }

  #open(): Promise<{ client: KMSClient; sdk: typeof import('@aws-sdk/client-kms') }> {
    if (this.#closed) throw new KmsError('UNREACHABLE', 'AWS_KMS', 'Closed', 'the key is closed', { transient: false });
    this.#opened ??= this.#connect().catch((error: unknown) => {
      this.#opened = null;
      throw error;
    });
    return this.#opened;
  }

  async #connect(): Promise<{ client: KMSClient; sdk: typeof import('@aws-sdk/client-kms') }> {
    const { region, endpoint } = this.#settings;
    const sdk = await import('@aws-sdk/client-kms');
    const requestHandler = this.#requestHandler();
    const credentials = await this.#credentials();
    const config: KMSClientConfig = {
      region,
      maxAttempts: 1,
      requestHandler,
      ...(endpoint === undefined ? {} : { endpoint }),
      ...(credentials === undefined ? {} : { credentials }),
    };
    return { client: new sdk.KMSClient(config), sdk };
  }

  async #credentials(): Promise<NonNullable<KMSClientConfig['credentials']> | undefined> {
    const { roleArn, externalId, accessKey, region, stsEndpoint } = this.#settings;
    if (roleArn === undefined) return accessKey;
    const { fromTemporaryCredentials } = await import('@aws-sdk/credential-providers');
    return fromTemporaryCredentials({
      params: {
        RoleArn: roleArn,
        RoleSessionName: 'lakebase-key-manager',
        // So that a role that was taken away is noticed after this long at the latest, whatever the session's own limit is.
        DurationSeconds: 900,
        ...(externalId === undefined ? {} : { ExternalId: externalId }),
      },
      ...(accessKey === undefined ? {} : { masterCredentials: accessKey }),
      clientConfig: {
        region,
        maxAttempts: 1,
        requestHandler: this.#requestHandler(),
        ...(stsEndpoint === undefined ? {} : { endpoint: stsEndpoint }),
      },
    });
  }

  #requestHandler(): NonNullable<KMSClientConfig['requestHandler']> {
    const timeout = this.#env.attemptTimeoutMs ?? 3_000;
    const { caCertificates } = this.#env;
    return {
      connectionTimeout: timeout,
      requestTimeout: timeout,
      httpAgent: new HttpAgent({ keepAlive: true, maxSockets: 16 }),
      httpsAgent: new HttpsAgent({ keepAlive: true, maxSockets: 16, ...trust(caCertificates) }),
    } as NonNullable<KMSClientConfig['requestHandler']>;
  }
}

const trust = (pem: string | undefined): { ca?: string[] } => (pem === undefined ? {} : { ca: trustedAuthorities(pem) });
