/** Keys of the WAL of one timeline, ready before its store is opened: opening and reading are synchronous. */
import { LakebaseError, type Logger, errorMessage, isCode } from '@lakebase/base';
import type { CipherProvider } from '@lakebase/envelope';
import type { ProjectKeys } from '@lakebase/keys';
import { storedReferences } from '@lakebase/wal-store';

/** Loads the keys of every segment in `dir` and has a fresh one at hand. A reference that is not one of this project's keys, or was damaged, does
 *  not keep the others from being opened: its segment is damaged, and the store finds out which. */
export async function loadWalKeys(dir: string, keys: ProjectKeys, log: Logger): Promise<CipherProvider> {
  await keys.reserve(1);
  const unusable = new Set<string>();
  /** Being loaded now. */
  const late = new Set<string>();
  const references = storedReferences(dir, log);
  await keys.load(references).catch(async (error: unknown) => {
    if (!isUnusable(error)) throw error;
    for (const reference of references)
      await keys.load([reference]).catch((cause: unknown) => {
        if (!isUnusable(cause)) throw cause;
        unusable.add(reference.toString('hex'));
      });
  });
  return {
    create: () => keys.create(),
    restore: (...args: [number, Buffer] | [string, number, Buffer]) => {
      const [algorithm, reference] = args.slice(-2) as [number, Buffer];
      if (unusable.has(reference.toString('hex')))
        throw new LakebaseError('CORRUPT', "the segment's key reference does not unwrap: it was changed, or is of another project");
      try {
        return keys.restore(algorithm, reference);
      } catch (error) {
        // A segment file that came after the start, by a restored backup say: the next reader finds its key, or that it has none.
        if (isCode(error, 'UNAVAILABLE') && keys.usable && !late.has(reference.toString('hex'))) {
          late.add(reference.toString('hex'));
          keys
            .load([reference])
            .catch((cause: unknown) => log.warn({ err: errorMessage(cause) }, 'the key of a WAL segment cannot be loaded'))
            .finally(() => late.delete(reference.toString('hex')));
        }
        throw error;
      }
    },
  };
}

const isUnusable = (error: unknown): boolean =>
  isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED') || isCode(error, 'INVALID_ARGUMENT');
