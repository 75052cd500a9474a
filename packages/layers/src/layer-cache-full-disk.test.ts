/** F8: a disk that is really full. Needs a small file system of its own, so it is skipped where none can be mounted. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Lsn, ProjectUid, TimelineId } from '@lakebase/ids';
import { LocalKeys } from '@lakebase/keys';
import { timelineObject } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import {
  ENTRY_RECORD,
  type Entry,
  FrameCache,
  KIND_REL_PAGE,
  type LayerDescriptor,
  LayerCache,
  LayerSet,
  OpenLayer,
  SeriesTable,
  encodeKey,
  flushLayer,
  metaSeries,
  withRemote,
} from './index.ts';

const DISK_BYTES = 2 << 20;
const LAYERS = 6;
const rel = metaSeries(KIND_REL_PAGE, 1663, 5, 7);

function mounted(directory: string): boolean {
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${DISK_BYTES}`, 'tmpfs', directory], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

test('a full disk: clean layers go, then reads are served without it, and nothing half written is ever read', async (t) => {
  const root = mkdtempSync(join(tmpdir(), 'lb-full-disk-'));
  const disk = join(root, 'disk');
  const source = join(root, 'source');
  for (const d of [disk, source]) mkdirSync(d);
  if (!mounted(disk)) {
    rmSync(root, { recursive: true });
    return t.skip('no file system can be mounted here (needs root): the full disk is not tested');
  }
  try {
    const [project, timeline] = ['a'.repeat(32), 'b'.repeat(32)] as [ProjectUid, TimelineId];
    const keys = new LocalKeys().project(project);
    const store = new MemoryStore();
    const series = new SeriesTable();
    const descriptors: LayerDescriptor[] = [];
    for (let n = 0; n < LAYERS; n++) {
      const open = new OpenLayer(series, (n * 1_000) as Lsn);
      for (let i = 1; i <= 100; i++)
        open.put(series.internSeries(rel), i % 10, ENTRY_RECORD, 0, (n * 1_000 + i) as Lsn, Buffer.alloc(8_000, n * 16 + (i % 13)));
      open.freeze(((n + 1) * 1_000) as Lsn);
      const d = await flushLayer(open, { directory: source, project, timeline, keys, generation: 1, number: n + 1 });
      descriptors.push(d);
      await store.put(timelineObject(project, timeline, d.name), readFileSync(join(source, d.name)));
    }
    const damage: string[] = [];
    // The budget says there is room for all: only the disk knows better.
    const layers = new LayerCache({ store, chunkBytes: 65_536, onDamage: (m) => damage.push(m) });
    const files = { project, timeline, keys, cache: new FrameCache(1) };
    const set = LayerSet.open(descriptors, { ...files, directory: disk, layers });
    const truth = LayerSet.open(descriptors, { ...files, directory: source });
    const read = (s: LayerSet, block: number, lsn: number, floor: number): string => {
      const out: Entry[] = [];
      s.collect(encodeKey(rel, block), lsn as Lsn, floor as Lsn, out);
      return out.map((e) => `${e.lsn} ${e.bytes.length} ${e.bytes[0]} ${e.bytes.at(-1)}`).join();
    };
    const readAll = async (): Promise<void> => {
      for (let n = 0; n < LAYERS; n++)
        for (let block = 0; block < 10; block++) {
          const args = [block, (n + 1) * 1_000, n * 1_000] as const;
          assert.equal(await withRemote(() => read(set, ...args)), read(truth, ...args), `layer ${n} block ${block}`);
        }
    };
    await readAll();
    assert.ok(layers.counters.evictions > 0, 'the disk holds less than half of the layers');
    // Somebody else takes all that is left: nothing of ours fits, nothing of ours can go.
    for (const handle of set.layers) handle.cached?.pin();
    await layers.makeRoom(1e9);
    const { bavail, bsize } = statfsSync(disk);
    writeFileSync(join(disk, 'somebody-else'), Buffer.alloc(bavail * bsize));
    await readAll();
    assert.ok(layers.counters.inMemory > 0);
    for (const handle of set.layers) handle.cached?.unpin();
    // There is room again: it is used again, and no rest of a failed write counts as content.
    rmSync(join(disk, 'somebody-else'));
    for (let again = 0; again < 3; again++) await readAll();
    assert.deepEqual(damage, []);
    assert.ok(layers.usedBytes <= DISK_BYTES);
    assert.ok(readdirSync(disk).every((name) => name.includes('.layer')));
    set.close();
    truth.close();
  } finally {
    execFileSync('umount', ['-l', disk]);
    rmSync(root, { recursive: true, force: true });
  }
});
