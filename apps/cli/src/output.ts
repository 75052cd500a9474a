/** What commands print: tables for people, JSON for programs. Control characters from the far end never reach the terminal. */
import type { Json } from './api-client.ts';

export type Column = readonly [title: string, value: (item: Json) => unknown];

export function printTable(items: readonly Json[], columns: readonly Column[], out: (line: string) => void): void {
  const rows = [columns.map(([title]) => title), ...items.map((item) => columns.map(([, value]) => cell(value(item))))];
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => (row[i] as string).length)));
  for (const row of rows)
    out(
      row
        .map((text, i) => (i === row.length - 1 ? text : text.padEnd(widths[i] as number)))
        .join('  ')
        .trimEnd(),
    );
}

export function printFields(item: Json, out: (line: string) => void): void {
  const flat = Object.entries({ ...item, ...(item.status as Json | undefined), status: undefined }).filter(([, v]) => v !== undefined);
  const width = Math.max(...flat.map(([k]) => k.length));
  for (const [key, value] of flat) out(`${key.padEnd(width)}  ${cell(value)}`);
}

// oxlint-disable-next-line no-control-regex -- they are what is taken out
const CONTROL = /[\u0000-\u001f\u007f]/g;

const cell = (value: unknown): string =>
  (value === undefined || value === null ? '-' : typeof value === 'string' ? value : JSON.stringify(value)).replace(CONTROL, '?');

export const mebibytes = (bytes: number): string => `${Math.round(bytes / (1 << 20))} MiB`;

export const statusOf = (item: Json): Json => (item.status ?? {}) as Json;
