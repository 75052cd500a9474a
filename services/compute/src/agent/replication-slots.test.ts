import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { crc32c } from '@lakebase/bytes';
import { type Lsn, lsn } from '@lakebase/ids';
import { readSlotState, slotFiles, slotsAt } from './replication-slots.ts';

/** As slot.c writes it, the parts we read. */
function state(fields: { database?: number; restart: number; confirmed: number; persistency?: number; invalidated?: number }): Buffer {
  const bytes = Buffer.alloc(200);
  bytes.writeUInt32LE(0x01051ca1, 0);
  bytes.writeUInt32LE(5, 8);
  bytes.writeUInt32LE(184, 12);
  bytes.write('feed', 16);
  bytes.writeUInt32LE(fields.database ?? 5, 80);
  bytes.writeUInt32LE(fields.persistency ?? 0, 84);
  bytes.writeUInt32LE(fields.restart, 96);
  bytes.writeUInt32LE(fields.invalidated ?? 0, 104);
  bytes.writeUInt32LE(fields.confirmed, 112);
  bytes.writeUInt32LE(crc32c(bytes.subarray(8)), 4);
  return bytes;
}
const file = (bytes: Buffer) => ({ path: 'pg_replslot/feed/state', bytes });
const X: Lsn = lsn(0x2000);

describe('replication slots', () => {
  it('reads a slot, and takes nothing damaged or temporary', () => {
    assert.deepEqual(readSlotState(file(state({ restart: 0x1000, confirmed: 0x1800 }))), {
      name: 'feed',
      logical: true,
      invalidated: false,
      restartLsn: 0x1000,
      confirmedFlush: 0x1800,
    });
    const damaged = state({ restart: 1, confirmed: 2 });
    damaged[113] = 7;
    assert.equal(readSlotState(file(damaged)), undefined);
    assert.equal(readSlotState(file(state({ restart: 1, confirmed: 2, persistency: 1 }))), undefined);
    assert.equal(readSlotState(file(Buffer.alloc(20))), undefined);
  });

  it('what a lost compute had confirmed beyond the start is drawn back to it; snapshots and mappings of WAL that never was are left out', () => {
    const kept = (name: string) => ({ path: `pg_logical/${name}`, bytes: Buffer.from('x') });
    const { files, walFrom, logical } = slotsAt(
      [
        file(state({ restart: 0x1000, confirmed: 0x2400 })),
        kept('snapshots/0-1000.snap'),
        kept('snapshots/0-2000.snap'),
        kept('mappings/map-5-4eb-0_1F00-2f1-2f2'),
        kept('mappings/map-5-4eb-0_2100-2f1-2f2'),
        { path: 'pg_xact/0000', bytes: Buffer.alloc(1) },
      ],
      X,
    );
    assert.deepEqual(
      files.map((f) => f.path),
      ['pg_replslot/feed/state', 'pg_logical/snapshots/0-1000.snap', 'pg_logical/mappings/map-5-4eb-0_1F00-2f1-2f2', 'pg_xact/0000'],
    );
    assert.equal(readSlotState(files[0] as never)?.confirmedFlush, X);
    assert.equal(readSlotState(files[0] as never)?.restartLsn, 0x1000);
    assert.deepEqual([walFrom, logical], [0x1000, true]);
  });

  it('physical and invalidated slots need no WAL here', () => {
    const physical = slotsAt([file(state({ database: 0, restart: 0x1000, confirmed: 0 }))], X);
    assert.deepEqual([physical.walFrom, physical.logical, physical.files.length], [undefined, false, 1]);
    const lost = slotsAt([file(state({ restart: 0x1000, confirmed: 0x1000, invalidated: 1 }))], X);
    assert.deepEqual([lost.walFrom, lost.logical], [undefined, true]);
  });

  it('files of a data directory, none without a slot', () => {
    const pgdata = mkdtempSync(join(tmpdir(), 'lb-majors-'));
    try {
      for (const dir of ['pg_replslot', 'pg_logical/snapshots', 'pg_logical/mappings']) mkdirSync(join(pgdata, dir), { recursive: true });
      writeFileSync(join(pgdata, 'pg_logical/snapshots/0-10.snap'), 'x');
      assert.deepEqual(slotFiles(pgdata, null), []);
      mkdirSync(join(pgdata, 'pg_replslot/feed'));
      writeFileSync(join(pgdata, 'pg_replslot/feed/state'), state({ restart: 1, confirmed: 2 }));
      assert.deepEqual(
        slotFiles(pgdata, null).map((f) => f.path),
        ['pg_replslot/feed/state', 'pg_logical/snapshots/0-10.snap'],
      );
    } finally {
      rmSync(pgdata, { recursive: true, force: true });
    }
  });
});
