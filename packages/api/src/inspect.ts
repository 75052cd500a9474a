/** What `lakebase inspect` shows of a file, an object or a page: made by packages/inspect where the bytes (and keys) are, printed by the CLI. */

export interface ReportTable {
  readonly title: string;
  readonly columns: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** Rows left out. */
  readonly omitted: number;
}

export interface InspectReport {
  /** `layer`, `timeline index`, `WAL segment` … */
  readonly kind: string;
  readonly name: string;
  readonly fields: readonly (readonly [label: string, value: string])[];
  readonly tables: readonly ReportTable[];
  /** Whether contents were opened, and what else a reader should know. */
  readonly notes: readonly string[];
  /** What failed a check; empty: nothing did. */
  readonly damage: readonly string[];
}

/** POST /v1/inspect of a pageserver or a safekeeper (token: `service`). */
export interface InspectRequest {
  readonly project: string;
  readonly timeline: string;
  /** Of a file or object of the timeline, without what is before; empty: which there are. */
  readonly name: string;
  /** The object, also where there is a local copy. */
  readonly fromStore?: boolean;
  readonly limit?: number;
  /** Entries of this frame of a layer. */
  readonly frame?: number;
  /** Open every frame. */
  readonly whole?: boolean;
  /** Records from here on. */
  readonly from?: string;
}

/** POST /v1/inspect/page of a pageserver. */
export interface InspectPageRequest {
  readonly project: string;
  readonly timeline: string;
  readonly spc: number;
  readonly db: number;
  readonly rel: number;
  readonly fork: number;
  readonly block: number;
  /** Null: the newest. */
  readonly lsn: string | null;
  readonly limit?: number;
}
