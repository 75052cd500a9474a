/** A page of Postgres for a person: header, items, and the changes that made it. The page may be anything: pointers are checked before they are followed. */
import type { InspectReport } from '@lakebase/api';
import { type Lsn, BLCKSZ, formatLsn } from '@lakebase/ids';
import { type Entry } from '@lakebase/layers';
import {
  ITEM_ID_BYTES,
  LP_DEAD,
  LP_NORMAL,
  LP_REDIRECT,
  PAGE_HEADER_BYTES,
  getU16,
  getU32,
  itemFlags,
  itemId,
  itemLength,
  itemOffset,
  pdFlags,
  pdLower,
  pdSpecial,
  pdUpper,
  pruneXid,
  rmgrName,
} from '@lakebase/pg-format';
import { describeEntry } from './layer-report.ts';
import { ReportBuilder } from './report.ts';

export interface PageChange {
  readonly entry: Pick<Entry, 'kind' | 'arg' | 'lsn' | 'bytes'>;
  /** Layer it comes from, or `memory`. */
  readonly layer: string;
}

const ITEM_KINDS: Readonly<Record<number, string>> = { [LP_NORMAL]: 'normal', [LP_REDIRECT]: 'redirect', [LP_DEAD]: 'dead' };
const HEAP_TUPLE_HEADER_BYTES = 23;

/** `changes`: newest first, down to the one that needs nothing older. */
export function reportPage(name: string, page: Buffer, lsn: Lsn, changes: readonly PageChange[], limit?: number): InspectReport {
  const report = new ReportBuilder('page', name, limit).field('as of', formatLsn(lsn));
  if (page.length !== BLCKSZ) return report.damage(`a page has ${BLCKSZ} bytes, not ${page.length}`).done();
  if (page.every((b) => b === 0)) report.field('content', 'zeros: a new page');
  else pageFields(report, page, lsn);
  const rows = changes.map(({ entry, layer }) => {
    const record = entry.kind === 1 && entry.bytes.length >= 24 ? entry.bytes : undefined;
    return [
      formatLsn(entry.lsn),
      record === undefined ? '-' : rmgrName(record[17] as number),
      record === undefined ? '-' : `0x${((record[16] as number) & 0xf0).toString(16).padStart(2, '0')}`,
      record === undefined ? '-' : lsnText(record, 12, 8),
      describeEntry(entry.kind, entry.arg, entry.bytes),
      entry.bytes.length,
      layer,
    ];
  });
  return report.table('what made it, newest first', ['end LSN', 'manager', 'info', 'prev', 'change', 'bytes', 'layer'], rows).done();
}

function pageFields(report: ReportBuilder, page: Buffer, lsn: Lsn): void {
  const lower = pdLower(page);
  const upper = pdUpper(page);
  const special = pdSpecial(page);
  // A number of any size, as the page has it.
  const changed = getU32(page, 0) * 0x1_0000_0000 + getU32(page, 4);
  report
    .field('pd_lsn', lsnText(page, 0, 4))
    .field('pd_checksum', getU16(page, 8))
    .field('pd_flags', `0x${pdFlags(page).toString(16).padStart(4, '0')}`)
    .field('pd_lower, upper, special', `${lower}, ${upper}, ${special}`)
    .field('page size and version', `${getU16(page, 18) & 0xff00}, ${getU16(page, 18) & 0xff}`)
    .field('pd_prune_xid', pruneXid(page));
  // Map pages and some index pages keep their own counts in place of LSNs of later changes; one from the future is never right.
  if (changed > lsn) report.damage(`pd_lsn ${lsnText(page, 0, 4)} is later than ${formatLsn(lsn)}, as of which the page was read`);
  if (lower < PAGE_HEADER_BYTES || lower > upper || upper > special || special > BLCKSZ)
    return void report.note('its pointers are not those of a page with items (a map page, or an index page of another form)');
  const items = Math.floor((lower - PAGE_HEADER_BYTES) / ITEM_ID_BYTES);
  const rows: (string | number)[][] = [];
  for (let n = 1; n <= items; n++) {
    const id = itemId(page, n);
    const [flags, offset, length] = [itemFlags(id), itemOffset(id), itemLength(id)];
    const kind = ITEM_KINDS[flags] ?? 'unused';
    const inside = offset >= upper && offset + length <= BLCKSZ;
    const what =
      flags === LP_REDIRECT
        ? `to item ${offset}`
        : length > 0 && !inside
          ? 'lies outside of the page'
          : tupleOf(page, offset, length, special);
    rows.push([n, kind, offset, length, what]);
  }
  report.table(`${items} items`, ['item', 'state', 'offset', 'bytes', ''], rows);
}

/** On a page without special space items are heap tuples. */
function tupleOf(page: Buffer, offset: number, length: number, special: number): string {
  if (special !== BLCKSZ || length < HEAP_TUPLE_HEADER_BYTES) return '';
  const infomask = getU16(page, offset + 20);
  const ctid = `(${getU16(page, offset + 12) * 65_536 + getU16(page, offset + 14)},${getU16(page, offset + 16)})`;
  return `xmin ${getU32(page, offset)} xmax ${getU32(page, offset + 4)} ctid ${ctid} infomask 0x${infomask.toString(16).padStart(4, '0')}`;
}

const lsnText = (b: Buffer, high: number, low: number): string =>
  `${getU32(b, high).toString(16).toUpperCase()}/${getU32(b, low).toString(16).toUpperCase()}`;
