/** B14: a page whose page LSN is later than the LSN it is read at is reported by name, not served, not kept, and harms no other page. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import { ARG_STOP, ENTRY_IMAGE, KIND_REL_PAGE, OpenLayer, SeriesTable } from '@lakebase/layers';
import { readControlFile } from '@lakebase/pg-format';
import { StockPostgres } from '@lakebase/testkit';
import { createTimeline, testConfig } from './testing.ts';

const PG_CLASS = { spc: 1663, db: 5, rel: 1259, fork: 0 as const };

test('a page from the future is reported and neither served nor kept; a suspend state may not bring one', {
  timeout: 120_000,
}, async () => {
  await using stock = StockPostgres.create({});
  const directory = mkdtempSync(join(tmpdir(), 'lb-scrub-pages-'));
  const control = readControlFile(readFileSync(join(stock.pgdata, 'global/pg_control')));
  const timeline = await createTimeline(directory, stock.pgdata, String(control.systemId), testConfig(directory));
  try {
    const lsn = timeline.lastRecordLsn;
    const [first, second] = await timeline.pages(PG_CLASS, 0, 2, lsn);
    assert.ok(first !== undefined && second !== undefined && first.readUInt16LE(14) > 0);

    const future = Buffer.from(first);
    future.writeUInt32LE(0x7fff, 0);
    assert.throws(() => timeline.fileImages([{ tag: PG_CLASS, block: 0, bytes: future }]), {
      code: 'INVALID_ARGUMENT',
      message: /base\/5\/1259 block 0/,
    });

    // As a fault of ours, or a disk that lies below the seal, would leave it.
    const series = new SeriesTable();
    const layer = new OpenLayer(series, lsn);
    layer.put(series.intern(KIND_REL_PAGE, 1663, 5, 1259, 0), 0, ENTRY_IMAGE, ARG_STOP, (lsn + 8) as Lsn, future);
    layer.put(series.intern(KIND_REL_PAGE, 1663, 5, 1259, 0), 1, ENTRY_IMAGE, ARG_STOP, (lsn + 8) as Lsn, Buffer.alloc(BLCKSZ));
    layer.freeze((lsn + 8) as Lsn);
    timeline.storage.addFrozen(layer, lsn);
    const after = (lsn + 8) as Lsn;
    for (let i = 0; i < 2; i++)
      await assert.rejects(timeline.pages(PG_CLASS, 0, 1, after), {
        code: 'CORRUPT',
        message: /base\/5\/1259 block 0 .*7FFF\/.*inspect page/,
      });
    const [zeros] = await timeline.pages(PG_CLASS, 1, 1, after);
    assert.ok(
      zeros?.every((b) => b === 0),
      'a page of zeros is a new page',
    );
    assert.ok((await timeline.pages(PG_CLASS, 0, 1, lsn))[0]?.equals(first), 'before it the page is as it was');
    assert.ok((await timeline.pages(PG_CLASS, 2, 1, after)).length <= 1);
  } finally {
    await timeline.close();
    rmSync(directory, { recursive: true, force: true });
  }
});
