/** Relation forks and their file names under a data directory (relpath.c, md.c). */

export const FORK_MAIN = 0;
export const FORK_FSM = 1;
export const FORK_VM = 2;
export const FORK_INIT = 3;
export type ForkNumber = 0 | 1 | 2 | 3;

export const BLCKSZ = 8192;
/** RELSEG_SIZE: blocks in one segment file (1 GiB). */
export const RELSEG_BLOCKS = 131_072;
export const DEFAULT_TABLESPACE = 1663;
export const GLOBAL_TABLESPACE = 1664;

/** RelFileLocator plus fork: one file on a stock server (split every 1 GiB). */
export interface RelTag {
  readonly spc: number;
  readonly db: number;
  readonly rel: number;
  readonly fork: ForkNumber;
}

const FORK_SUFFIX = ['', '_fsm', '_vm', '_init'] as const;

/** TABLESPACE_VERSION_DIRECTORY: where the files of one version of Postgres lie in a tablespace that a user made. */
export const tablespaceDirectory = (major: number, catalogVersion: number): string => `PG_${major}_${catalogVersion}`;

/** `base/5/16384_vm.1`: path of a segment file relative to the data directory. `versionDirectory` ({@link tablespaceDirectory}) is part of paths in
 *  user tablespaces only; without it the path is good for a message, not for a file. */
export function relPath(tag: RelTag, segment = 0, versionDirectory = 'PG_'): string {
  const dir =
    tag.spc === GLOBAL_TABLESPACE
      ? 'global'
      : tag.spc === DEFAULT_TABLESPACE
        ? `base/${tag.db}`
        : `pg_tblspc/${tag.spc}/${versionDirectory}/${tag.db}`;
  return `${dir}/${tag.rel}${FORK_SUFFIX[tag.fork]}${segment === 0 ? '' : `.${segment}`}`;
}

const REL_PATH =
  /^(?:(global)|base\/([0-9]{1,10})|pg_tblspc\/([0-9]{1,10})\/PG_[0-9_]{0,20}\/([0-9]{1,10}))\/([0-9]{1,10})(_fsm|_vm|_init)?(?:\.([0-9]{1,6}))?$/;

/** Inverse of {@link relPath}; undefined when the path is not a relation file. */
export function parseRelPath(path: string): { tag: RelTag; segment: number } | undefined {
  const m = REL_PATH.exec(path);
  if (m === null) return undefined;
  const [, global, db, spc, spcDb, rel, suffix, segment] = m;
  const fork = suffix === undefined ? 0 : (FORK_SUFFIX.indexOf(suffix as '_fsm') as ForkNumber);
  const place =
    global !== undefined
      ? { spc: GLOBAL_TABLESPACE, db: 0 }
      : { spc: spc === undefined ? DEFAULT_TABLESPACE : Number(spc), db: Number(spc === undefined ? db : spcDb) };
  return { tag: { ...place, rel: Number(rel), fork }, segment: segment === undefined ? 0 : Number(segment) };
}
