/** Slows password guessing: counts failed logins per client address and role, and per address.
 *  A counter loses one failure per `forgetMs`; at its limit further attempts are refused before any password is looked at.
 *  Invariant: memory is bounded; the counters touched longest ago go first. */

interface Counter {
  failures: number;
  at: number;
}

export interface FailureLimitOptions {
  readonly perRoleMax?: number;
  readonly perAddressMax?: number;
  readonly forgetMs?: number;
  readonly countersMax?: number;
  readonly now?: () => number;
}

export class FailureLimit {
  readonly #options: Required<FailureLimitOptions>;
  readonly #counters = new Map<string, Counter>();

  constructor(options: FailureLimitOptions = {}) {
    this.#options = { perRoleMax: 20, perAddressMax: 100, forgetMs: 3_000, countersMax: 20_000, now: Date.now, ...options };
  }

  /** Milliseconds until another attempt is let in; 0: now. */
  retryAfter(address: string, role: string): number {
    return Math.max(this.#excess(`${address}\0${role}`, this.#options.perRoleMax), this.#excess(address, this.#options.perAddressMax));
  }

  failed(address: string, role: string): void {
    this.#count(`${address}\0${role}`);
    this.#count(address);
  }

  succeeded(address: string, role: string): void {
    this.#counters.delete(`${address}\0${role}`);
  }

  #level(c: Counter): number {
    return Math.max(0, c.failures - (this.#options.now() - c.at) / this.#options.forgetMs);
  }

  #excess(key: string, max: number): number {
    const c = this.#counters.get(key);
    if (c === undefined) return 0;
    const over = this.#level(c) - (max - 1);
    return over <= 0 ? 0 : Math.ceil(over * this.#options.forgetMs);
  }

  #count(key: string): void {
    const c = this.#counters.get(key);
    this.#counters.delete(key);
    this.#counters.set(key, { failures: (c === undefined ? 0 : this.#level(c)) + 1, at: this.#options.now() });
    if (this.#counters.size > this.#options.countersMax) this.#counters.delete(this.#counters.keys().next().value as string);
  }
}
