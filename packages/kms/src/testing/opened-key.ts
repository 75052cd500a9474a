/** A key of a fake provider, opened, and one KEK wrapped by it: what the tests of an adapter begin with. */
import { after, before } from 'node:test';
import { must } from '@lakebase/base';
import { openKmsKey } from '../open.ts';
import type { KmsEnvironment, KmsKey, KmsKeyConfig, WrappedKey } from '../types.ts';
import { CONTEXT, soon } from './conformance.ts';
import type { FakeKms } from './fake-kms.ts';

export const KEK: Buffer = Buffer.alloc(32, 7);

export class OpenedKey {
  #env: KmsEnvironment | undefined;
  #config: KmsKeyConfig | undefined;
  #key: KmsKey | undefined;
  #wrapped: WrappedKey | undefined;

  /** One attempt, so that every failure is seen. */
  get env(): KmsEnvironment {
    return must(this.#env, 'environment');
  }
  get config(): KmsKeyConfig {
    return must(this.#config, 'configuration');
  }
  get key(): KmsKey {
    return must(this.#key, 'key');
  }
  get wrapped(): WrappedKey {
    return must(this.#wrapped, 'wrapped KEK');
  }

  async open(fake: FakeKms): Promise<void> {
    await fake.listen();
    this.#env = { ...fake.environment(), attemptTimeoutMs: 8_000, attemptsMax: 1 };
    this.#config = fake.createKey();
    this.#key = openKmsKey(this.#config, this.#env);
    this.#wrapped = await this.wrap();
  }
  close(): void {
    this.#key?.close();
  }

  wrap(): Promise<WrappedKey> {
    return this.key.wrap(KEK, CONTEXT, soon());
  }
  unwrap(): Promise<Buffer> {
    return this.key.unwrap(this.wrapped, CONTEXT, soon());
  }
}

/** For a whole `describe`: there before its tests, gone with the fake after them. */
export function withOpenedKey(fake: FakeKms): OpenedKey {
  const opened = new OpenedKey();
  before(() => opened.open(fake));
  after(async () => {
    opened.close();
    await fake.close();
  });
  return opened;
}
