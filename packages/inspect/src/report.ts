/** Puts a report together and prints it. Invariant: text from a file reaches a terminal only without control characters. */
import type { InspectReport, ReportTable } from '@lakebase/api';
import { errorMessage } from '@lakebase/base';
import { decodeDekReference } from '@lakebase/envelope';
import { FORK_FSM, FORK_INIT, FORK_MAIN, FORK_VM } from '@lakebase/ids';
import {
  FIRST_PAGE_KIND,
  KIND_CHECKPOINT,
  KIND_CONTROL,
  KIND_DATABASE,
  KIND_ORIGIN,
  KIND_RELMAP,
  KIND_REL_FLOORS,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  KIND_SLRU_PAGE,
  KIND_SLRU_SEGMENT,
  KIND_TWOPHASE,
  decodeKey,
} from '@lakebase/layers';

export const ROWS_DEFAULT = 100;

export class ReportBuilder {
  readonly #kind: string;
  readonly #name: string;
  readonly #limit: number;
  readonly #fields: [string, string][] = [];
  readonly #tables: ReportTable[] = [];
  readonly #notes: string[] = [];
  readonly #damage: string[] = [];

  constructor(kind: string, name: string, limit = ROWS_DEFAULT) {
    this.#kind = kind;
    this.#name = name;
    this.#limit = limit;
  }

  field(label: string, value: string | number | bigint | null | undefined): this {
    this.#fields.push([label, value === null || value === undefined ? '-' : String(value)]);
    return this;
  }
  /** `rows` may be longer than what is shown. */
  table(title: string, columns: readonly string[], rows: readonly (readonly (string | number)[])[], more = 0): this {
    const shown = rows.slice(0, this.#limit).map((row) => row.map(String));
    this.#tables.push({ title, columns, rows: shown, omitted: rows.length - shown.length + more });
    return this;
  }
  note(text: string): this {
    this.#notes.push(text);
    return this;
  }
  damage(what: unknown): this {
    this.#damage.push(typeof what === 'string' ? what : errorMessage(what));
    return this;
  }
  get rowLimit(): number {
    return this.#limit;
  }
  done(): InspectReport {
    return { kind: this.#kind, name: this.#name, fields: this.#fields, tables: this.#tables, notes: this.#notes, damage: this.#damage };
  }
}

export const NO_KEYS = 'contents are sealed and no keys are at hand here: only what stands outside of the sealed frames is shown';

/** What may be shown of a key reference: which KEK wraps it, and enough of the commitment to tell two keys apart. */
export function describeReference(reference: Buffer): string {
  if (reference.length === 0) return 'none (not encrypted)';
  try {
    const r = decodeDekReference(reference);
    return `wrapped by KEK version ${r.kekVersion}, key ${r.commitment.subarray(0, 8).toString('hex')}…`;
  } catch (error) {
    return `not valid: ${errorMessage(error)}`;
  }
}

export const describeAlgorithm = (algorithm: number): string =>
  algorithm === 1 ? 'AES-256-GCM' : algorithm === 0 ? 'none, checksums only (test builds)' : `unknown (${algorithm})`;

const FORKS: Readonly<Record<number, string>> = { [FORK_MAIN]: 'main', [FORK_FSM]: 'fsm', [FORK_VM]: 'vm', [FORK_INIT]: 'init' };
export const forkName = (fork: number): string => FORKS[fork] ?? `fork ${fork}`;
const SLRUS = ['pg_xact', 'pg_multixact/offsets', 'pg_multixact/members', 'pg_commit_ts'];
const slruName = (kind: number): string => SLRUS[kind] ?? `SLRU ${kind}`;

/** A key of the key space in words. */
export function describeKey(bytes: Buffer): string {
  const k = decodeKey(bytes);
  const rel = `${k.spc}/${k.db}/${k.rel} ${forkName(k.fork)}`;
  switch (k.kind) {
    case KIND_CHECKPOINT:
      return 'checkpoint counters';
    case KIND_CONTROL:
      return 'control file';
    case KIND_DATABASE:
      return `database ${k.spc}/${k.db}`;
    case KIND_RELMAP:
      return `relation map ${k.spc}/${k.db}`;
    case KIND_TWOPHASE:
      return `prepared transaction ${k.rel * 0x1_0000_0000 + k.block}`;
    case KIND_ORIGIN:
      return `replication origin ${k.block}`;
    case KIND_SLRU_SEGMENT:
      return `${slruName(k.rel)} segment ${k.block}`;
    case KIND_REL_SIZE:
      return `size of ${rel}`;
    case KIND_REL_FLOORS:
      return `truncation floors of ${rel}`;
    case KIND_SLRU_PAGE:
      return `${slruName(k.rel)} page ${k.block}`;
    case KIND_REL_PAGE:
      return `${rel} block ${k.block}`;
    default:
      return `${k.kind < FIRST_PAGE_KIND ? 'value' : 'page'} of unknown kind 0x${k.kind.toString(16)} ${rel} ${k.block}`;
  }
}

/** Lines for a terminal. */
export function renderReport(report: InspectReport): string[] {
  const lines = [`${report.kind} ${report.name}`];
  const width = Math.max(0, ...report.fields.map(([label]) => label.length));
  for (const [label, value] of report.fields) lines.push(`  ${label.padEnd(width)}  ${value}`);
  for (const { title, columns, rows, omitted } of report.tables) {
    lines.push('', title);
    const all = [columns, ...rows];
    const widths = columns.map((_, i) => all.reduce((n, row) => Math.max(n, (row[i] ?? '').length), 0));
    for (const row of all)
      lines.push(`  ${row.map((cell, i) => (i === row.length - 1 ? cell : cell.padEnd(widths[i] ?? 0))).join('  ')}`.trimEnd());
    if (omitted > 0) lines.push(`  … ${omitted} more`);
  }
  if (report.notes.length > 0) lines.push('', ...report.notes);
  if (report.damage.length > 0) lines.push('', ...report.damage.map((d) => `DAMAGED: ${d}`));
  return lines.map(printable);
}

// oxlint-disable-next-line no-control-regex -- they are what is taken out
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/g;
const printable = (text: string): string => text.replace(CONTROL, '?');
