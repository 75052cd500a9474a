/** No keys at all: the "encryption switched off" build of the proof that scans find what they look for (configuration `testPlaintext`), and
 *  benchmarks of what encryption costs. Never in production. */
import { plainProvider } from '@lakebase/envelope';
import type { KeySource } from './key-ring.ts';
import type { ProjectKeys } from './project-keys.ts';

const NONE = Buffer.alloc(0);

const plainKeysOf = (project: string): ProjectKeys => ({
  project,
  usable: true,
  locked: undefined,
  locks: 0,
  kekVersion: 0,
  create: () => plainProvider.create(),
  restore: (algorithm, reference) => plainProvider.restore(algorithm, reference),
  ready: async () => {},
  reserve: async () => {},
  take: () => ({ reference: NONE, dek: Buffer.allocUnsafeSlow(0) }),
  load: async () => {},
  dek: () => NONE,
  rewrap: async (references) => [...references],
});

export const plainKeys: KeySource = {
  project: plainKeysOf,
  onChange: () => {},
  onRotation: () => {},
  onReEncryption: () => {},
  start: async () => {},
  stop: async () => {},
};
