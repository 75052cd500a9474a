/** All small values (kinds below FIRST_PAGE_KIND) as of an LSN: what the relation catalog and image creation start from. What a scan misses is known
 *  before it begins: two fetches (ends of the layers, frames with values) at most. */
import type { Lsn } from '@lakebase/ids';
import type { Entry } from './entry.ts';
import { FIRST_PAGE_KIND, KEY_BYTES, type Key, decodeKey } from './key.ts';
import { LayerCursor } from './layer-cursor.ts';
import type { LayerHandle, LayerSet } from './layer-set.ts';
import type { OpenLayer } from './open-layer.ts';
import { RemoteMiss, RemoteRead, bothMisses, missOf } from './remote-miss.ts';

/** Between two offers to let others go on. */
const KEYS_PER_STEP = 64;

export interface ScannedValue {
  readonly key: Key;
  readonly keyBytes: Buffer;
  readonly bytes: Buffer;
}

/** In key order; values that are gone are left out. `memory` is newest first. */
export function scanValues(memory: readonly OpenLayer[], set: LayerSet, lsn: Lsn): ScannedValue[] {
  const steps = scan(memory, set, lsn);
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}

/** The same of a set that nobody changes meanwhile: `turn` is awaited now and again, so that very many values hold nobody up. */
export async function scanValuesInTurns(set: LayerSet, lsn: Lsn, turn: () => Promise<void>): Promise<ScannedValue[]> {
  const remote = new RemoteRead();
  try {
    for (;;) {
      try {
        const steps = scan([], set, lsn);
        for (let step = steps.next(); ; step = steps.next()) {
          if (step.done === true) return step.value;
          await turn();
        }
      } catch (error) {
        if (!(error instanceof RemoteMiss)) throw error;
        await remote.fetch(error);
      }
    }
  } finally {
    remote.done();
  }
}

function* scan(memory: readonly OpenLayer[], set: LayerSet, lsn: Lsn): Generator<undefined, ScannedValue[], undefined> {
  const layers = layersWithValues(set, lsn);
  const miss = missedValues(layers);
  if (miss !== undefined) throw miss;
  const found = new Map<string, ScannedValue>();
  const take = (keyBytes: Buffer, newest: Entry | undefined): void => {
    if (newest === undefined) return;
    const id = keyBytes.toString('latin1');
    if (found.has(id)) return;
    const copy = Buffer.from(keyBytes);
    found.set(id, { key: decodeKey(copy), keyBytes: copy, bytes: Buffer.from(newest.bytes) });
  };
  for (const layer of memory) {
    const keyBytes = Buffer.alloc(20);
    for (const row of layer.valueRows()) {
      layer.writeKeyOf(row, keyBytes);
      take(
        keyBytes,
        layer.entriesOf(row).findLast((e) => e.lsn <= lsn),
      );
    }
  }
  for (const handle of layers) {
    const cursor = new LayerCursor(handle.reader());
    while (cursor.key !== undefined && (cursor.key[0] as number) < FIRST_PAGE_KIND) {
      const key = Buffer.from(cursor.key);
      let newest: Entry | undefined;
      // A key's entries may fill several groups (frames).
      do {
        cursor.entries((e) => {
          if (e.lsn > lsn) return false;
          newest = e;
          return true;
        });
        cursor.next();
      } while (cursor.key !== undefined && cursor.key.equals(key));
      take(key, newest);
      if (found.size % KEYS_PER_STEP === 0) yield;
    }
  }
  return [...found.values()].filter((v) => v.bytes.length > 0).sort((a, b) => a.keyBytes.compare(b.keyBytes));
}

/** Layers with values that count at `lsn`, newest first: down to the newest images, which hold every value there was. */
function layersWithValues(set: LayerSet, lsn: Lsn): LayerHandle[] {
  const found: LayerHandle[] = [];
  let imageLsn = 0;
  for (const handle of set.layers) {
    const d = handle.descriptor;
    if (d.startLsn > lsn || (d.kind === 'image' && d.endLsn > lsn)) continue;
    if ((handle.keyMin[0] as number) >= FIRST_PAGE_KIND) continue;
    if (d.endLsn < imageLsn || (d.kind === 'delta' && d.endLsn === imageLsn)) continue;
    if (d.kind === 'image') imageLsn = d.endLsn;
    found.push(handle);
  }
  return found;
}

const FIRST_PAGE_KEY = Buffer.alloc(KEY_BYTES);
FIRST_PAGE_KEY[0] = FIRST_PAGE_KIND;

function missedValues(layers: readonly LayerHandle[]): RemoteMiss | undefined {
  let miss: RemoteMiss | undefined;
  for (const handle of layers) {
    if (handle.local) continue;
    miss = bothMisses(
      miss,
      missOf(() => {
        const reader = handle.reader();
        const more = reader.missingFrames(0, reader.frameAtOrBefore(FIRST_PAGE_KEY));
        if (more !== undefined) throw more;
      }),
    );
  }
  return miss;
}
