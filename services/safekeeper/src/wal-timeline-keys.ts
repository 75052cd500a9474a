/** Other keys for what a timeline holds: its segments here, then its objects in the store (docs/flows/key-path.md, rotation). */
import { isCode } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import type { ProjectKeys } from '@lakebase/keys';
import type { WalArchive, WalStore } from '@lakebase/wal-store';

export interface KeyedWal {
  readonly store: WalStore;
  readonly archive: WalArchive | undefined;
  readonly offloadedLsn: Lsn;
  readonly keys: ProjectKeys;
  readonly checkOpen: () => void;
}

/** See {@link WalStore.rewrap} and {@link WalArchive.rewrap}. */
export async function rewrapTimeline(wal: KeyedWal, kekVersion: number, isOld: (reference: Buffer) => boolean): Promise<number> {
  wal.checkOpen();
  const rewrap = (references: readonly Buffer[]): Promise<Buffer[]> => wal.keys.rewrap(references);
  const here = await wal.store.rewrap(isOld, rewrap);
  return here + ((await wal.archive?.rewrap(wal.offloadedLsn, kekVersion, isOld, rewrap)) ?? 0);
}

/** Everything whose data key was made under a KEK that `isOld` names, under a fresh one. `wrote` is told of each, with how many are left, and awaited.
 *  UNAVAILABLE when something is left; run it again. */
export async function reEncryptTimeline(
  wal: KeyedWal,
  isOld: (reference: Buffer) => boolean,
  wrote: (bytes: number, left: number) => Promise<void>,
): Promise<void> {
  let busy: unknown;
  const numbers = wal.store.sealedUnder(isOld);
  for (const [i, number] of numbers.entries()) {
    wal.checkOpen();
    await wal.keys.reserve(1);
    try {
      await wrote(await wal.store.reEncrypt(number), numbers.length - i - 1);
    } catch (error) {
      if (!isCode(error, 'UNAVAILABLE')) throw error;
      busy = error;
    }
  }
  await wal.archive?.reEncrypt(wal.offloadedLsn, isOld, wrote);
  if (busy !== undefined) throw busy;
}
