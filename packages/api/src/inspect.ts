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
