/** Term histories: which term wrote which bytes of a log.
 *
 *  Invariants of a history: terms rise strictly, start LSNs never fall. Entry i covers [startLsn(i), startLsn(i+1)); the last one is open.
 *  A history may name terms that begin beyond the end of the log: it describes a log that is still being copied.
 *  An entry whose startLsn equals the end of the log counts as part of the log, like the empty entry with which a Raft leader opens its term.
 *  Two logs that hold the same term hold the same bytes up to the end of that term in the shorter of them (log matching). */
import { LakebaseError } from '@lakebase/base';
import { type Lsn, type Term, formatLsn, parseLsn, parseTerm } from '@lakebase/ids';
import type { TermHistory } from './types.ts';

/** Bound on what we accept from a peer or a file: 16 bytes each on disk. */
export const HISTORY_ENTRIES_MAX = 1_000_000;

export function validateHistory(history: TermHistory): TermHistory {
  if (history.length > HISTORY_ENTRIES_MAX) throw invalid(`${history.length} entries, at most ${HISTORY_ENTRIES_MAX}`);
  let term = 0;
  let startLsn = 0;
  for (const entry of history) {
    if (entry.term <= term) throw invalid(`term ${entry.term} follows term ${term}`);
    if (entry.startLsn < startLsn) throw invalid(`term ${entry.term} begins before the term it follows`);
    term = entry.term;
    startLsn = entry.startLsn;
  }
  return history;
}

const invalid = (why: string): LakebaseError => new LakebaseError('INVALID_ARGUMENT', `not a term history: ${why}`);

/** Term of the last entry of a log that ends at `position`; 0 when the log has none. */
export function lastLogTerm(history: TermHistory, position: Lsn): Term {
  for (let i = history.length - 1; i >= 0; i--) {
    const entry = history[i];
    if (entry !== undefined && entry.startLsn <= position) return entry.term;
  }
  return 0 as Term;
}

/** The entries a log that ends at `position` really has. */
export function historyUpTo(history: TermHistory, position: Lsn): TermHistory {
  let n = history.length;
  while (n > 0 && (history[n - 1]?.startLsn ?? 0) > position) n--;
  return n === history.length ? history : history.slice(0, n);
}

/** History of the log that ends at `position` once `term` begins there. A term that wrote nothing is dropped: no byte names it. */
export function appendTerm(history: TermHistory, term: Term, position: Lsn): TermHistory {
  const kept = historyUpTo(history, position).filter((entry) => entry.startLsn < position);
  const last = lastLogTerm(history, position);
  if (last >= term) throw invalid(`term ${term} cannot follow term ${last}`);
  return [...kept, { term, startLsn: position }];
}

/** Drops entries that end before `floor`. Sound only when every member's commit LSN is at least `floor`: then each of them has
 *  the entry that covers the byte before `floor`, and the common point is found from there on. */
export function pruneHistory(history: TermHistory, floor: Lsn): TermHistory {
  let first = 0;
  while (first + 1 < history.length && (history[first + 1]?.startLsn ?? 0) < floor) first++;
  return first === 0 ? history : history.slice(first);
}

/** End of the longest prefix that a log (`own`, ending at `ownEnd`) shares with the log that `other` describes.
 *  `other` is taken as complete, so its last term is open. Bytes before the first entry of a history are shared by all
 *  logs: a timeline holds no WAL without a term, and pruning stays below what all have committed. */
export function commonPoint(own: TermHistory, ownEnd: Lsn, other: TermHistory): Lsn {
  const mine = historyUpTo(own, ownEnd);
  let i = mine.length - 1;
  let j = other.length - 1;
  while (i >= 0 && j >= 0) {
    const a = mine[i];
    const b = other[j];
    if (a === undefined || b === undefined) break;
    if (a.term === b.term) {
      if (a.startLsn !== b.startLsn) {
        throw new LakebaseError(
          'CORRUPT',
          `histories disagree: term ${a.term} begins at ${formatLsn(a.startLsn)} here and at ${formatLsn(b.startLsn)} there`,
        );
      }
      const endA = mine[i + 1]?.startLsn ?? ownEnd;
      const endB = other[j + 1]?.startLsn ?? ownEnd;
      return Math.min(endA, endB, ownEnd) as Lsn;
    }
    if (a.term > b.term) i--;
    else j--;
  }
  // No term in common: one side is a stub that ends before the other's first entry. What lies before either first entry is shared.
  const shared = Math.max(own[0]?.startLsn ?? 0, other[0]?.startLsn ?? 0);
  return Math.min(shared, ownEnd) as Lsn;
}

export interface TermHistoryEntryText {
  readonly term: number;
  readonly startLsn: string;
}

export const historyToJson = (history: TermHistory): TermHistoryEntryText[] =>
  history.map((entry) => ({ term: entry.term, startLsn: formatLsn(entry.startLsn) }));

/** Checks everything: the value comes from another process. */
export function historyFromJson(value: unknown): TermHistory {
  if (!Array.isArray(value)) throw invalid('expected an array');
  if (value.length > HISTORY_ENTRIES_MAX) throw invalid(`${value.length} entries, at most ${HISTORY_ENTRIES_MAX}`);
  const entries = value.map((entry: unknown) => {
    const { term, startLsn } = (entry ?? {}) as { term?: unknown; startLsn?: unknown };
    if (typeof startLsn !== 'string') throw invalid('startLsn must be a string');
    return { term: parseTerm(term), startLsn: parseLsn(startLsn) };
  });
  return validateHistory(entries);
}
