/** What a storage service does about keys of its own accord: follows new KEK versions and requests to re-encrypt. Both begin with {@link KeyUpkeep.start}, when
 *  all there is on disk is known. */
import type { Logger } from '@lakebase/base';
import { KeyReEncryption, type KeyReEncryptionOptions } from './key-re-encryption.ts';
import { KeyRotation, type KeyRotationOptions } from './key-rotation.ts';
import type { ServiceKeys } from './keys.ts';

export interface KeyUpkeepWork {
  readonly rewrap: KeyRotationOptions['rewrap'];
  readonly reEncrypt: KeyReEncryptionOptions['run'];
}

export class KeyUpkeep {
  readonly #rotation: KeyRotation;
  readonly #reEncryption: KeyReEncryption;

  constructor(keys: ServiceKeys, log: Logger, { rewrap, reEncrypt }: KeyUpkeepWork) {
    this.#rotation = new KeyRotation({ ...keys, log, rewrap });
    this.#reEncryption = new KeyReEncryption({ source: keys.source, report: keys.reportReEncryption, log, run: reEncrypt });
  }

  start(): void {
    this.#rotation.start();
    this.#reEncryption.start();
  }
  /** Something of the project has become known: what it holds may be of an older version. */
  check(project: string): void {
    this.#rotation.check(project);
  }
  async close(): Promise<void> {
    await this.#reEncryption.close();
    await this.#rotation.close();
  }
}
