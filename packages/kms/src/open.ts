/** From a configuration to a key: the one place that knows every adapter. */
import { KmsError } from './errors.ts';
import type { KmsEnvironment, KmsKey, KmsKeyConfig } from './types.ts';

/** Checks the configuration (`INVALID` when it cannot be right); sends nothing yet. */
export function openKmsKey(config: KmsKeyConfig, _env: KmsEnvironment): KmsKey {
  throw new KmsError('INVALID', config.provider, 'UnknownProvider', `no KMS adapter for ${config.provider}`);
}
