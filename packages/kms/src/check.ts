/** Can this key be used, now, by us? A live wrap and unwrap of a throw-away key; nothing is stored. */
import { randomBytes } from 'node:crypto';
import { KEK_BYTES } from './context.ts';
import { KmsError, type KmsOutcome } from './errors.ts';
import { openKmsKey } from './open.ts';
import type { KmsEnvironment, KmsKeyConfig, WrapContext } from './types.ts';

export interface KmsCheck {
  readonly ok: boolean;
  readonly outcome: 'OK' | KmsOutcome;
  /** What is wrong and which permission or state is missing; empty when nothing is. */
  readonly message: string;
  readonly keyId: string;
  readonly keyVersion: string;
}

export async function checkKmsKey(config: KmsKeyConfig, env: KmsEnvironment, context: WrapContext, signal: AbortSignal): Promise<KmsCheck> {
  const plain = randomBytes(KEK_BYTES);
  try {
    const key = openKmsKey(config, env);
    try {
      // `wrap` unwraps what it wrapped.
      const { keyId, keyVersion } = await key.wrap(plain, context, signal);
      return { ok: true, outcome: 'OK', message: '', keyId, keyVersion };
    } finally {
      key.close();
    }
  } catch (error) {
    if (!(error instanceof KmsError)) throw error;
    return { ok: false, outcome: error.outcome, message: error.message, keyId: '', keyVersion: '' };
  } finally {
    plain.fill(0);
  }
}
