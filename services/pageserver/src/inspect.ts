/** What `lakebase inspect` asks of a pageserver: files and objects of a timeline opened with the project's keys, and pages with the changes that made them. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { InspectPageRequest, InspectReport, InspectRequest } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { type ForkNumber, type Lsn, MAX_LSN, formatLsn, parseLsn, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { type ByteSource, type PageChange, ReportBuilder, fileSource, forkName, inspect, reportPage } from '@lakebase/inspect';
import { type Entry, KIND_REL_PAGE, type ObjectEntry, encodeKey, floorOf, keyFromText, withRemote } from '@lakebase/layers';
import { timelineObject, timelinePrefix } from '@lakebase/object-store';
import { objectSource } from './scrub-timeline.ts';
import type { TimelineStore } from './store.ts';
import type { Timeline } from './timeline.ts';

/** Of WAL that is on its way here; of an LSN to come there is nothing to show. */
const WAIT_MS = 2_000;

export async function inspectTimeline(store: TimelineStore, r: InspectRequest): Promise<InspectReport> {
  const held = await store.hold(parseProjectUid(r.project), parseTimelineId(r.timeline));
  try {
    if (r.name === '') return await listing(store, held.timeline);
    const source = await sourceOf(store, held.timeline, r);
    try {
      const { project, id: timeline, major, storage } = held.timeline;
      return await inspect(source, {
        identity: { project, timeline },
        keys: storage.files.keys,
        reference: referenceOf(held.timeline, r.name),
        major,
        limit: r.limit,
        frame: r.frame,
        whole: r.whole,
        from: r.from === undefined ? undefined : parseLsn(r.from),
      });
    } finally {
      await source.close();
    }
  } finally {
    held.release();
  }
}

async function sourceOf(store: TimelineStore, t: Timeline, r: InspectRequest): Promise<ByteSource> {
  const path = join(t.storage.files.directory, r.name);
  if (r.fromStore !== true && existsSync(path)) return fileSource(path);
  const key = timelineObject(t.project, t.id, r.name);
  const source = store.remote === undefined ? undefined : await objectSource(store.remote.store, key);
  if (source === undefined)
    throw new LakebaseError('NOT_FOUND', `the timeline has no '${r.name}', neither on the pageserver's disk nor in the object store`);
  return source;
}

/** The newest wrapping of its key is in the index; an index has its own. */
function referenceOf(t: Timeline, name: string): Buffer | undefined {
  const { index } = t.storage;
  const layer = index.layers.find((d) => d.name === name);
  if (layer !== undefined) return keyFromText(layer.key);
  for (const value of Object.values(index) as (Partial<ObjectEntry> | null | undefined)[])
    if (value?.file === name && value.key !== undefined) return keyFromText(value.key);
  return undefined;
}

async function listing(store: TimelineStore, t: Timeline): Promise<InspectReport> {
  const { directory } = t.storage.files;
  const report = new ReportBuilder('timeline', `${t.project}/${t.id}`, 1_000);
  for (const [label, value] of Object.entries(t.status())) report.field(label, value);
  const files = readdirSync(directory)
    .sort()
    .map((name) => [name, statSync(join(directory, name), { throwIfNoEntry: false })?.size ?? 0]);
  report.table(`files in ${directory}`, ['name', 'bytes'], files);
  if (store.remote === undefined) return report.done();
  const prefix = timelinePrefix(t.project, t.id);
  const { objects, next } = await store.remote.store.list(prefix, { limit: 1_000 });
  if (next !== undefined) report.note('there are more objects than are listed');
  return report
    .table(
      `objects in ${store.remote.store.location}/${prefix}`,
      ['name', 'bytes'],
      objects.map((o) => [o.key.slice(prefix.length), o.size]),
    )
    .done();
}

export async function inspectPage(store: TimelineStore, r: InspectPageRequest): Promise<InspectReport> {
  const held = await store.hold(parseProjectUid(r.project), parseTimelineId(r.timeline));
  try {
    const t = held.timeline;
    const wanted = r.lsn === null ? undefined : parseLsn(r.lsn);
    if (wanted !== undefined) await t.waitFor(wanted, WAIT_MS);
    const lsn = await t.chooseLsn(wanted ?? MAX_LSN, wanted ?? (0 as Lsn));
    const tag = { spc: r.spc, db: r.db, rel: r.rel, fork: r.fork as ForkNumber };
    const blocks = await t.relSize(tag, lsn);
    const name = `${r.spc}/${r.db}/${r.rel} ${forkName(r.fork)} block ${r.block}`;
    if (blocks === undefined)
      throw new LakebaseError('NOT_FOUND', `there is no relation ${r.spc}/${r.db}/${r.rel} (${forkName(r.fork)}) at ${formatLsn(lsn)}`);
    if (r.block >= blocks)
      throw new LakebaseError(
        'NOT_FOUND',
        `${r.spc}/${r.db}/${r.rel} has ${blocks} blocks at ${formatLsn(lsn)}; there is no block ${r.block}`,
      );
    const [page] = await t.pages(tag, r.block, 1, lsn);
    if (page === undefined) throw new LakebaseError('NOT_FOUND', `${name} is not there at ${formatLsn(lsn)}`);
    return reportPage(name, page, lsn, await changesOf(t, { kind: KIND_REL_PAGE, ...tag }, r.block, lsn), r.limit);
  } finally {
    held.release();
  }
}

/** Newest first, down to what needs nothing older, each with where it was found. */
function changesOf(t: Timeline, series: Parameters<typeof encodeKey>[0], block: number, lsn: Lsn): Promise<PageChange[]> {
  return withRemote(() => {
    const key = encodeKey(series, block);
    const floor = floorOf(t.reader.floors(series, lsn), block);
    const changes: PageChange[] = [];
    const take = (layer: string, collect: (out: Entry[]) => boolean): boolean => {
      const out: Entry[] = [];
      const stop = collect(out);
      // Entries are views of what the layer holds.
      for (const e of out) changes.push({ layer, entry: { ...e, bytes: Buffer.from(e.bytes) } });
      return stop;
    };
    for (const layer of t.memoryLayers()) if (take('memory', (out) => layer.collect(key, lsn, floor, out))) return changes;
    for (const handle of t.storage.set.layers) {
      const d = handle.descriptor;
      if (d.endLsn <= floor) break;
      if (d.startLsn > lsn || (d.kind === 'image' && d.endLsn > lsn)) continue;
      if (key.compare(handle.keyMin) < 0 || key.compare(handle.keyMax) > 0) continue;
      if (take(d.name, (out) => handle.reader().collect(key, lsn, floor, out)) || d.kind === 'image') break;
    }
    return changes;
  });
}
