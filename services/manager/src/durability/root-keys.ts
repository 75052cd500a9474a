/** Keys for the catalog's objects, from the key manager: some are kept ready, so that a change does not wait for them.
 *  Invariant: a key is given out once; keys that are not needed any more are overwritten. */
import { type FreshDek, INSTALLATION_DEKS_MAX, type KeyManagerClient } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';

export type RootKeyClient = Pick<KeyManagerClient, 'installationDeks' | 'installationUnwrap'>;

const READY = 8;
const REFILL_BELOW = 3;

export class RootKeys {
  readonly #client: RootKeyClient;
  readonly #ready: FreshDek[] = [];
  #refilling: Promise<void> | undefined;

  constructor(client: RootKeyClient) {
    this.#client = client;
  }

  /** The receiver wipes `dek`. */
  async take(): Promise<FreshDek> {
    while (this.#ready.length === 0) await this.#refill();
    const key = this.#ready.shift() as FreshDek;
    if (this.#ready.length < REFILL_BELOW) void this.#refill().catch(() => {}); // whoever finds none asks again
    return key;
  }

  async open(reference: Buffer): Promise<Buffer> {
    const [dek] = await this.#client.installationUnwrap([reference]);
    if (dek === undefined) throw new LakebaseError('UNAVAILABLE', 'the key manager gave no key');
    return dek;
  }

  close(): void {
    for (const { dek } of this.#ready.splice(0)) dek.fill(0);
  }

  #refill(): Promise<void> {
    this.#refilling ??= this.#client
      .installationDeks(Math.min(READY, INSTALLATION_DEKS_MAX))
      .then((keys) => void this.#ready.push(...keys))
      .finally(() => (this.#refilling = undefined));
    return this.#refilling;
  }
}
