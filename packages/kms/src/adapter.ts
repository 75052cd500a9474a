/** What one provider's adapter does; `openKmsKey` puts the checks that are the same for all around it. */
import type { WrapContext, WrappedKey } from './types.ts';

export interface Unwrapped {
  readonly plain: Buffer;
  /** Version that the provider says it used; '' when it does not say. */
  readonly keyVersion: string;
}

export interface KmsAdapter {
  /** Loads the provider's SDK. Apart from the calls: a busy machine may take seconds, and that says nothing about the provider. */
  load(): Promise<void>;
  wrap(plain: Buffer, context: WrapContext, signal: AbortSignal): Promise<WrappedKey>;
  unwrap(wrapped: WrappedKey, context: WrapContext, signal: AbortSignal): Promise<Unwrapped>;
  currentVersion(signal: AbortSignal): Promise<string>;
  close(): void;
}

/** Reads options and refuses those that nobody reads: a misspelt option must not be silently without effect. */
export class Options {
  readonly #values: Readonly<Record<string, string>>;
  readonly #known = new Set<string>();

  constructor(values: Readonly<Record<string, string>> | undefined) {
    this.#values = values ?? {};
  }

  get(name: string): string | undefined {
    this.#known.add(name);
    const value = Object.hasOwn(this.#values, name) ? this.#values[name] : undefined;
    return value === '' ? undefined : value;
  }

  unknown(): string[] {
    return Object.keys(this.#values).filter((name) => !this.#known.has(name));
  }
}
