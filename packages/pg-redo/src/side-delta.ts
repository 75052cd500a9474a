/** Side deltas: changes that no block reference of a record names, as small self-describing byte strings.
 *  Form: kind u8, then fields little-endian. The kind table is here, the heap's kinds are applied in heap/heap-delta.ts.
 *
 *  | kind | page | fields after the kind |
 *  |---|---|---|
 *  | 0x01 XACT_STATUS | pg_xact | status u8, (xid modulo 32768 u16)+ |
 *  | 0x02 MULTIXACT_OFFSETS | pg_multixact/offsets | (entry u16, offset u32)+ |
 *  | 0x03 MULTIXACT_MEMBERS | pg_multixact/members | (index on page u16, xid u32, status u8)+ |
 *  | 0x04 COMMIT_TS | pg_commit_ts | time i64, origin u16, (xid modulo 819 u16)+ |
 *  | 0x40–0x44 | VM, FSM | heap/heap-delta.ts |
 *
 *  Invariants: (1) applying is idempotent; (2) a page of zeros is a valid start; (3) no delta moves an LSN: SLRU pages have none, and
 *  Postgres's redo does not move it on VM and FSM pages either. */
import { LakebaseError } from '@lakebase/base';
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import { applyHeapDelta, isHeapDelta } from './heap/heap-delta.ts';

export const DELTA_XACT_STATUS = 0x01;
export const DELTA_MULTIXACT_OFFSETS = 0x02;
export const DELTA_MULTIXACT_MEMBERS = 0x03;
export const DELTA_COMMIT_TS = 0x04;

export const CLOG_XACTS_PER_PAGE = 32_768;
export const MULTIXACT_OFFSETS_PER_PAGE = 2048;
/** 409 groups of four members on a page. */
export const MULTIXACT_MEMBERS_PER_PAGE = 1636;
/** Four flag bytes, four xids. */
const MEMBER_GROUP_BYTES = 20;
export const COMMIT_TS_XACTS_PER_PAGE = 819;
const COMMIT_TS_ENTRY_BYTES = 10;

export const TRANSACTION_STATUS_COMMITTED = 1;
export const TRANSACTION_STATUS_ABORTED = 2;

/** Sets the status of the given xids, all on one page. */
export function xactStatusDelta(status: number, xids: readonly number[]): Buffer {
  const delta = Buffer.allocUnsafe(2 + xids.length * 2);
  delta[0] = DELTA_XACT_STATUS;
  delta[1] = status;
  for (let i = 0; i < xids.length; i++) delta.writeUInt16LE((xids[i] as number) % CLOG_XACTS_PER_PAGE, 2 + i * 2);
  return delta;
}

export function multixactOffsetsDelta(entries: readonly (readonly [multi: number, offset: number])[]): Buffer {
  const delta = Buffer.allocUnsafe(1 + entries.length * 6);
  delta[0] = DELTA_MULTIXACT_OFFSETS;
  entries.forEach(([multi, offset], i) => {
    delta.writeUInt16LE(multi % MULTIXACT_OFFSETS_PER_PAGE, 1 + i * 6);
    delta.writeUInt32LE(offset >>> 0, 3 + i * 6);
  });
  return delta;
}

export interface MultixactMember {
  /** Position in the members array. */
  readonly offset: number;
  readonly xid: number;
  readonly status: number;
}

export function multixactMembersDelta(members: readonly MultixactMember[]): Buffer {
  const delta = Buffer.allocUnsafe(1 + members.length * 7);
  delta[0] = DELTA_MULTIXACT_MEMBERS;
  members.forEach((member, i) => {
    delta.writeUInt16LE(member.offset % MULTIXACT_MEMBERS_PER_PAGE, 1 + i * 7);
    delta.writeUInt32LE(member.xid, 3 + i * 7);
    delta[7 + i * 7] = member.status;
  });
  return delta;
}

/** `time` are the eight bytes of a TimestampTz. */
export function commitTsDelta(time: Buffer, originId: number, xids: readonly number[]): Buffer {
  const delta = Buffer.allocUnsafe(11 + xids.length * 2);
  delta[0] = DELTA_COMMIT_TS;
  time.copy(delta, 1, 0, 8);
  delta.writeUInt16LE(originId, 9);
  for (let i = 0; i < xids.length; i++) delta.writeUInt16LE((xids[i] as number) % COMMIT_TS_XACTS_PER_PAGE, 11 + i * 2);
  return delta;
}

/** Applies one delta to a page in place. `child` is the page that `deltaChildBlock` (heap/heap-delta.ts) names for the few deltas that depend on another. */
export function applySideDelta(page: Buffer, delta: Buffer, _endLsn: Lsn, child?: Buffer): void {
  if (page.length !== BLCKSZ) throw new LakebaseError('INVALID_ARGUMENT', `a page has ${BLCKSZ} bytes, not ${page.length}`);
  const kind = delta[0] ?? 0;
  const fits = (header: number, entry: number): boolean => delta.length > header && (delta.length - header) % entry === 0;
  if (isHeapDelta(kind)) applyHeapDelta(page, delta, child);
  else if (kind === DELTA_XACT_STATUS && fits(2, 2)) applyXactStatus(page, delta);
  else if (kind === DELTA_MULTIXACT_OFFSETS && fits(1, 6)) applyOffsets(page, delta);
  else if (kind === DELTA_MULTIXACT_MEMBERS && fits(1, 7)) applyMembers(page, delta);
  else if (kind === DELTA_COMMIT_TS && fits(11, 2)) applyCommitTs(page, delta);
  else throw new LakebaseError('CORRUPT', `side delta of kind ${kind} and ${delta.length} bytes is not known`);
}

/** Two bits per xid, low bits first. */
function applyXactStatus(page: Buffer, delta: Buffer): void {
  const status = (delta[1] as number) & 3;
  for (let at = 2; at < delta.length; at += 2) {
    const index = delta.readUInt16LE(at) % CLOG_XACTS_PER_PAGE;
    const shift = (index & 3) * 2;
    page[index >>> 2] = ((page[index >>> 2] as number) & ~(3 << shift)) | (status << shift);
  }
}

function applyOffsets(page: Buffer, delta: Buffer): void {
  for (let at = 1; at < delta.length; at += 6)
    page.writeUInt32LE(delta.readUInt32LE(at + 2), (delta.readUInt16LE(at) % MULTIXACT_OFFSETS_PER_PAGE) * 4);
}

function applyMembers(page: Buffer, delta: Buffer): void {
  for (let at = 1; at < delta.length; at += 7) {
    const index = delta.readUInt16LE(at) % MULTIXACT_MEMBERS_PER_PAGE;
    const group = Math.floor(index / 4) * MEMBER_GROUP_BYTES;
    page[group + (index & 3)] = delta[at + 6] as number;
    page.writeUInt32LE(delta.readUInt32LE(at + 2), group + 4 + (index & 3) * 4);
  }
}

function applyCommitTs(page: Buffer, delta: Buffer): void {
  for (let at = 11; at < delta.length; at += 2)
    delta.copy(page, (delta.readUInt16LE(at) % COMMIT_TS_XACTS_PER_PAGE) * COMMIT_TS_ENTRY_BYTES, 1, 11);
}
