/** Files as a whole: smgr (storage.c), databases (dbcommands.c), relation maps (relmapper.c), tablespaces. */
import { crc32c } from '@lakebase/bytes';
import { FORK_FSM, FORK_INIT, FORK_MAIN, FORK_VM, type ForkNumber } from '@lakebase/ids';
import type { DecodedRecord } from '@lakebase/pg-format';
import type { EffectSink } from '../effects.ts';
import { fsmTruncation } from '../heap/fsm.ts';
import { fsmTruncateDeltas, vmTruncateDelta } from '../heap/heap-delta.ts';
import { vmTruncation } from '../heap/vm.ts';
import { corrupt, mainData } from '../record-error.ts';

const XLOG_SMGR_CREATE = 0x10;
const XLOG_SMGR_TRUNCATE = 0x20;
const SMGR_TRUNCATE_HEAP = 0x0001;
const SMGR_TRUNCATE_VM = 0x0002;
const SMGR_TRUNCATE_FSM = 0x0004;

export function smgrEffects(record: DecodedRecord, _major: number, sink: EffectSink): void {
  const { buf } = record;
  switch (record.info & 0xf0) {
    case XLOG_SMGR_CREATE: {
      const at = mainData(record, 16);
      const fork = buf.readInt32LE(at + 12);
      if (fork < FORK_MAIN || fork > FORK_INIT) throw corrupt(record, `no fork ${fork}`);
      sink.relCreate({
        spc: buf.readUInt32LE(at),
        db: buf.readUInt32LE(at + 4),
        rel: buf.readUInt32LE(at + 8),
        fork: fork as ForkNumber,
      });
      break;
    }
    case XLOG_SMGR_TRUNCATE: {
      const at = mainData(record, 20);
      const blocks = buf.readUInt32LE(at);
      const rel = { spc: buf.readUInt32LE(at + 4), db: buf.readUInt32LE(at + 8), rel: buf.readUInt32LE(at + 12) };
      const flags = buf.readUInt32LE(at + 16);
      if ((flags & SMGR_TRUNCATE_HEAP) !== 0) sink.relTruncate({ ...rel, fork: FORK_MAIN }, blocks);
      if ((flags & SMGR_TRUNCATE_FSM) !== 0) {
        const tag = { ...rel, fork: FORK_FSM } as const;
        const cut = fsmTruncation(blocks);
        sink.relTruncate(tag, cut.blocks);
        for (const { block, delta } of fsmTruncateDeltas(blocks)) sink.relDelta(tag, block, delta);
      }
      if ((flags & SMGR_TRUNCATE_VM) !== 0) {
        const tag = { ...rel, fork: FORK_VM } as const;
        const cut = vmTruncation(blocks);
        sink.relTruncate(tag, cut.blocks);
        if (cut.tailPage !== undefined) sink.relDelta(tag, cut.tailPage, vmTruncateDelta(blocks));
      }
      break;
    }
    default:
      throw corrupt(record, 'no such operation');
  }
}

const XLOG_DBASE_CREATE_FILE_COPY = 0x00;
const XLOG_DBASE_CREATE_WAL_LOG = 0x10;
const XLOG_DBASE_DROP = 0x20;

export function dbaseEffects(record: DecodedRecord, _major: number, sink: EffectSink): void {
  const { buf } = record;
  switch (record.info & 0xf0) {
    case XLOG_DBASE_CREATE_FILE_COPY: {
      const at = mainData(record, 16);
      sink.dbCopy(
        { db: buf.readUInt32LE(at + 8), spc: buf.readUInt32LE(at + 12) },
        { db: buf.readUInt32LE(at), spc: buf.readUInt32LE(at + 4) },
      );
      break;
    }
    case XLOG_DBASE_CREATE_WAL_LOG: {
      const at = mainData(record, 8);
      sink.dbCreate(buf.readUInt32LE(at + 4), buf.readUInt32LE(at));
      break;
    }
    case XLOG_DBASE_DROP: {
      const at = mainData(record, 8);
      const db = buf.readUInt32LE(at);
      const count = buf.readInt32LE(at + 4);
      if (count < 0 || count > (record.mainLength - 8) / 4) throw corrupt(record, `${count} tablespaces in ${record.mainLength} bytes`);
      for (let i = 0; i < count; i++) sink.dbDrop(buf.readUInt32LE(at + 8 + i * 4), db);
      break;
    }
    default:
      throw corrupt(record, 'no such operation');
  }
}

/** RelMapFile since 16: magic, number of mappings, 64 mappings, CRC-32C. */
const RELMAP_BYTES = 524;
const RELMAP_CRC_OFFSET = 520;
const RELMAP_MAGIC = 0x592717;
const MAX_MAPPINGS = 64;

export function relmapEffects(record: DecodedRecord, _major: number, sink: EffectSink): void {
  const { buf } = record;
  if ((record.info & 0xf0) !== 0) throw corrupt(record, 'no such operation');
  const at = mainData(record, 12 + RELMAP_BYTES);
  if (buf.readInt32LE(at + 8) !== RELMAP_BYTES) throw corrupt(record, `relation map of ${buf.readInt32LE(at + 8)} bytes`);
  const map = buf.subarray(at + 12, at + 12 + RELMAP_BYTES);
  // A map that Postgres refuses (load_relmap_file) would keep every later compute from starting.
  const isMap = map.readUInt32LE(0) === RELMAP_MAGIC && map.readUInt32LE(4) <= MAX_MAPPINGS;
  if (!isMap || crc32c(map.subarray(0, RELMAP_CRC_OFFSET)) !== map.readUInt32LE(RELMAP_CRC_OFFSET))
    throw corrupt(record, 'its relation map is not a valid one');
  sink.relmap(buf.readUInt32LE(at + 4), buf.readUInt32LE(at), map);
}

const XLOG_TBLSPC_CREATE = 0x00;
const XLOG_TBLSPC_DROP = 0x10;
/** A tablespace's own directory counts as its database 0: relations and databases in it carry its id anyway. */
const NO_DATABASE = 0;

/** Where the tablespace lay on the compute's machine is of no meaning to storage: every tablespace is a directory in place on the next compute. */
export function tablespaceEffects(record: DecodedRecord, _major: number, sink: EffectSink): void {
  const { buf } = record;
  switch (record.info & 0xf0) {
    case XLOG_TBLSPC_CREATE:
      sink.dbCreate(buf.readUInt32LE(mainData(record, 4)), NO_DATABASE);
      break;
    case XLOG_TBLSPC_DROP:
      sink.dbDrop(buf.readUInt32LE(mainData(record, 4)), NO_DATABASE);
      break;
    default:
      throw corrupt(record, 'no such operation');
  }
}
