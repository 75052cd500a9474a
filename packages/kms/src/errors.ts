/** The outcome of a failed KMS call. The three outcomes are three reactions: revoke, ride out, refuse the configuration. */
import { type ErrorCode, LakebaseError } from '@lakebase/base';
import type { KmsProvider } from './types.ts';

/** `DENIED`: the provider answered and says that the key may not be used. `UNREACHABLE`: it did not answer, or could not serve.
 *  `INVALID`: the configuration cannot be right, whatever the provider's state. */
export type KmsOutcome = 'DENIED' | 'UNREACHABLE' | 'INVALID';

const CODE: Readonly<Record<KmsOutcome, ErrorCode>> = {
  DENIED: 'KEY_REVOKED',
  UNREACHABLE: 'UNAVAILABLE',
  INVALID: 'INVALID_ARGUMENT',
};

/** `message` says what to do: which permission or state is missing. It never holds key material or credentials. */
export class KmsError extends LakebaseError {
  readonly outcome: KmsOutcome;
  readonly provider: KmsProvider;
  /** As the provider names it (`DisabledException`, `Forbidden/KeyDisabled`, `FAILED_PRECONDITION`, `ECONNREFUSED`, …). */
  readonly providerCode: string;

  constructor(outcome: KmsOutcome, provider: KmsProvider, providerCode: string, message: string, options?: { cause?: unknown }) {
    super(CODE[outcome], message, options);
    this.outcome = outcome;
    this.provider = provider;
    this.providerCode = providerCode;
  }
}
