/** The token with which Vault is asked: given, or from a login by AppRole or Kubernetes; renewed before it ends.
 *
 *  Invariants
 *  - One login or renewal at a time, whoever asks.
 *  - A token is renewed when half of its time is over; a login's token that cannot be renewed is replaced by a new login. */
import { readFile } from 'node:fs/promises';
import { KmsError } from './errors.ts';
import { VaultAnswer, vaultError } from './vault-errors.ts';

export type VaultLogin =
  | { readonly kind: 'token'; readonly token: string }
  | { readonly kind: 'approle'; readonly mount: string; readonly roleId: string; readonly secretId: string }
  | { readonly kind: 'kubernetes'; readonly mount: string; readonly role: string; readonly tokenFile: string };

/** Sends a request without or with the given token; throws `VaultAnswer`. */
export type VaultSend = (method: string, path: string, body: unknown, token: string | null, signal: AbortSignal) => Promise<unknown>;

interface Token {
  readonly value: string;
  /** When half of its life is over; Infinity for one that does not end or cannot be renewed. */
  readonly renewAt: number;
}

const RENEW_RETRY_MS = 10_000;

export class VaultTokens {
  readonly #login: VaultLogin;
  readonly #send: VaultSend;
  readonly #now: () => number;
  #token: Token | null = null;
  #busy: Promise<Token> | null = null;

  constructor(login: VaultLogin, send: VaultSend, now: () => number = () => performance.now()) {
    this.#login = login;
    this.#send = send;
    this.#now = now;
  }

  get canLogIn(): boolean {
    return this.#login.kind !== 'token';
  }

  async get(signal: AbortSignal): Promise<string> {
    if (this.#token !== null && this.#now() < this.#token.renewAt) return this.#token.value;
    this.#busy ??= this.#next(signal).finally(() => {
      this.#busy = null;
    });
    this.#token = await this.#busy;
    return this.#token.value;
  }

  /** The token was refused: the next `get` logs in again. */
  forget(value: string): void {
    if (this.#token?.value === value) this.#token = null;
  }

  async #next(signal: AbortSignal): Promise<Token> {
    const old = this.#token;
    if (old !== null) {
      try {
        return this.#tokenOf(await this.#send('POST', 'auth/token/renew-self', {}, old.value, signal), old.value);
      } catch (error) {
        // Not renewable any more. A login gives another; a given token is used to its end.
        if (!this.canLogIn || !(error instanceof VaultAnswer) || error.status >= 429)
          return { value: old.value, renewAt: this.#now() + RENEW_RETRY_MS };
      }
    }
    const login = this.#login;
    if (login.kind === 'token') return await this.#lookUp(login.token, signal);
    try {
      return this.#tokenOf(await this.#send('POST', `auth/${login.mount}/login`, await loginBody(login), null, signal), null);
    } catch (error) {
      const failure = vaultError(error);
      // Whatever refuses a login refuses us, not the key.
      if (failure.outcome === 'UNREACHABLE') throw failure;
      throw new KmsError(
        'UNREACHABLE',
        'VAULT_TRANSIT',
        'LoginRefused',
        `VAULT_TRANSIT LoginRefused: Vault refuses the ${login.kind} login; check role, secret and mount. Counts as unreachable: policy and key have denied nothing (${failure.message})`,
        {
          cause: error,
          transient: false,
        },
      );
    }
  }

  /** How long a given token lives; one that may not look itself up is used as it is. */
  async #lookUp(token: string, signal: AbortSignal): Promise<Token> {
    try {
      const { data } = (await this.#send('GET', 'auth/token/lookup-self', undefined, token, signal)) as {
        data?: { ttl?: number; renewable?: boolean };
      };
      if (data?.renewable === true && typeof data.ttl === 'number' && data.ttl > 0)
        return { value: token, renewAt: this.#now() + (data.ttl * 1_000) / 2 };
    } catch (error) {
      if (!(error instanceof VaultAnswer) || error.status >= 429) throw error;
    }
    return { value: token, renewAt: Number.POSITIVE_INFINITY };
  }

  #tokenOf(answer: unknown, fallback: string | null): Token {
    const auth = (answer as { auth?: { client_token?: unknown; lease_duration?: unknown } } | null)?.auth;
    const value = typeof auth?.client_token === 'string' && auth.client_token !== '' ? auth.client_token : fallback;
    if (value === null)
      throw new KmsError('UNREACHABLE', 'VAULT_TRANSIT', 'BadAnswer', 'VAULT_TRANSIT BadAnswer: the login answers without a token');
    const seconds = typeof auth?.lease_duration === 'number' && auth.lease_duration > 0 ? auth.lease_duration : Number.POSITIVE_INFINITY;
    return { value, renewAt: this.#now() + (seconds * 1_000) / 2 };
  }
}

async function loginBody(login: Exclude<VaultLogin, { kind: 'token' }>): Promise<unknown> {
  if (login.kind === 'approle') return { role_id: login.roleId, secret_id: login.secretId };
  try {
    // Read each time: Kubernetes replaces the file.
    return { role: login.role, jwt: (await readFile(login.tokenFile, 'utf8')).trim() };
  } catch (cause) {
    throw new KmsError(
      'UNREACHABLE',
      'VAULT_TRANSIT',
      'LoginRefused',
      `VAULT_TRANSIT LoginRefused: ${login.tokenFile} cannot be read; mount the service account's token`,
      {
        cause,
        transient: false,
      },
    );
  }
}
