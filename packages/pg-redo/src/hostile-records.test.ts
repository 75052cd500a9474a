/** Records that a stock server never writes: of an extension's resource manager, on forks a record has no business with, with maps that lie. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';
import { FORK_FSM, FORK_INIT, FORK_VM, lsn } from '@lakebase/ids';
import {
  type DecodedRecord,
  decodeRecord,
  newDecodedRecord,
  RM_BTREE_ID,
  RM_HEAP2_ID,
  RM_HEAP_ID,
  RM_RELMAP_ID,
} from '@lakebase/pg-format';
import { emitEffects, redo } from './dispatch.ts';
import { simpleRecord } from './testing/record-maker.ts';
import { recordingSink } from './testing/recording-sink.ts';

const decode = (bytes: Buffer): DecodedRecord => decodeRecord(bytes, 0, bytes.length, lsn(0x1000), lsn(0x2000), newDecodedRecord());

const refuses = (work: () => void, code: 'CORRUPT' | 'UNSUPPORTED', message: RegExp): void =>
  assert.throws(work, (error) => isCode(error, code) && message.test(error.message));

describe('resource managers of extensions', () => {
  for (const rmid of [128, 137, 255])
    test(`${rmid} is UNSUPPORTED by name, at ingest and at redo`, () => {
      const record = decode(simpleRecord({ rmid, info: 0x10, blocks: [{ id: 0, data: Buffer.alloc(8) }] }));
      for (const major of [16, 17, 18]) {
        refuses(() => emitEffects(record, major, recordingSink().sink), 'UNSUPPORTED', new RegExp(`0/1000.*custom${rmid}`));
        refuses(() => redo(Buffer.alloc(8192, 1), record, 0, major), 'UNSUPPORTED', new RegExp(`custom${rmid}`));
      }
    });

  test('ids between Postgres’s and the extensions’ are nobody’s', () => {
    for (const rmid of [22, 100, 127])
      refuses(() => decode(simpleRecord({ rmid, info: 0 })), 'CORRUPT', new RegExp(`no resource manager ${rmid}`));
  });
});

describe('forks', () => {
  const change = (rmid: number, info: number, blockId: number, fork: number): (() => void) => {
    const blocks = Array.from({ length: blockId + 1 }, (_, id) => ({ id, data: Buffer.alloc(24), ...(id === blockId ? { fork } : {}) }));
    const record = decode(simpleRecord({ rmid, info, blocks, main: Buffer.alloc(64) }));
    return () => redo(Buffer.alloc(8192), record, blockId, 18);
  };
  test('a record that changes a fork it never changes is refused', () => {
    for (const fork of [FORK_VM, FORK_FSM]) refuses(change(RM_BTREE_ID, 0, 0, fork), 'CORRUPT', /changes fork/);
    for (const fork of [FORK_VM, FORK_FSM, FORK_INIT]) refuses(change(RM_HEAP_ID, 0, 0, fork), 'CORRUPT', /changes fork/);
    refuses(change(RM_HEAP_ID, 0x20, 1, FORK_VM), 'CORRUPT', /changes fork/);
  });
  test('a map page is looked for on the map only', () => {
    for (const [rmid, info, id] of [
      [RM_HEAP_ID, 0x00, 1],
      [RM_HEAP_ID, 0x10, 1],
      [RM_HEAP_ID, 0x20, 2],
      [RM_HEAP_ID, 0x60, 1],
      [RM_HEAP2_ID, 0x40, 0],
      [RM_HEAP2_ID, 0x50, 1],
    ] as const) {
      const page = Buffer.alloc(8192, 0xff);
      page.fill(0, 0, 8);
      const blocks = Array.from({ length: id + 1 }, (_, i) => ({ id: i, data: Buffer.alloc(24) }));
      const record = decode(simpleRecord({ rmid, info, blocks, main: Buffer.alloc(64) }));
      refuses(() => redo(page, record, id, 18), 'CORRUPT', /not a visibility map/);
    }
  });
  test('no relation has so many blocks', () => {
    const blocks = [{ id: 0, block: 0xffff_ffff }];
    refuses(() => decode(simpleRecord({ rmid: RM_HEAP_ID, info: 0, blocks })), 'CORRUPT', /no block 4294967295/);
  });
});

test('a relation map that Postgres would not load is refused', () => {
  const map = Buffer.alloc(524);
  map.writeUInt32LE(0x592717, 0);
  map.writeUInt32LE(3, 4);
  const effects = (): unknown => {
    const head = Buffer.alloc(12);
    head.writeUInt32LE(524, 8);
    const { sink, calls } = recordingSink();
    emitEffects(decode(simpleRecord({ rmid: RM_RELMAP_ID, info: 0, main: Buffer.concat([head, map]) })), 18, sink);
    return calls[0]?.[0];
  };
  const sum = (): number => map.writeUInt32LE(crc32c(map.subarray(0, 520)), 520);
  sum();
  assert.equal(effects(), 'relmap');
  map[9] = 1;
  refuses(effects, 'CORRUPT', /relation map/);
  map.writeUInt32LE(65, 4);
  sum();
  refuses(effects, 'CORRUPT', /relation map/);
});
