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

/** `base/5/16384_vm.1`: path of a segment file relative to the data directory. */
export function relPath(tag: RelTag, segment = 0): string {
  const dir = tag.spc === GLOBAL_TABLESPACE ? 'global' : `base/${tag.db}`;
  return `${dir}/${tag.rel}${FORK_SUFFIX[tag.fork]}${segment === 0 ? '' : `.${segment}`}`;
}

const REL_PATH = /^(?:(global)|base\/([0-9]{1,10}))\/([0-9]{1,10})(_fsm|_vm|_init)?(?:\.([0-9]{1,6}))?$/;

/** Inverse of {@link relPath}; undefined when the path is not a relation file. */
export function parseRelPath(path: string): { tag: RelTag; segment: number } | undefined {
  const m = REL_PATH.exec(path);
  if (m === null) return undefined;
  const fork = m[4] === undefined ? 0 : (FORK_SUFFIX.indexOf(m[4] as '_fsm') as ForkNumber);
  const tag =
    m[1] !== undefined
      ? { spc: GLOBAL_TABLESPACE, db: 0, rel: Number(m[3]), fork }
      : { spc: DEFAULT_TABLESPACE, db: Number(m[2]), rel: Number(m[3]), fork };
  return { tag, segment: m[5] === undefined ? 0 : Number(m[5]) };
}
