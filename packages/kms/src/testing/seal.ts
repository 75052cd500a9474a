/** How the fakes wrap: AES-256-GCM with the version's material, and the version's index in front. */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import type { FakeKey } from './fake-kms.ts';

export function fakeSeal(key: FakeKey, plain: Buffer, aad: Buffer): Buffer {
  const index = key.versions.length - 1;
  const nonce = randomBytes(12);
  const cipher = createCipheriv('aes-256-gcm', (key.versions[index] as { material: Buffer }).material, nonce).setAAD(aad);
  return Buffer.concat([Buffer.from([index]), nonce, cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
}

/** Null when it does not open. */
export function fakeOpen(key: FakeKey, blob: Buffer, aad: Buffer): { plain: Buffer; index: number } | null {
  const index = blob[0] ?? 255;
  const version = key.versions[index];
  if (version === undefined || blob.length < 29) return null;
  try {
    const decipher = createDecipheriv('aes-256-gcm', version.material, blob.subarray(1, 13), { authTagLength: 16 })
      .setAAD(aad)
      .setAuthTag(blob.subarray(blob.length - 16));
    return { plain: Buffer.concat([decipher.update(blob.subarray(13, blob.length - 16)), decipher.final()]), index };
  } catch {
    return null;
  }
}
