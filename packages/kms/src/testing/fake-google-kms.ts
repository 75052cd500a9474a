/** Google Cloud KMS over REST: encrypt, decrypt, get of a symmetric key, with checks of the CRCs it is given. */
import { randomBytes } from 'node:crypto';
import { crc32c } from '@lakebase/bytes';
import { type AuthClient, PassThroughClient } from 'google-auth-library';
import type { KmsEnvironment, KmsKeyConfig } from '../types.ts';
import { type FakeKey, FakeKms, type FakeKeyVersion, type FakeReply, type FakeRequest, json, runFake } from './fake-kms.ts';
import { fakeOpen, fakeSeal } from './seal.ts';

const RING = 'projects/fake-project/locations/europe-west3/keyRings/ring/cryptoKeys/';
const CODES: Readonly<Record<string, number>> = {
  INVALID_ARGUMENT: 400,
  FAILED_PRECONDITION: 400,
  OUT_OF_RANGE: 400,
  UNAUTHENTICATED: 401,
  PERMISSION_DENIED: 403,
  NOT_FOUND: 404,
  ABORTED: 409,
  RESOURCE_EXHAUSTED: 429,
  CANCELLED: 499,
  INTERNAL: 500,
  UNKNOWN: 500,
  DATA_LOSS: 500,
  UNIMPLEMENTED: 501,
  UNAVAILABLE: 503,
  DEADLINE_EXCEEDED: 504,
};

interface GoogleInput {
  readonly plaintext?: string;
  readonly ciphertext?: string;
  readonly additionalAuthenticatedData?: string;
  readonly plaintextCrc32c?: string;
  readonly ciphertextCrc32c?: string;
  readonly additionalAuthenticatedDataCrc32c?: string;
}

/** A login that adds nothing to requests: fakes ask for none. */
export const anonymousGoogle = (): AuthClient => new PassThroughClient();

export class FakeGoogleKms extends FakeKms {
  readonly provider = 'GCP_KMS';
  getDenied = false;

  config(key: FakeKey): KmsKeyConfig {
    return { provider: 'GCP_KMS', key: `${RING}${key.name}` };
  }

  environment(): KmsEnvironment {
    return { rootKeyPath: '/nonexistent/root.key', endpoints: { GCP_KMS: this.url }, credentials: { google: anonymousGoogle() } };
  }

  protected newVersion(key: FakeKey): FakeKeyVersion {
    return { id: String(key.versions.length + 1), material: randomBytes(32) };
  }

  protected operation(request: FakeRequest): string {
    return /:(\w+)$/.exec(request.path)?.[1] ?? 'get';
  }

  error(status: string, message = `${status} of the fake`, reason?: string): FakeReply {
    const code = CODES[status] ?? 500;
    const details =
      reason === undefined
        ? {}
        : { details: [{ '@type': 'type.googleapis.com/google.rpc.ErrorInfo', reason, domain: 'googleapis.com', metadata: {} }] };
    return json(code, { error: { code, message, status, ...details } });
  }
  protected throttled(): FakeReply {
    return this.error('RESOURCE_EXHAUSTED', "Quota exceeded for quota metric 'Cryptographic requests'", 'RATE_LIMIT_EXCEEDED');
  }
  protected internalError(): FakeReply {
    return this.error('INTERNAL');
  }

  protected answer(request: FakeRequest, corrupt: boolean): FakeReply {
    const path = /^\/v1\/(.+?)(?::(encrypt|decrypt))?$/.exec(request.path);
    const key = this.keys.get((path?.[1] ?? '').replace(RING, ''));
    if (key === undefined) return this.error('NOT_FOUND', `CryptoKey ${path?.[1]} not found.`);
    const verb = path?.[2];
    if (key.denied || (verb === undefined && this.getDenied))
      return this.error(
        'PERMISSION_DENIED',
        `Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on resource '${RING}${key.name}' (or it may not exist).`,
        'IAM_PERMISSION_DENIED',
      );
    const primary = `${RING}${key.name}/cryptoKeyVersions/${key.versions.length}`;
    if (verb === undefined)
      return json(200, { name: `${RING}${key.name}`, purpose: 1, primary: { name: primary, state: key.state === 'ENABLED' ? 1 : 2 } });
    if (key.state !== 'ENABLED')
      return this.error('FAILED_PRECONDITION', `${primary} is not enabled, current state is: ${stateName(key)}.`);
    const input = JSON.parse(request.body.toString('utf8')) as GoogleInput;
    const aad = Buffer.from(input.additionalAuthenticatedData ?? '', 'base64');
    return verb === 'encrypt' ? this.#encrypt(key, input, aad, primary, corrupt) : this.#decrypt(key, input, aad, corrupt);
  }

  #encrypt(key: FakeKey, input: GoogleInput, aad: Buffer, primary: string, corrupt: boolean): FakeReply {
    const plain = Buffer.from(input.plaintext ?? '', 'base64');
    if (input.plaintextCrc32c !== undefined && Number(input.plaintextCrc32c) !== crc32c(plain))
      return this.error('INVALID_ARGUMENT', 'The checksum in field plaintext_crc32c did not match the data in field plaintext.');
    const blob = fakeSeal(key, plain, aad);
    return json(200, {
      name: primary,
      ciphertext: blob.toString('base64'),
      ciphertextCrc32c: String(corrupt ? crc32c(blob) ^ 1 : crc32c(blob)),
      verifiedPlaintextCrc32c: input.plaintextCrc32c !== undefined,
      verifiedAdditionalAuthenticatedDataCrc32c: input.additionalAuthenticatedDataCrc32c !== undefined,
      protectionLevel: 1,
    });
  }

  #decrypt(key: FakeKey, input: GoogleInput, aad: Buffer, corrupt: boolean): FakeReply {
    const opened = fakeOpen(key, Buffer.from(input.ciphertext ?? '', 'base64'), aad);
    if (opened === null) return this.error('INVALID_ARGUMENT', "Decryption failed: verify that 'name' refers to the correct CryptoKey.");
    const crc = crc32c(opened.plain);
    return json(200, {
      plaintext: opened.plain.toString('base64'),
      plaintextCrc32c: String(corrupt ? crc ^ 1 : crc),
      usedPrimary: opened.index === key.versions.length - 1,
      protectionLevel: 1,
    });
  }
}

const stateName = (key: FakeKey): string => (key.state === 'PENDING_DELETION' ? 'DESTROY_SCHEDULED' : key.state);

if (import.meta.main) await runFake(new FakeGoogleKms());
