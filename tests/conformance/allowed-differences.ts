/** Every difference of output between a stock server and a compute of ours that is accepted, each with its reason. Reviewed by hand; an entry
 *  covers only the lines its expression matches, so that anything else in the same test still fails. */

export interface AllowedDifference {
  readonly suite: string;
  readonly test: string;
  /** Each differing line, prefixed `< ` (stock) or `> ` (ours), must match. */
  readonly lines: RegExp;
  readonly reason: string;
}

/** Pages that storage cannot have because stock Postgres does not put them into WAL. */
export interface AllowedPageDifference {
  readonly fork: 'main' | 'fsm' | 'vm' | 'init';
  /** Handler function of the access method. */
  readonly handler: string;
  readonly reason: string;
}

export const ALLOWED_PAGE_DIFFERENCES: readonly AllowedPageDifference[] = [
  {
    fork: 'init',
    handler: 'blhandler',
    reason:
      'generic WAL logs nothing for an unlogged relation, and BloomInitMetapage writes the init fork with it: not in WAL, nor on any stock standby. Kept at a clean suspend; after a crash the index wants REINDEX',
  },
];

/** Visibility map pages of which storage may lack bits (never have one too many: a missing bit costs a visit to the heap, never an answer). */
export const ALLOWED_MAP_LOSS = {
  /** Catalogs of a copied database keep the numbers that initdb gave, which are below this (FirstNormalObjectId). */
  belowNode: 16_384,
  reason:
    'CREATE DATABASE … STRATEGY wal_log logs visibility maps as pages with a hole, and all bits lie in the hole: WAL, and every stock standby, has none of them',
} as const;

export const ALLOWED_DIFFERENCES: readonly AllowedDifference[] = [];
