/** Where a log ends, from the files of its directory, at open and after damage.
 *  Invariant: nothing that had been durable is dropped in silence: an end before the flush hint, a missing segment or a damaged one is reported. */
import { errorMessage } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, formatLsn, lsn, segmentNumber } from '@lakebase/ids';
import type { CompleteSegments } from './complete-segments.ts';
import { type SegmentDir, removeIfThere } from './segment-dir.ts';
import { isWithoutKey } from './segment-references.ts';
import type { WalAppender } from './wal-appender.ts';
import type { Damage, WalStoreOptions } from './wal-store-options.ts';

/** More missing segments in a row than this are not a few damaged files. */
const HOLES_MAX = 64;

export interface LogParts {
  readonly files: SegmentDir;
  readonly complete: CompleteSegments;
  readonly end: WalAppender;
}

/** Finds the end of WAL and makes `end` stand there. With `repair`, what is damaged is cut off instead of reported. */
export function recoverLog({ files, complete, end }: LogParts, options: WalStoreOptions, repair: boolean): Damage | undefined {
  const { startLsn, prevRecordLsn, flushHint } = options;
  let damage: Damage | undefined;
  const note = (path: string, at: number, message: string): void => {
    damage = { path, lsn: lsn(at), message };
  };
  complete.holes.clear();
  for (const path of files.sweep()) note(path, startLsn, 'this WAL segment was found damaged earlier');
  const segments = files.numbers();
  // From the newest down: files without a frame were only prepared; the first with frames is where WAL ends.
  let last = segments.length - 1;
  for (; last >= 0; last--) {
    const number = segments[last] as number;
    const path = files.path(number);
    try {
      const found = end.adopt(number, repair);
      if (found === undefined) {
        removeIfThere(path);
        continue;
      }
      if (found.damage !== undefined) note(path, end.flushLsn, found.damage);
      break;
    } catch (error) {
      if (isWithoutKey(error)) throw error;
      if (repair) removeIfThere(path);
      else note(path, number * WAL_SEGMENT_BYTES, errorMessage(error));
    }
  }
  if (last < 0) {
    // Keep what cannot be read for a person to look at; its name keeps this member from voting.
    files.markAllDamaged();
    end.begin(startLsn, prevRecordLsn);
    if (!repair && damage === undefined && flushHint !== undefined && flushHint > startLsn)
      note(files.dir, startLsn, `no WAL file is there, but WAL up to ${formatLsn(flushHint)} had been durable`);
  } else {
    complete.first = segments[0] as number;
    for (let i = 1; i <= last; i++) {
      if ((segments[i] as number) === (segments[i - 1] as number) + 1) continue;
      const hole = (segments[i - 1] as number) + 1;
      if ((segments[i] as number) - hole > HOLES_MAX || repair) {
        note(files.path(hole), hole * WAL_SEGMENT_BYTES, 'this WAL segment is missing');
        break;
      }
      for (let n = hole; n < (segments[i] as number); n++)
        complete.holes.set(n, {
          path: files.path(n),
          lsn: lsn(n * WAL_SEGMENT_BYTES),
          message: 'this WAL segment is missing',
        });
    }
    complete.firstLsn = lsn(Math.max(complete.first * WAL_SEGMENT_BYTES, segmentNumber(startLsn) === complete.first ? startLsn : 0));
    // A member that was re-copied may begin in the middle of a segment: its context frame says where.
    if (complete.first === end.segment) complete.firstLsn = end.firstLsn;
    else complete.firstLsn = contextLsn(complete, complete.first) ?? complete.firstLsn;
  }
  if (!repair && damage === undefined && flushHint !== undefined && end.flushLsn < flushHint)
    note(end.current.path, end.flushLsn, `WAL ends at ${formatLsn(end.flushLsn)}, but ${formatLsn(flushHint)} had been durable`);
  return damage;
}

function contextLsn(complete: CompleteSegments, number: number): Lsn | undefined {
  try {
    return complete.context(number).position;
  } catch (error) {
    if (isWithoutKey(error)) throw error;
    return undefined; // Readers of that segment will find and report it.
  }
}
