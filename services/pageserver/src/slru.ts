/** SLRU arithmetic (slru.c and its users): pages, segments and file names; the circular order of pages is in pg-redo. */
import { LakebaseError } from '@lakebase/base';
import {
  SLRU_COMMIT_TS,
  SLRU_MULTIXACT_MEMBERS,
  SLRU_MULTIXACT_OFFSETS,
  SLRU_PAGES_PER_SEGMENT,
  SLRU_XACT,
  type SlruKind,
} from '@lakebase/pg-redo';

export const PAGES_PER_SEGMENT: number = SLRU_PAGES_PER_SEGMENT;

export const SLRU_KINDS: readonly SlruKind[] = [SLRU_XACT, SLRU_MULTIXACT_OFFSETS, SLRU_MULTIXACT_MEMBERS, SLRU_COMMIT_TS];
export const SLRU_DIRECTORY = ['pg_xact', 'pg_multixact/offsets', 'pg_multixact/members', 'pg_commit_ts'] as const;

export const XIDS_PER_PAGE = 32_768;
export const OFFSETS_PER_PAGE = 2_048;
export const MEMBERS_PER_PAGE = 1_636;

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
