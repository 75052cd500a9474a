/** The outcome of a failed KMS call. The three outcomes are three reactions: revoke, ride out, refuse the configuration.
 *
 *  Invariants
 *  - Only an answer that is recognisably the provider's own can be `DENIED`. An error page of a proxy, a garbled answer and an unknown
 *    code are `UNREACHABLE`: they never revoke, and they never let a key live longer than its grace either.
 *  - A rejected credential of ours is `UNREACHABLE`: an operator's expired secret says nothing about the customer's will. */
import { type ErrorCode, LakebaseError } from '@lakebase/base';
import type { KmsProvider } from './types.ts';

/** `DENIED`: the provider answered and says that the key may not be used. `UNREACHABLE`: it did not answer, could not serve, or does
 *  not accept our credential. `INVALID`: the configuration cannot be right, whatever the provider's state. */
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
  /** May the same call succeed a moment later? A rejected credential is `UNREACHABLE` but not transient. */
  readonly transient: boolean;

  constructor(
    outcome: KmsOutcome,
    provider: KmsProvider,
    providerCode: string,
    message: string,
    options: { readonly cause?: unknown; readonly transient?: boolean } = {},
  ) {
    super(CODE[outcome], message, options.cause === undefined ? undefined : { cause: options.cause });
    this.outcome = outcome;
    this.provider = provider;
    this.providerCode = providerCode;
    this.transient = outcome === 'UNREACHABLE' && options.transient !== false;
  }
}

/** What the errors of a provider mean: code as it names them → outcome and what to do. `UNAUTHENTICATED` is `UNREACHABLE` without retries. */
export type ErrorMeaning = readonly ['DENIED' | 'UNREACHABLE' | 'INVALID' | 'UNAUTHENTICATED', advice: string];
export type ErrorTable = Readonly<Record<string, ErrorMeaning>>;

export function meaningToError(
  provider: KmsProvider,
  code: string,
  [kind, advice]: ErrorMeaning,
  detail: string,
  cause?: unknown,
): KmsError {
  const message = `${provider} ${code}: ${advice}${detail === '' ? '' : ` (the service says: ${brief(detail)})`}`;
  return kind === 'UNAUTHENTICATED'
    ? new KmsError('UNREACHABLE', provider, code, message, { cause, transient: false })
    : new KmsError(kind, provider, code, message, { cause });
}

/** A provider's message as part of ours: one line, no control characters, bounded. */
export function brief(text: string): string {
  const line = text.replaceAll(/[\p{Cc}\s]+/gu, ' ').trim();
  return line.length <= 300 ? line : `${line.slice(0, 300)}…`;
}

/** Error codes of Node's network and TLS layers. */
const NETWORK: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'nothing listens at the address; check the endpoint and the firewall',
  ECONNRESET: 'the connection was cut; retried',
  ECONNABORTED: 'the connection was cut; retried',
  EPIPE: 'the connection was cut; retried',
  ETIMEDOUT: 'no answer in time; check the route and the firewall',
  EHOSTUNREACH: 'no route to the host; check the network',
  ENETUNREACH: 'no route to the network; check the network',
  ENOTFOUND: 'the name does not resolve; check the endpoint and DNS (a deleted Azure vault has no name either)',
  EAI_AGAIN: 'DNS does not answer; retried',
  UND_ERR_SOCKET: 'the connection was cut; retried',
  UND_ERR_CONNECT_TIMEOUT: 'no connection in time; check the route and the firewall',
  UND_ERR_HEADERS_TIMEOUT: 'no answer in time; retried',
  UND_ERR_BODY_TIMEOUT: 'the answer did not end in time; retried',
  HPE_INVALID_CONSTANT: 'the answer is not HTTP; check the endpoint',
  ERR_STREAM_PREMATURE_CLOSE: 'the answer was cut short; retried',
  CERT_HAS_EXPIRED: "the server's certificate has expired",
  DEPTH_ZERO_SELF_SIGNED_CERT: "the server's certificate is not trusted; name its authority in the key manager's settings",
  SELF_SIGNED_CERT_IN_CHAIN: "the server's certificate is not trusted; name its authority in the key manager's settings",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "the server's certificate is not trusted; name its authority in the key manager's settings",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "the server's certificate is not trusted; name its authority in the key manager's settings",
  ERR_TLS_CERT_ALTNAME_INVALID: "the server's certificate names another host; check the endpoint",
  EPROTO: 'the TLS handshake failed; check http or https of the endpoint',
};
export const NETWORK_CODES: readonly string[] = Object.keys(NETWORK);

/** The network error inside `error`, whatever layers an SDK has put around it; null when it is none. */
export function networkError(provider: KmsProvider, error: unknown): KmsError | null {
  for (const inner of errorChain(error)) {
    const code = (inner as { code?: unknown }).code;
    if (typeof code !== 'string') continue;
    const advice = NETWORK[code];
    if (advice !== undefined) return meaningToError(provider, code, ['UNREACHABLE', advice], '', error);
  }
  return null;
}

/** `error`, its causes, and the members of aggregates; bounded, as SDKs build cycles. */
export function errorChain(error: unknown): object[] {
  const found: object[] = [];
  const queue: unknown[] = [error];
  while (queue.length > 0 && found.length < 16) {
    const next = queue.shift();
    if (typeof next !== 'object' || next === null || found.includes(next)) continue;
    found.push(next);
    const { cause, errors } = next as { cause?: unknown; errors?: unknown };
    queue.push(cause);
    if (Array.isArray(errors)) queue.push(...errors.slice(0, 8));
  }
  return found;
}

/** An answer that is not in the provider's language. */
export const badAnswer = (provider: KmsProvider, what: string, cause?: unknown): KmsError =>
  new KmsError(
    'UNREACHABLE',
    provider,
    'BadAnswer',
    `${provider} BadAnswer: ${what}; is there a proxy between us and the service? Retried; the key stays usable for its grace`,
    { cause },
  );
