/** The smallest timeline there is, for tests of what stores it: an index without layers, and frozen layers of one relation's page images. */
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_VALUE,
  KIND_REL_PAGE,
  KIND_REL_SIZE,
  OpenLayer,
  SeriesTable,
  type TimelineIndex,
  metaSeries,
} from '@lakebase/layers';

const series = new SeriesTable();
export const TEST_RELATION: ReturnType<typeof metaSeries> = metaSeries(KIND_REL_PAGE, 1663, 5, 16384);
/** No merge begins by itself. */
export const MERGES_BY_HAND = { compactionLayers: 1_000, layerFileBytes: 1 << 20, maxRecordsPerPage: 200 } as const;

/** Of a timeline that begins at LSN 8. */
export const firstIndex = (project: string, timeline: string): TimelineIndex => ({
  project,
  timeline,
  version: 0,
  generation: 0,
  pgVersion: 18,
  systemId: '1',
  startLsn: 8,
  startPrevRecordLsn: 0,
  diskConsistentLsn: 8,
  prevRecordLsn: 0,
  nextLayerNumber: 1,
  layers: [],
  suspend: null,
  bootSet: null,
  extra: {},
});

/** Page b of the relation is full of the byte end / 8 + b. */
export function imagesAt(start: number, end: number, blocks: number): OpenLayer {
  const layer = new OpenLayer(series, start as Lsn);
  layer.put(series.intern(KIND_REL_SIZE, 1663, 5, 16384, 0), 0, ENTRY_VALUE, ARG_STOP, end as Lsn, Buffer.from([0, 0, 0, blocks]));
  for (let b = 0; b < blocks; b++)
    layer.put(series.internSeries(TEST_RELATION), b, ENTRY_IMAGE, ARG_STOP, end as Lsn, Buffer.alloc(BLCKSZ, end / 8 + b));
  layer.freeze(end as Lsn);
  return layer;
}
