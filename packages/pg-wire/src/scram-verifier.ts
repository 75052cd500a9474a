/** SCRAM-SHA-256 keys and verifiers (RFC 5802, RFC 7677), in the text form of pg_authid:
 *  `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, the last three in base64.
 *  Invariants: every field is bounded before it is used; secrets are compared in constant time. */
import { createHash, createHmac, pbkdf2, randomBytes } from 'node:crypto';
import { promisify } from 'node:util';
import { LakebaseError } from '@lakebase/base';

export interface ScramVerifier {
  readonly iterations: number;
  readonly salt: Buffer;
  readonly storedKey: Buffer;
  readonly serverKey: Buffer;
}

export const SCRAM_KEY_BYTES = 32;
export const SCRAM_DEFAULT_ITERATIONS = 4096;
export const SCRAM_DEFAULT_SALT_BYTES = 16;
export const SCRAM_ITERATIONS_MAX = 10_000_000;
const SALT_BYTES_MAX = 1_024;
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;

const pbkdf2Async = promisify(pbkdf2);

export const sha256 = (data: Buffer): Buffer => createHash('sha256').update(data).digest();
export const hmac = (key: Buffer, data: string | Buffer): Buffer => createHmac('sha256', key).update(data).digest();

export function xor(a: Buffer, b: Buffer): Buffer {
  const out = Buffer.allocUnsafe(a.length);
  for (let i = 0; i < a.length; i++) out[i] = (a[i] as number) ^ (b[i] as number);
  return out;
}

/** Strict base64 of at most `bytesMax` bytes; undefined when it is not. */
export function parseBase64(text: string, bytesMax: number): Buffer | undefined {
  if (text.length > Math.ceil(bytesMax / 3) * 4 || !BASE64.test(text)) return undefined;
  return Buffer.from(text, 'base64');
}

/** As Postgres does: a password that SASLprep does not accept is used as it is. Its tables take megabytes, and passwords outside ASCII
 *  are rare: they are loaded when the first one comes. */
export async function normalizePassword(password: string): Promise<string> {
  if (/^[\x20-\x7e]*$/.test(password)) return password;
  const { saslprep } = await import('@mongodb-js/saslprep');
  try {
    return saslprep(password);
  } catch {
    return password;
  }
}

/** SaltedPassword: the slow step. */
export const saltPassword = async (password: string, salt: Buffer, iterations: number): Promise<Buffer> =>
  pbkdf2Async(await normalizePassword(password), salt, iterations, SCRAM_KEY_BYTES, 'sha256');

export async function buildVerifier(
  password: string,
  options: { readonly iterations?: number; readonly salt?: Buffer } = {},
): Promise<ScramVerifier> {
  const iterations = options.iterations ?? SCRAM_DEFAULT_ITERATIONS;
  const salt = options.salt ?? randomBytes(SCRAM_DEFAULT_SALT_BYTES);
  const salted = await saltPassword(password, salt, iterations);
  return { iterations, salt, storedKey: sha256(hmac(salted, 'Client Key')), serverKey: hmac(salted, 'Server Key') };
}

const VERIFIER = /^SCRAM-SHA-256\$([0-9]{1,9}):([A-Za-z0-9+/=]{1,1400})\$([A-Za-z0-9+/=]{44}):([A-Za-z0-9+/=]{44})$/;

export function parseVerifier(text: string): ScramVerifier {
  const m = VERIFIER.exec(text);
  const iterations = Number(m?.[1]);
  const salt = parseBase64(m?.[2] ?? '', SALT_BYTES_MAX);
  const storedKey = parseBase64(m?.[3] ?? '', SCRAM_KEY_BYTES);
  const serverKey = parseBase64(m?.[4] ?? '', SCRAM_KEY_BYTES);
  if (
    m === null ||
    iterations < 1 ||
    salt === undefined ||
    salt.length === 0 ||
    storedKey?.length !== SCRAM_KEY_BYTES ||
    serverKey?.length !== SCRAM_KEY_BYTES
  )
    throw new LakebaseError('INVALID_ARGUMENT', 'not a SCRAM-SHA-256 verifier: expected SCRAM-SHA-256$<iterations>:<salt>$<key>:<key>');
  return { iterations, salt, storedKey, serverKey };
}

export const formatVerifier = (v: ScramVerifier): string =>
  `SCRAM-SHA-256$${v.iterations}:${v.salt.toString('base64')}$${v.storedKey.toString('base64')}:${v.serverKey.toString('base64')}`;

/** A verifier no password matches, for a role that does not exist. The salt depends on secret and name only, so that asking twice
 *  cannot tell an unknown role from a known one; the keys are random. */
export function mockVerifier(secret: Buffer, role: string): ScramVerifier {
  return {
    iterations: SCRAM_DEFAULT_ITERATIONS,
    salt: hmac(secret, `scram-mock-salt:${role}`).subarray(0, SCRAM_DEFAULT_SALT_BYTES),
    storedKey: randomBytes(SCRAM_KEY_BYTES),
    serverKey: randomBytes(SCRAM_KEY_BYTES),
  };
}
