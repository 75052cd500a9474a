/** Fetches what a timeline that was attached without its layers will be asked for: first the pages that starts touch, then what was read lately, hot
 *  first, in the background. Ends when all is local, the cache is nearly full, or the timeline closes. A failure only leaves reads to fetch for
 *  themselves. */
import { type Logger, errorMessage } from '@lakebase/base';
import type { BlockRef } from '@lakebase/api';
import { type LayerCache, RemoteMiss, RemoteRead, encodeKey, relPages } from '@lakebase/layers';
import { HEAT_BLOCKS, type HeatRun } from './heat.ts';
import type { Timeline } from './timeline.ts';

const RUNS_AT_ONCE = 4;
/** The rest of the budget is left to what is really read. */
const BUDGET_SHARE = 0.9;

export interface WarmUpFigures {
  readonly blocks: number;
  readonly runs: number;
  readonly seconds: number;
}

/** Resolves when it has ended. `runs`: of the heat map. */
export async function warmUp(
  timeline: Timeline,
  bootSet: readonly BlockRef[],
  runs: readonly HeatRun[],
  log: Logger,
): Promise<WarmUpFigures> {
  const started = performance.now();
  const cache = timeline.storage.files.layers;
  const done = { blocks: 0, runs: 0 };
  const figures = (): WarmUpFigures => ({ ...done, seconds: (performance.now() - started) / 1_000 });
  if (cache === undefined || timeline.storage.set.local) return figures();
  const boot = bootSet.map(({ tag, block }) => ({ ...relPages(tag), block, count: 1 }));
  const heat = runs.map((r) => ({ ...r, count: HEAT_BLOCKS }));
  try {
    // All of a start's pages are asked for together, before anything that can wait.
    await fetchRuns(timeline, cache, boot, boot.length, false, () => done.blocks++);
    await fetchRuns(timeline, cache, heat, RUNS_AT_ONCE, true, () => done.runs++);
    log.info({ ...figures() }, 'warmed up from the object store');
  } catch (error) {
    if (!timeline.stopSignal.aborted) log.warn({ err: errorMessage(error), ...figures() }, 'warm-up ended early');
  }
  return figures();
}

interface Range extends HeatRun {
  readonly count: number;
}

async function fetchRuns(
  timeline: Timeline,
  cache: LayerCache,
  ranges: readonly Range[],
  atOnce: number,
  background: boolean,
  fetched: () => void,
): Promise<void> {
  for (let at = 0; at < ranges.length; at += Math.max(1, atOnce)) {
    const some = ranges.slice(at, at + Math.max(1, atOnce));
    const remote = new RemoteRead(undefined, background);
    try {
      for (;;) {
        if (timeline.stopSignal.aborted || cache.usedBytes > cache.budgetBytes * BUDGET_SHARE) return;
        let miss: RemoteMiss | undefined;
        for (const r of some) {
          const more = timeline.storage.set.missingRange(encodeKey(r, r.block), encodeKey(r, r.block + r.count - 1));
          if (more !== undefined) miss = miss === undefined ? more : miss.merge(more);
        }
        if (miss === undefined) break;
        await remote.fetch(miss);
      }
    } finally {
      remote.done();
    }
    for (let i = 0; i < some.length; i++) fetched();
  }
}
