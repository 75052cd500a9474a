/** CREATE DATABASE … STRATEGY FILE_COPY on the storage side: every fork of the source as of the record becomes images of the target, written
 *  straight into a delta layer at the record's LSN (never through the open layer, whose memory is bounded). */
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_VALUE,
  type Floors,
  KIND_DATABASE,
  KIND_RELMAP,
  KIND_REL_FLOORS,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  LayerWriter,
  type SeriesId,
  addFloor,
  encodeFloors,
  type PageReader,
  RemoteMiss,
  encodeKey,
  layerName,
  metaSeries,
  withRemote,
} from '@lakebase/layers';
import type { DatabaseCopy } from './ingest.ts';
import type { Timeline } from './timeline.ts';

const DRAIN_BYTES = 512 * 1024;
/** Other timelines are served in between. */
const BLOCKS_PER_TURN = 256;

export async function copyDatabase(timeline: Timeline, copy: DatabaseCopy, lsn: Lsn): Promise<void> {
  const { storage, catalog, reader } = timeline;
  const { src, dst } = copy;
  const target = (s: SeriesId, kind: number): SeriesId => ({ kind, spc: dst.spc, db: dst.db, rel: s.rel, fork: s.fork });
  const relations = [...catalog.relations(src.spc, src.db)]
    .map((id) => ({ series: catalog.series.get(id), blocks: catalog.blocks(id), floors: catalog.floors(id) }))
    .sort((a, b) => a.series.rel - b.series.rel || a.series.fork - b.series.fork);
  // Whatever a database of this name held before does not count.
  const floors: Floors = addFloor([], 0, (lsn - 1) as Lsn);
  const relmap = catalog.relmaps.get(`${src.spc}/${src.db}`)?.bytes;

  await storage.addLayers(async (number) => {
    const { directory, project, timeline: id, keys } = storage.files;
    const generation = storage.index.generation;
    const identity = { project, timeline: id, kind: 'delta' as const, level: 0, generation, startLsn: lsn, endLsn: lsn };
    const writer = await LayerWriter.create(join(directory, layerName('delta', lsn, lsn, number, 0, generation)), identity, keys);
    try {
      const value = (s: SeriesId, bytes: Buffer): void => writer.add(encodeKey(s, 0), lsn, ENTRY_VALUE, ARG_STOP, bytes);
      value(metaSeries(KIND_DATABASE, dst.spc, dst.db), Buffer.from([1]));
      if (relmap !== undefined) value(metaSeries(KIND_RELMAP, dst.spc, dst.db), relmap);
      for (const r of relations) {
        const size = Buffer.allocUnsafe(4);
        size.writeUInt32BE(r.blocks, 0);
        value(target(r.series, KIND_REL_SIZE), size);
      }
      for (const r of relations) value(target(r.series, KIND_REL_FLOORS), encodeFloors(floors));
      const zeros = Buffer.alloc(BLCKSZ);
      for (const r of relations) {
        const pages = target(r.series, KIND_REL_PAGE);
        for (let block = 0; block < r.blocks; block++) {
          const read = readPage(reader, r.series, block, lsn, r.floors);
          const page = Buffer.isBuffer(read) ? read : await read;
          if (!page.equals(zeros)) writer.add(encodeKey(pages, block), lsn, ENTRY_IMAGE, ARG_STOP, page);
          if (writer.pendingBytes >= DRAIN_BYTES) await writer.drain();
          // A relation is as long as WAL says; most of it may be zeros, and then nothing is ever drained.
          else if (block % BLOCKS_PER_TURN === BLOCKS_PER_TURN - 1) await setImmediate();
        }
      }
      return [await writer.finish()];
    } catch (error) {
      await writer.abandon();
      throw error;
    }
  });

  catalog.databases.set(`${dst.spc}/${dst.db}`, { ...dst });
  if (relmap !== undefined) catalog.relmaps.set(`${dst.spc}/${dst.db}`, { ...dst, bytes: relmap });
  for (const r of relations) catalog.adopt(catalog.series.internSeries(target(r.series, KIND_REL_PAGE)), r.blocks, floors, lsn);
}

/** Without a promise for each page that is local. */
function readPage(reader: PageReader, s: SeriesId, block: number, lsn: Lsn, floors: Floors): Buffer | Promise<Buffer> {
  try {
    return reader.page(s, block, lsn, floors);
  } catch (error) {
    if (!(error instanceof RemoteMiss)) throw error;
    return withRemote(() => reader.page(s, block, lsn, floors));
  }
}
