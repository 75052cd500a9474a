/** Replication slots outlive computes. WAL does not carry them, so their files (state, and what logical decoding needs to begin: snapshots of
 *  catalogs, mappings of rewritten catalogs) are kept in storage and laid down at the next start.
 *
 *  Invariants
 *  - a slot may resend, never skip: what is kept is never ahead of what the slot had confirmed, and at a start nothing of it is beyond that
 *    start's WAL (a lost compute may have decoded WAL that no quorum has);
 *  - a file is taken as a whole or not at all: Postgres replaces each by rename. */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { BundleFile } from '@lakebase/api';
import { crc32c } from '@lakebase/bytes';
import { type Lsn, lsnFromHalves, lsnHigh, lsnLow } from '@lakebase/ids';
import { type ScratchCipher, readScratchFile } from '../scratch-cipher.ts';

/** ReplicationSlotOnDisk (slot.c): magic, checksum of what follows, version, length, then ReplicationSlotPersistentData; alike in 16 to 18 so far. */
const SLOT_MAGIC = 0x0105_1ca1;
const AT = { checksum: 4, checksummed: 8, database: 80, persistency: 84, restartLsn: 96, invalidated: 104, confirmedFlush: 112, end: 120 };
const RS_PERSISTENT = 0;
const TRIES_MAX = 5;
const STATE_FILE = /^pg_replslot\/([^/]+)\/state$/;
/** `<lsn>.snap`, and `map-<database>-<relation>-<lsn>-<xid>-<xid>`; LSNs as two hexadecimal numbers. */
const SNAPSHOT = /^pg_logical\/snapshots\/([0-9A-F]{1,8})-([0-9A-F]{1,8})\.snap$/;
const MAPPING = /^pg_logical\/mappings\/map-[0-9a-f]+-[0-9a-f]+-([0-9A-F]{1,8})_([0-9A-F]{1,8})-[0-9a-f]+-[0-9a-f]+$/;

export interface SlotState {
  readonly name: string;
  readonly logical: boolean;
  /** Postgres has given it up, for lack of WAL or of catalog rows. */
  readonly invalidated: boolean;
  readonly restartLsn: Lsn;
  readonly confirmedFlush: Lsn;
}

/** Undefined for a file that Postgres itself would refuse or forget: damaged, or of a temporary slot. */
export function readSlotState(file: BundleFile): SlotState | undefined {
  const name = STATE_FILE.exec(file.path)?.[1];
  const { bytes } = file;
  if (name === undefined || bytes.length < AT.end || bytes.readUInt32LE(0) !== SLOT_MAGIC) return undefined;
  if (crc32c(bytes.subarray(AT.checksummed)) !== bytes.readUInt32LE(AT.checksum)) return undefined;
  if (bytes.readUInt32LE(AT.persistency) !== RS_PERSISTENT) return undefined;
  const u64 = (at: number): Lsn => lsnFromHalves(bytes.readUInt32LE(at + 4), bytes.readUInt32LE(at));
  return {
    name,
    logical: bytes.readUInt32LE(AT.database) !== 0,
    invalidated: bytes.readUInt32LE(AT.invalidated) !== 0,
    restartLsn: u64(AT.restartLsn),
    confirmedFlush: u64(AT.confirmedFlush),
  };
}

/** Files of all slots as they are now; empty when there is no slot. A slot without the snapshot it begins at would skip until its next consistent point, so
 *  what is taken is one moment: it is taken again when something has changed meanwhile. */
export function slotFiles(pgdata: string, cipher: ScratchCipher | null): BundleFile[] {
  for (let tries = 1; ; tries++) {
    const before = slotSignature(pgdata);
    const files = readSlotFiles(pgdata, cipher);
    if (tries >= TRIES_MAX || slotSignature(pgdata) === before) return files;
  }
}

function readSlotFiles(pgdata: string, cipher: ScratchCipher | null): BundleFile[] {
  const files: BundleFile[] = [];
  const take = (path: string): void => {
    try {
      files.push({ path, bytes: readScratchFile(cipher, join(pgdata, path)) });
    } catch {
      // dropped meanwhile
    }
  };
  for (const slot of list(pgdata, 'pg_replslot')) take(`pg_replslot/${slot}/state`);
  if (files.length === 0) return files;
  for (const dir of ['pg_logical/snapshots', 'pg_logical/mappings'])
    for (const name of list(pgdata, dir)) if (!name.endsWith('.tmp')) take(`${dir}/${name}`);
  return files;
}

/** Changes when any of {@link slotFiles} does. */
export function slotSignature(pgdata: string): string {
  const parts: string[] = [];
  for (const dir of ['pg_replslot', 'pg_logical/snapshots', 'pg_logical/mappings'])
    for (const name of list(pgdata, dir)) {
      const stat = statSync(join(pgdata, dir, name, ...(dir === 'pg_replslot' ? ['state'] : [])), { throwIfNoEntry: false });
      parts.push(`${name}:${stat?.mtimeMs}:${stat?.ino}:${stat?.size}`);
    }
  return parts.join(' ');
}

/** What of the kept files a start at `lsn` lays down, and from where its WAL must be there for logical decoding. */
export function slotsAt(files: readonly BundleFile[], lsn: Lsn): { files: BundleFile[]; walFrom: Lsn | undefined; logical: boolean } {
  let walFrom: Lsn | undefined;
  let logical = false;
  const out: BundleFile[] = [];
  for (const file of files) {
    const of = SNAPSHOT.exec(file.path) ?? MAPPING.exec(file.path);
    if (of !== null) {
      if (lsnFromHalves(Number.parseInt(of[1] as string, 16), Number.parseInt(of[2] as string, 16)) < lsn) out.push(file);
      continue;
    }
    if (!STATE_FILE.test(file.path)) {
      out.push(file);
      continue;
    }
    const slot = readSlotState(file);
    if (slot === undefined) continue;
    out.push(clamped(file, slot, lsn));
    if (!slot.logical) continue;
    logical = true;
    if (slot.invalidated) continue;
    const from = Math.min(slot.restartLsn, lsn) as Lsn;
    if (from > 0 && (walFrom === undefined || from < walFrom)) walFrom = from;
  }
  return { files: out, walFrom, logical };
}

function clamped(file: BundleFile, slot: SlotState, lsn: Lsn): BundleFile {
  if (slot.restartLsn <= lsn && slot.confirmedFlush <= lsn) return file;
  const bytes = Buffer.from(file.bytes);
  for (const at of [AT.restartLsn, AT.confirmedFlush]) {
    const value = lsnFromHalves(bytes.readUInt32LE(at + 4), bytes.readUInt32LE(at));
    if (value <= lsn) continue;
    bytes.writeUInt32LE(lsnLow(lsn), at);
    bytes.writeUInt32LE(lsnHigh(lsn), at + 4);
  }
  bytes.writeUInt32LE(crc32c(bytes.subarray(AT.checksummed)), AT.checksum);
  return { path: file.path, bytes };
}

function list(pgdata: string, dir: string): string[] {
  try {
    return readdirSync(join(pgdata, dir));
  } catch {
    return [];
  }
}
