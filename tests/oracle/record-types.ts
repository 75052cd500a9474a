/** Every record type of Postgres 18, 17 and 16, with its name, and whether the workload is expected to reach it.
 *  Unreachable ones carry the reason; they are listed in the report, never silently dropped. */
import { RM_HEAP2_ID, RM_XLOG_ID, rmgrName } from '@lakebase/pg-format';

interface RecordType {
  readonly name: string;
  /** Reached only by the long run (`npm run oracle`). */
  readonly long?: true;
  /** Why no stock Postgres in our configuration writes it. */
  readonly unreachable?: string;
}

const t = (name: string): RecordType => ({ name });

const NEW_TIMELINE = 'only written when a standby is promoted, which starts a new Postgres timeline: we never change it';

type RecordTypes = Readonly<Record<number, Readonly<Record<number, RecordType>>>>;

/** rmgr id → info & 0xf0 (after the rmgr's own mask) → type. 17 and 18 have the same. */
const RECORD_TYPES: RecordTypes = {
  0: {
    0x00: t('CHECKPOINT_SHUTDOWN'),
    0x10: t('CHECKPOINT_ONLINE'),
    0x20: { name: 'NOOP', unreachable: 'no code of Postgres writes it' },
    0x30: t('NEXTOID'),
    0x40: t('SWITCH'),
    0x50: t('BACKUP_END'),
    0x60: t('PARAMETER_CHANGE'),
    0x70: t('RESTORE_POINT'),
    0x80: t('FPW_CHANGE'),
    0x90: { name: 'END_OF_RECOVERY', unreachable: NEW_TIMELINE },
    0xa0: { name: 'FPI_FOR_HINT', long: true },
    0xb0: t('FPI'),
    0xd0: { name: 'OVERWRITE_CONTRECORD', long: true },
    0xe0: t('CHECKPOINT_REDO'),
  },
  1: {
    0x00: t('COMMIT'),
    0x10: t('PREPARE'),
    0x20: t('ABORT'),
    0x30: t('COMMIT_PREPARED'),
    0x40: t('ABORT_PREPARED'),
    0x50: t('ASSIGNMENT'),
    0x60: t('INVALIDATIONS'),
  },
  2: { 0x10: t('CREATE'), 0x20: t('TRUNCATE') },
  3: { 0x00: t('ZEROPAGE'), 0x10: { name: 'TRUNCATE', long: true } },
  4: { 0x00: t('CREATE_FILE_COPY'), 0x10: t('CREATE_WAL_LOG'), 0x20: t('DROP') },
  5: { 0x00: t('CREATE'), 0x10: t('DROP') },
  6: { 0x00: t('ZERO_OFF_PAGE'), 0x10: t('ZERO_MEM_PAGE'), 0x20: t('CREATE_ID'), 0x30: t('TRUNCATE_ID') },
  7: { 0x00: t('UPDATE') },
  8: { 0x00: t('LOCK'), 0x10: t('RUNNING_XACTS'), 0x20: t('INVALIDATIONS') },
  9: {
    0x00: t('REWRITE'),
    0x10: t('PRUNE_ON_ACCESS'),
    0x20: t('PRUNE_VACUUM_SCAN'),
    0x30: t('PRUNE_VACUUM_CLEANUP'),
    0x40: t('VISIBLE'),
    0x50: t('MULTI_INSERT'),
    0xd0: t('MULTI_INSERT+INIT'),
    0x60: t('LOCK_UPDATED'),
    0x70: t('NEW_CID'),
  },
  10: {
    0x00: t('INSERT'),
    0x80: t('INSERT+INIT'),
    0x10: t('DELETE'),
    0x20: t('UPDATE'),
    0xa0: t('UPDATE+INIT'),
    0x30: t('TRUNCATE'),
    0x40: t('HOT_UPDATE'),
    0x50: t('CONFIRM'),
    0x60: t('LOCK'),
    0x70: t('INPLACE'),
  },
  11: {
    0x00: t('INSERT_LEAF'),
    0x10: t('INSERT_UPPER'),
    0x20: t('INSERT_META'),
    0x30: t('SPLIT_L'),
    0x40: t('SPLIT_R'),
    0x50: t('INSERT_POST'),
    0x60: t('DEDUP'),
    0x70: t('DELETE'),
    0x80: t('UNLINK_PAGE'),
    0x90: t('UNLINK_PAGE_META'),
    0xa0: t('NEWROOT'),
    0xb0: t('MARK_PAGE_HALFDEAD'),
    0xc0: t('VACUUM'),
    0xd0: t('REUSE_PAGE'),
    0xe0: t('META_CLEANUP'),
  },
  12: {
    0x00: t('INIT_META_PAGE'),
    0x10: t('INIT_BITMAP_PAGE'),
    0x20: t('INSERT'),
    0x30: t('ADD_OVFL_PAGE'),
    0x40: t('SPLIT_ALLOCATE_PAGE'),
    0x50: t('SPLIT_PAGE'),
    0x60: t('SPLIT_COMPLETE'),
    0x70: t('MOVE_PAGE_CONTENTS'),
    0x80: t('SQUEEZE_PAGE'),
    0x90: t('DELETE'),
    0xa0: t('SPLIT_CLEANUP'),
    0xb0: t('UPDATE_META_PAGE'),
    0xc0: t('VACUUM_ONE_PAGE'),
  },
  13: {
    0x10: t('CREATE_PTREE'),
    0x20: t('INSERT'),
    0x30: t('SPLIT'),
    0x40: t('VACUUM_PAGE'),
    0x50: t('DELETE_PAGE'),
    0x60: t('UPDATE_META_PAGE'),
    0x70: t('INSERT_LISTPAGE'),
    0x80: t('DELETE_LISTPAGE'),
    0x90: t('VACUUM_DATA_LEAF_PAGE'),
  },
  14: {
    0x00: t('PAGE_UPDATE'),
    0x10: t('DELETE'),
    0x20: t('PAGE_REUSE'),
    0x30: t('PAGE_SPLIT'),
    0x60: t('PAGE_DELETE'),
    0x70: { name: 'ASSIGN_LSN', unreachable: 'only with wal_level = minimal' },
  },
  15: { 0x00: t('LOG') },
  16: {
    0x10: t('ADD_LEAF'),
    0x20: t('MOVE_LEAFS'),
    0x30: t('ADD_NODE'),
    0x40: t('SPLIT_TUPLE'),
    0x50: t('PICKSPLIT'),
    0x60: t('VACUUM_LEAF'),
    0x70: t('VACUUM_ROOT'),
    0x80: t('VACUUM_REDIRECT'),
  },
  17: {
    0x00: t('CREATE_INDEX'),
    0x10: t('INSERT'),
    0x90: t('INSERT+INIT'),
    0x20: t('UPDATE'),
    0xa0: t('UPDATE+INIT'),
    0x30: t('SAMEPAGE_UPDATE'),
    0x40: t('REVMAP_EXTEND'),
    0x50: t('DESUMMARIZE'),
  },
  18: { 0x00: t('ZEROPAGE'), 0x10: t('TRUNCATE') },
  19: { 0x00: t('SET'), 0x10: t('DROP') },
  20: { 0x00: t('GENERIC') },
  21: { 0x00: t('MESSAGE') },
};

/** 16 has no record for the redo point of a checkpoint, and three heap2 records where later majors have one under three codes. */
const RECORD_TYPES_16: RecordTypes = {
  ...RECORD_TYPES,
  [RM_XLOG_ID]: Object.fromEntries(Object.entries(RECORD_TYPES[RM_XLOG_ID] ?? {}).filter(([, type]) => type.name !== 'CHECKPOINT_REDO')),
  [RM_HEAP2_ID]: { ...RECORD_TYPES[RM_HEAP2_ID], 0x10: t('PRUNE'), 0x20: t('VACUUM'), 0x30: t('FREEZE_PAGE') },
};

const recordTypes = (major: number): RecordTypes => (major < 17 ? RECORD_TYPES_16 : RECORD_TYPES);

/** XLOG_XACT_OPMASK: bit 7 of a transaction record's info is a flag. */
const infoOf = (rmid: number, info: number): number => (rmid === 1 ? info & 0x70 : info & 0xf0);

export function recordTypeName(rmid: number, info: number, major: number): string {
  const code = infoOf(rmid, info);
  return `${rmgrName(rmid)}/${recordTypes(major)[rmid]?.[code]?.name ?? `0x${code.toString(16)}`}`;
}

export interface ExpectedType {
  readonly name: string;
  readonly long: boolean;
  readonly unreachable: string | undefined;
}

export function expectedTypes(major: number): ExpectedType[] {
  return Object.entries(recordTypes(major)).flatMap(([rmid, types]) =>
    Object.values(types).map((type) => ({
      name: `${rmgrName(Number(rmid))}/${type.name}`,
      long: type.long === true,
      unreachable: type.unreachable,
    })),
  );
}
