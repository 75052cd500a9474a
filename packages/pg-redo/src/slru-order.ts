/** SLRU arithmetic (slru.c and its users): pages go round with the 32-bit ids they hold, and a truncation removes whole segments.
 *  Invariant: a segment with a page that may still be looked up is never called gone. */
import { SLRU_MULTIXACT_MEMBERS, SLRU_MULTIXACT_OFFSETS, SLRU_XACT, type SlruKind } from './effects.ts';
import { CLOG_XACTS_PER_PAGE, COMMIT_TS_XACTS_PER_PAGE, MULTIXACT_MEMBERS_PER_PAGE, MULTIXACT_OFFSETS_PER_PAGE } from './side-delta.ts';

export const SLRU_PAGES_PER_SEGMENT = 32;

const idsPerPage = (kind: SlruKind): number => {
  if (kind === SLRU_XACT) return CLOG_XACTS_PER_PAGE;
  if (kind === SLRU_MULTIXACT_OFFSETS) return MULTIXACT_OFFSETS_PER_PAGE;
  return kind === SLRU_MULTIXACT_MEMBERS ? MULTIXACT_MEMBERS_PER_PAGE : COMMIT_TS_XACTS_PER_PAGE;
};

/** Pages before the numbering starts over; the last one may be used in part. */
export const slruPagesInCycle = (kind: SlruKind): number => Math.ceil(0x1_0000_0000 / idsPerPage(kind));

/** Whether truncation to `firstKeptPage` removes the segment.
 *  With `fromPage` (PerformMembersTruncation): it lies between the two, going forward; members may fill nearly the whole cycle, so there
 *  is no "before". Without (SlruMayDeleteSegment): all of it lies at most half a cycle before. */
export function slruSegmentTruncated(kind: SlruKind, segment: number, firstKeptPage: number, fromPage?: number): boolean {
  const cycle = slruPagesInCycle(kind);
  if (fromPage !== undefined) {
    const segments = Math.ceil(cycle / SLRU_PAGES_PER_SEGMENT);
    const from = Math.floor(fromPage / SLRU_PAGES_PER_SEGMENT);
    const to = Math.floor(firstKeptPage / SLRU_PAGES_PER_SEGMENT);
    return (segment - from + segments) % segments < (to - from + segments) % segments;
  }
  const firstPage = segment * SLRU_PAGES_PER_SEGMENT;
  const ahead = (page: number): number => (((firstKeptPage - page) % cycle) + cycle) % cycle;
  // The last segment of the cycle may have fewer pages.
  const lastPage = Math.min(firstPage + SLRU_PAGES_PER_SEGMENT, cycle) - 1;
  return ahead(lastPage) > 0 && ahead(lastPage) < cycle / 2 && ahead(firstPage) < cycle / 2;
}
