/** SLRU arithmetic (slru.c and its users): pages, segments, file names and the circular order of pages. */
import { LakebaseError } from '@lakebase/base';
import { SLRU_COMMIT_TS, SLRU_MULTIXACT_MEMBERS, SLRU_MULTIXACT_OFFSETS, SLRU_XACT, type SlruKind } from '@lakebase/pg-redo';

export const PAGES_PER_SEGMENT = 32;
export const SLRU_KINDS: readonly SlruKind[] = [SLRU_XACT, SLRU_MULTIXACT_OFFSETS, SLRU_MULTIXACT_MEMBERS, SLRU_COMMIT_TS];
export const SLRU_DIRECTORY = ['pg_xact', 'pg_multixact/offsets', 'pg_multixact/members', 'pg_commit_ts'] as const;

export const XIDS_PER_PAGE = 32_768;
export const OFFSETS_PER_PAGE = 2_048;
export const MEMBERS_PER_PAGE = 1_636;
export const COMMIT_TS_PER_PAGE = 819;
const PER_PAGE = [XIDS_PER_PAGE, OFFSETS_PER_PAGE, MEMBERS_PER_PAGE, COMMIT_TS_PER_PAGE] as const;

/** Pages before the 32-bit numbering starts over. */
const pagesInCycle = (kind: SlruKind): number => Math.floor(0xffff_ffff / PER_PAGE[kind]) + 1;

/** True when all of the segment lies before `firstKeptPage` in circular order. */
export function segmentPrecedes(kind: SlruKind, segment: number, firstKeptPage: number): boolean {
  const lastPage = segment * PAGES_PER_SEGMENT + PAGES_PER_SEGMENT - 1;
  const cycle = pagesInCycle(kind);
  const ahead = (((firstKeptPage - lastPage) % cycle) + cycle) % cycle;
  return ahead > 0 && ahead < cycle / 2;
}

export const segmentFileName = (kind: SlruKind, segment: number): string =>
  `${SLRU_DIRECTORY[kind]}/${segment.toString(16).toUpperCase().padStart(4, '0')}`;

const SEGMENT_PATH = /^(pg_xact|pg_multixact\/offsets|pg_multixact\/members|pg_commit_ts)\/([0-9A-F]{4,6})$/;

export function parseSegmentPath(path: string): { kind: SlruKind; segment: number } | undefined {
  const m = SEGMENT_PATH.exec(path);
  if (m === null) return undefined;
  const kind = (SLRU_DIRECTORY as readonly string[]).indexOf(m[1] as string);
  if (kind < 0) throw new LakebaseError('INTERNAL', 'unknown SLRU');
  return { kind: kind as SlruKind, segment: Number.parseInt(m[2] as string, 16) };
}
