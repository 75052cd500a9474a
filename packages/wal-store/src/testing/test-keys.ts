/** Keys for tests of the store: real AES-256-GCM under KEKs in memory, the last one the newest. */
import { type CipherProvider, aesObjectKey, decodeDekReference, randomSecret, rewrapDek, unwrapDek, wrapDek } from '@lakebase/envelope';
import { LakebaseError } from '@lakebase/base';

export interface TestCiphers extends CipherProvider {
  readonly keks: Buffer[];
  locked: boolean;
  rewrap(references: readonly Buffer[]): Promise<Buffer[]>;
  reserve(count: number): Promise<void>;
  load(references: readonly Buffer[]): Promise<void>;
}

export function testCiphers(project: string): TestCiphers {
  const keks = [randomSecret()];
  const check = (): void => {
    if (ciphers.locked) throw new LakebaseError('KEY_REVOKED', 'locked by the test');
  };
  const kekOf = (reference: Buffer): Buffer => keks[decodeDekReference(reference).kekVersion - 1] ?? Buffer.alloc(32);
  const newest = (): Buffer => keks[keks.length - 1] as Buffer;
  const ciphers: TestCiphers = {
    keks,
    locked: false,
    create: () => {
      check();
      const dek = randomSecret();
      return aesObjectKey(dek, wrapDek(newest(), keks.length, 'test', project, dek));
    },
    restore: (...args: [number, Buffer] | [string, number, Buffer]) => {
      check();
      const reference = args[args.length - 1] as Buffer;
      return aesObjectKey(unwrapDek(kekOf(reference), 'test', project, reference), reference);
    },
    reserve: async () => check(),
    load: async () => check(),
    rewrap: async (references) => references.map((r) => rewrapDek(kekOf(r), newest(), keks.length, 'test', project, r)),
  };
  return ciphers;
}
