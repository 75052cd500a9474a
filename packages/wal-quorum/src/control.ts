/** Codec of the control file of a WAL timeline (docs/formats/control-file.md): all that a member must not forget.
 *
 *  Invariants: the file is replaced as a whole (temporary file, fsync, rename, fsync of the directory), so a reader sees the old or the new one; every byte
 *  is covered by the CRC-32C at the end; a file that fails any check is CORRUPT, never repaired by guessing. */
import { LakebaseError, errorMessage } from '@lakebase/base';
import { ByteReader, ByteWriter, crc32c } from '@lakebase/bytes';
import { type Lsn, type ProjectUid, type Term, type TimelineId, lsnFromHalves, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import type { Damage } from './acceptor.ts';
import { type Configuration, MEMBERS_MAX, validateConfiguration } from './configuration.ts';
import { HISTORY_ENTRIES_MAX, validateHistory } from './history.ts';
import { LINEAGES_MAX, type WalLineage, validateLineages } from './lineage.ts';
import type { TermHistory } from './types.ts';

export const CONTROL_FILE_MAGIC = 0x4c424346; // 'LBCF'
/** 2 added two positions behind the damage reason, 3 the member's identity and its configuration behind those, 4 the lineages behind those (written only where
 *  there is more than one); older files are read and written again as the present version. */
export const CONTROL_FILE_VERSION = 4;
const VERSION_OF_ONE_LINEAGE = 3;
/** Everything before the history entries. */
export const CONTROL_HEADER_BYTES = 104;
const ENTRY_BYTES = 16;
const REASON_BYTES_MAX = 1024;
/** offloadedLsn and pagesLsn. */
const POSITIONS_BYTES = 16;
/** Identity, generation, and two sets of ids with their counts. */
const MEMBERSHIP_BYTES_MAX = 64 + 8 + 2 * (2 + MEMBERS_MAX * 64);
const LINEAGE_BYTES = 16;
/** Stands for "no new members" in place of their number. */
const NO_SET = 0xffff;
/** Refuse to read more: a file of this size is not ours. */
export const CONTROL_FILE_BYTES_MAX: number =
  CONTROL_HEADER_BYTES +
  HISTORY_ENTRIES_MAX * ENTRY_BYTES +
  2 +
  REASON_BYTES_MAX +
  POSITIONS_BYTES +
  MEMBERSHIP_BYTES_MAX +
  2 +
  LINEAGES_MAX * LINEAGE_BYTES +
  4;
/** Index is the code in the file. */
const DAMAGE_KINDS = ['none', 'lost', 'rebuilt'] as const;

export interface ControlFile {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  /** Postgres's database system identifier, a u64. */
  readonly systemId: bigint;
  readonly pgVersion: number;
  readonly term: Term;
  readonly history: TermHistory;
  /** First byte this timeline ever held. */
  readonly startLsn: Lsn;
  /** Start of the last record before startLsn. */
  readonly prevRecordLsn: Lsn;
  /** As known when written; the true one is never lower. */
  readonly commitLsn: Lsn;
  /** A durable end of log at some time since the last truncation: a scan that ends below it has lost WAL. */
  readonly flushHint: Lsn;
  readonly damage: Damage | null;
  /** WAL from startLsn up to here is in complete objects of the object store; startLsn when nothing is. Written lazily, never too high. */
  readonly offloadedLsn: Lsn;
  /** The pageserver has what WAL up to here made, where it outlives it. Written lazily, never too high. */
  readonly pagesLsn: Lsn;
  /** Who this member is and whom it knows as the others; null in a file from before there were configurations. */
  readonly membership: Membership | null;
  /** Of the timeline's WAL, oldest first; the last one begins at startLsn and is what this member holds. Absent: lineage 0 only. */
  readonly lineages?: readonly WalLineage[];
}

/** All lineages, also where the file names none. */
export const lineagesOf = ({ startLsn, lineages }: Pick<ControlFile, 'startLsn' | 'lineages'>): readonly WalLineage[] =>
  lineages ?? [{ number: 0, startLsn }];

export interface Membership {
  readonly self: string;
  readonly configuration: Configuration;
}

export function encodeControlFile(control: ControlFile): Buffer {
  validateHistory(control.history);
  const { damage } = control;
  const reason = Buffer.from(damage?.reason ?? '', 'utf8').subarray(0, REASON_BYTES_MAX);
  const membership = encodeMembership(control.membership);
  const lineages = encodeLineages(control);
  const w = new ByteWriter(
    CONTROL_HEADER_BYTES +
      control.history.length * ENTRY_BYTES +
      2 +
      reason.length +
      POSITIONS_BYTES +
      membership.length +
      lineages.length +
      4,
  );
  w.u32be(CONTROL_FILE_MAGIC)
    .u16be(lineages.length === 0 ? VERSION_OF_ONE_LINEAGE : CONTROL_FILE_VERSION)
    .u16be(DAMAGE_KINDS.indexOf(damage?.kind ?? 'none'));
  w.u32be(Number(control.systemId >> 32n)).u32be(Number(control.systemId & 0xffff_ffffn));
  w.u32be(control.pgVersion).u32be(control.history.length);
  w.u64be(control.term).u64be(control.startLsn).u64be(control.prevRecordLsn).u64be(control.commitLsn).u64be(control.flushHint);
  w.u64be(damage?.term ?? 0);
  w.bytes(Buffer.from(control.project, 'hex')).bytes(Buffer.from(control.timeline, 'hex'));
  for (const entry of control.history) w.u64be(entry.term).u64be(entry.startLsn);
  w.u16be(reason.length).bytes(reason).u64be(control.offloadedLsn).u64be(control.pagesLsn).bytes(membership).bytes(lineages);
  return w.u32be(crc32c(w.view())).finish();
}

function encodeLineages({ startLsn, lineages }: ControlFile): Buffer {
  if (lineages === undefined || lineages.length < 2) return Buffer.alloc(0);
  if (validateLineages(lineages).at(-1)?.startLsn !== startLsn)
    throw new LakebaseError('INTERNAL', 'the newest lineage must begin where the timeline does here');
  const w = new ByteWriter(2 + lineages.length * LINEAGE_BYTES).u16be(lineages.length);
  for (const lineage of lineages) w.u64be(lineage.number).u64be(lineage.startLsn);
  return w.finish();
}

function decodeLineages(r: ByteReader, startLsn: Lsn): readonly WalLineage[] {
  const count = r.u16be();
  if (count > LINEAGES_MAX || count * LINEAGE_BYTES > r.remaining) throw new Error(`${count} lineages do not fit`);
  const lineages = validateLineages(Array.from({ length: count }, () => ({ number: r.u64be(), startLsn: r.lsnBe() })));
  if (lineages.at(-1)?.startLsn !== startLsn) throw new Error('the newest lineage begins elsewhere');
  return lineages;
}

/** An empty identity stands for no membership. */
function encodeMembership(membership: Membership | null): Buffer {
  const w = new ByteWriter(256);
  const text = (value: string): void => {
    const bytes = Buffer.from(value, 'latin1');
    w.u8(bytes.length).bytes(bytes);
  };
  text(membership?.self ?? '');
  if (membership === null) return w.finish();
  const { generation, members, newMembers } = validateConfiguration(membership.configuration);
  w.u64be(generation);
  for (const set of [members, newMembers]) {
    w.u16be(set?.length ?? NO_SET);
    for (const id of set ?? []) text(id);
  }
  return w.finish();
}

function decodeMembership(r: ByteReader): Membership | null {
  const text = (): string => r.bytes(r.u8()).toString('latin1');
  const set = (): string[] | null => {
    const count = r.u16be();
    if (count === NO_SET) return null;
    if (count > MEMBERS_MAX) throw new Error(`${count} members, at most ${MEMBERS_MAX} expected`);
    return Array.from({ length: count }, text);
  };
  const self = text();
  if (self === '') return null;
  const generation = r.u64be();
  return { self, configuration: validateConfiguration({ generation, members: set() ?? [], newMembers: set() }) };
}

/** `name` is the file's path, for the message. */
export function decodeControlFile(bytes: Uint8Array, name: string): ControlFile {
  try {
    return decode(bytes);
  } catch (cause) {
    const hint = 'restore this member from its peers';
    throw new LakebaseError('CORRUPT', `control file ${name}: ${errorMessage(cause)}; ${hint}`, { cause });
  }
}

function decode(bytes: Uint8Array): ControlFile {
  if (bytes.length < CONTROL_HEADER_BYTES + 6) throw new Error(`${bytes.length} bytes, at least ${CONTROL_HEADER_BYTES + 6} expected`);
  if (bytes.length > CONTROL_FILE_BYTES_MAX) throw new Error(`${bytes.length} bytes, at most ${CONTROL_FILE_BYTES_MAX} expected`);
  const r = new ByteReader(bytes);
  if (r.u32be() !== CONTROL_FILE_MAGIC) throw new Error('not a control file');
  const version = r.u16be();
  if (version < 1 || version > CONTROL_FILE_VERSION)
    throw new Error(`version ${version}, this program reads versions up to ${CONTROL_FILE_VERSION}`);
  const tail = new ByteReader(bytes, bytes.length - 4);
  if (tail.u32be() !== crc32c(bytes.subarray(0, bytes.length - 4))) throw new Error('checksum mismatch');
  r.limit = bytes.length - 4;
  const kind = DAMAGE_KINDS[r.u16be()];
  if (kind === undefined) throw new Error('unknown flags');
  const systemId = (BigInt(r.u32be()) << 32n) | BigInt(r.u32be());
  const pgVersion = r.u32be();
  const entries = r.u32be();
  const term = r.u64be() as Term;
  const [startLsn, prevRecordLsn, commitLsn, flushHint] = [r.lsnBe(), r.lsnBe(), r.lsnBe(), r.lsnBe()];
  const damageTerm = r.u64be() as Term;
  const project = parseProjectUid(r.bytes(16).toString('hex'));
  const timeline = parseTimelineId(r.bytes(16).toString('hex'));
  if (entries > HISTORY_ENTRIES_MAX || entries * ENTRY_BYTES > r.remaining) throw new Error(`${entries} history entries do not fit`);
  const history = Array.from({ length: entries }, () => ({ term: r.u64be() as Term, startLsn: lsnFromHalves(r.u32be(), r.u32be()) }));
  validateHistory(history);
  const reasonBytes = r.u16be();
  if (reasonBytes > REASON_BYTES_MAX) throw new Error('damage reason too long');
  const reason = r.bytes(reasonBytes).toString('utf8');
  const [offloadedLsn, pagesLsn] = version === 1 ? [startLsn, startLsn] : [r.lsnBe(), r.lsnBe()];
  const membership = version < 3 ? null : decodeMembership(r);
  const lineages = version < 4 ? undefined : decodeLineages(r, startLsn);
  if (r.remaining !== 0) throw new Error(`${r.remaining} bytes too many`);
  const damage: Damage | null = kind === 'none' ? null : { kind, term: damageTerm, reason };
  return {
    project,
    timeline,
    systemId,
    pgVersion,
    term,
    history,
    startLsn,
    prevRecordLsn,
    commitLsn,
    flushHint,
    damage,
    offloadedLsn,
    pagesLsn,
    membership,
    ...(lineages === undefined ? {} : { lineages }),
  };
}
