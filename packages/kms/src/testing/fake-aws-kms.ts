/** AWS KMS (JSON 1.1, X-Amz-Target) and the AssumeRole of STS (query protocol) as far as the SDK is used. */
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import type { KmsEnvironment, KmsKeyConfig } from '../types.ts';
import { type FakeKey, FakeKms, type FakeKeyVersion, type FakeReply, type FakeRequest, flipBit, json, runFake } from './fake-kms.ts';
import { fakeOpen, fakeSeal } from './seal.ts';

const REGION = 'eu-central-1';
const ACCOUNT = '111122223333';
const PREFIX = `arn:aws:kms:${REGION}:${ACCOUNT}:key/`;

interface KmsInput {
  readonly KeyId?: string;
  readonly Plaintext?: string;
  readonly CiphertextBlob?: string;
  readonly EncryptionContext?: Readonly<Record<string, string>>;
}

export class FakeAwsKms extends FakeKms {
  readonly provider = 'AWS_KMS';
  /** Access keys that are refused, with the error. Session keys of AssumeRole start with ASIA. */
  readonly refusedAccessKeys = new Map<string, string>();
  /** Roles that may not be assumed. */
  readonly deniedRoles = new Set<string>();
  readonly assumedRoles: { role: string; externalId: string }[] = [];
  describeDenied = false;

  config(key: FakeKey): KmsKeyConfig {
    return {
      provider: 'AWS_KMS',
      key: `${PREFIX}${key.name}`,
      options: { endpoint: this.url, accessKeyId: 'AKIAFAKE', secretAccessKey: 'fake-secret' },
    };
  }

  environment(): KmsEnvironment {
    return { rootKeyPath: '/nonexistent/root.key' };
  }

  protected newVersion(): FakeKeyVersion {
    const material = randomBytes(32);
    return { id: createHash('sha256').update('id').update(material).digest('hex'), material };
  }

  protected operation(request: FakeRequest): string {
    return String(request.headers['x-amz-target'] ?? new URLSearchParams(request.body.toString()).get('Action')).replace(
      'TrentService.',
      '',
    );
  }

  error(code: string, message = `${code} of the fake`): FakeReply {
    return json(
      code.startsWith('KMSInternal') || code === 'DependencyTimeoutException' ? 500 : 400,
      { __type: code, message },
      { 'content-type': 'application/x-amz-json-1.1' },
    );
  }
  protected throttled(): FakeReply {
    return this.error('ThrottlingException', 'You have exceeded the rate at which you may call KMS.');
  }
  protected internalError(): FakeReply {
    return this.error('KMSInternalException');
  }

  protected answer(request: FakeRequest, corrupt: boolean): FakeReply {
    const accessKey = /Credential=([^/]+)\/\d{8}\/([^/]+)\/(kms|sts)\/aws4_request/.exec(String(request.headers.authorization ?? ''));
    if (accessKey === null) return this.error('MissingAuthenticationTokenException', 'Missing Authentication Token');
    const refused = this.refusedAccessKeys.get(accessKey[1] as string);
    if (accessKey[3] === 'sts') return this.#assumeRole(new URLSearchParams(request.body.toString()), refused);
    if (refused !== undefined) return this.error(refused, 'The security token included in the request is not accepted.');
    const input = JSON.parse(request.body.toString('utf8')) as KmsInput;
    const key = this.keys.get((input.KeyId ?? '').replace(PREFIX, ''));
    if (key === undefined || key.state === 'DESTROYED') return this.error('NotFoundException', `Key '${input.KeyId}' does not exist`);
    const operation = this.operation(request);
    if (key.denied || (operation === 'DescribeKey' && this.describeDenied))
      return this.error(
        'AccessDeniedException',
        `User: arn:aws:iam::${ACCOUNT}:user/km is not authorized to perform: kms:${operation} on resource: ${PREFIX}${key.name}`,
      );
    if (operation === 'DescribeKey') return this.#describe(key);
    if (key.state === 'DISABLED') return this.error('DisabledException', `${PREFIX}${key.name} is disabled.`);
    if (key.state === 'PENDING_DELETION') return this.error('KMSInvalidStateException', `${PREFIX}${key.name} is pending deletion.`);
    if (operation === 'Encrypt') return this.#encrypt(key, input, corrupt);
    if (operation === 'Decrypt') return this.#decrypt(key, input, corrupt);
    return this.error('UnknownOperationException');
  }

  #describe(key: FakeKey): FakeReply {
    const last = key.versions.at(-1) as FakeKeyVersion;
    return ok({
      KeyMetadata: {
        AWSAccountId: ACCOUNT,
        Arn: `${PREFIX}${key.name}`,
        KeyId: key.name,
        Enabled: key.state === 'ENABLED',
        KeyState: key.state === 'ENABLED' ? 'Enabled' : key.state === 'DISABLED' ? 'Disabled' : 'PendingDeletion',
        KeyUsage: 'ENCRYPT_DECRYPT',
        KeySpec: 'SYMMETRIC_DEFAULT',
        CurrentKeyMaterialId: last.id,
      },
    });
  }

  #encrypt(key: FakeKey, input: KmsInput, corrupt: boolean): FakeReply {
    const sealed = fakeSeal(key, Buffer.from(input.Plaintext ?? '', 'base64'), aadOf(input));
    // The key's id in front, as KMS also finds the key in the ciphertext.
    const blob = Buffer.concat([Buffer.from([key.name.length]), Buffer.from(key.name), sealed]);
    return ok({
      CiphertextBlob: (corrupt ? flipBit(blob) : blob).toString('base64'),
      KeyId: `${PREFIX}${key.name}`,
      EncryptionAlgorithm: 'SYMMETRIC_DEFAULT',
    });
  }

  #decrypt(key: FakeKey, input: KmsInput, corrupt: boolean): FakeReply {
    const blob = Buffer.from(input.CiphertextBlob ?? '', 'base64');
    const nameLength = blob[0] ?? 0;
    if (blob.subarray(1, 1 + nameLength).toString() !== key.name)
      return this.error('IncorrectKeyException', 'The key ID in the request does not identify a CMK that can perform this operation.');
    const opened = fakeOpen(key, blob.subarray(1 + nameLength), aadOf(input));
    if (opened === null) return json(400, { __type: 'InvalidCiphertextException' }, { 'content-type': 'application/x-amz-json-1.1' });
    return ok({
      Plaintext: (corrupt ? opened.plain.subarray(1) : opened.plain).toString('base64'),
      KeyId: `${PREFIX}${key.name}`,
      EncryptionAlgorithm: 'SYMMETRIC_DEFAULT',
      KeyMaterialId: (key.versions[opened.index] as FakeKeyVersion).id,
    });
  }

  #assumeRole(form: URLSearchParams, refused: string | undefined): FakeReply {
    const role = form.get('RoleArn') ?? '';
    const fail = (code: string, status: number, message: string): FakeReply =>
      xml(
        status,
        `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>${code}</Code><Message>${message}</Message></Error><RequestId>${randomUUID()}</RequestId></ErrorResponse>`,
      );
    if (refused !== undefined) return fail(refused, 403, 'The security token included in the request is invalid');
    if (this.deniedRoles.has(role))
      return fail('AccessDenied', 403, `User is not authorized to perform: sts:AssumeRole on resource: ${role}`);
    this.assumedRoles.push({ role, externalId: form.get('ExternalId') ?? '' });
    const expiration = new Date(Date.now() + 900_000).toISOString();
    return xml(
      200,
      `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><AssumedRoleUser><AssumedRoleId>AROAFAKE:lakebase</AssumedRoleId><Arn>${role}</Arn></AssumedRoleUser><Credentials><AccessKeyId>ASIAFAKE</AccessKeyId><SecretAccessKey>fake</SecretAccessKey><SessionToken>fake-session</SessionToken><Expiration>${expiration}</Expiration></Credentials></AssumeRoleResult><ResponseMetadata><RequestId>${randomUUID()}</RequestId></ResponseMetadata></AssumeRoleResponse>`,
    );
  }
}

const ok = (body: unknown): FakeReply => json(200, body, { 'content-type': 'application/x-amz-json-1.1' });
const xml = (status: number, body: string): FakeReply => ({ status, headers: { 'content-type': 'text/xml' }, body });

const aadOf = (input: KmsInput): Buffer =>
  Buffer.from(JSON.stringify(Object.entries(input.EncryptionContext ?? {}).toSorted(([a], [b]) => (a < b ? -1 : 1))));

if (import.meta.main) await runFake(new FakeAwsKms());
