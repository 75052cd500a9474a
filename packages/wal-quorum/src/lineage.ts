/** Lineages of a timeline's WAL (docs/protocols/wal-recovery.md). The WAL of one lineage has no fork; a recovery that could not bring back all of it
 *  begins the next one.
 *  Invariants: the first lineage is number 0; numbers rise (each is the generation of the configuration that began it) and start LSNs never fall; a byte
 *  belongs to the last lineage that begins at or before it. */
import { LakebaseError } from '@lakebase/base';
import { type Lsn, type Term, formatLsn, parseLsn } from '@lakebase/ids';

export interface WalLineage {
  readonly number: number;
  readonly startLsn: Lsn;
}
export interface WalLineageText {
  readonly number: number;
  readonly startLsn: string;
}

/** Bound on what we accept from a peer or a file. */
export const LINEAGES_MAX = 64;
/** More starts than a lineage will ever see. */
const TERMS_PER_LINEAGE = 1_000_000_000;

const invalid = (why: string): LakebaseError => new LakebaseError('INVALID_ARGUMENT', `not the lineages of a timeline: ${why}`);

export function validateLineages(lineages: readonly WalLineage[]): readonly WalLineage[] {
  if (lineages.length === 0 || lineages.length > LINEAGES_MAX) throw invalid(`${lineages.length} of them, at most ${LINEAGES_MAX}`);
  let before: WalLineage | undefined;
  for (const lineage of lineages) {
    if (!Number.isSafeInteger(lineage.number) || lineage.number < 0 || lineage.number > 0xffff_ffff)
      throw invalid(`number ${lineage.number}`);
    if (before === undefined ? lineage.number !== 0 : lineage.number <= before.number || lineage.startLsn < before.startLsn)
      throw invalid(`${lineage.number} from ${formatLsn(lineage.startLsn)} cannot come there`);
    before = lineage;
  }
  return lineages;
}

/** The term that members of the newest lineage are made with: above every one of an older lineage. */
export const firstTermOf = (lineages: readonly Pick<WalLineage, 'number'>[]): Term => ((lineages.length - 1) * TERMS_PER_LINEAGE) as Term;

export const lineagesToJson = (lineages: readonly WalLineage[]): WalLineageText[] =>
  lineages.map(({ number, startLsn }) => ({ number, startLsn: formatLsn(startLsn) }));

/** Checks everything: the value comes from another process. */
export function lineagesFromJson(value: unknown): readonly WalLineage[] {
  if (!Array.isArray(value) || value.length > LINEAGES_MAX) throw invalid('expected a short array');
  return validateLineages(
    value.map((entry: unknown) => {
      const { number, startLsn } = (entry ?? {}) as { number?: unknown; startLsn?: unknown };
      if (typeof number !== 'number' || typeof startLsn !== 'string') throw invalid('a number and a start LSN each');
      return { number, startLsn: parseLsn(startLsn) };
    }),
  );
}
