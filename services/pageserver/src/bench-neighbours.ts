/** What one busy branch costs its neighbours, as a program: `node bench-neighbours.ts --template DIR --wal DIR [--end LSN] [--idle N] [--seconds S] [--rate MB/s]`.
 *  A pageserver with N idle branches attached serves GetPages of three of them, first quiet, then while another branch takes bulk WAL as fast as it
 *  comes, or at a rate; flushes, merges and images included. In between it stays quiet while processes of a merge's priority keep every processor busy: what
 *  any work in the background costs on this machine. Printed: GetPage p50 and p99 of the neighbours all three times, event-loop delay, resident memory.
 *  The pageserver is this process; those who ask are a thread of their own, so that their waiting is no part of the delay. */
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, setPriority, tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
import { LakebaseError, silentLogger } from '@lakebase/base';
import { MAX_LSN, type ProjectUid, type RelTag, type TimelineId, parseLsn } from '@lakebase/ids';
import { openLayerMemory } from '@lakebase/layers';
import { readControlFile } from '@lakebase/pg-format';
import { type PageFigures, type PageRequestAt, askPages, randomPages } from './bench-pages.ts';
import { walChunks } from './bench-wal.ts';
import { startPageserver } from './server.ts';
import { NICE, demoteHelpers } from './slice.ts';
import { TEST_PROJECT, tarOf, testConfig, testServiceKeys } from './testing.ts';
import type { Timeline } from './timeline.ts';

const SECRET = 'cd'.repeat(32);
const ASKED = 3;
const PAUSE_MS = 2;
const WARM_UP = 500;
const WARM_UP_BYTES = 100_000_000;

interface Asking {
  readonly port: number;
  readonly branches: readonly { readonly timeline: string; readonly requests: readonly PageRequestAt[] }[];
  readonly pauseMs: number;
}

const branchId = (n: number): TimelineId => n.toString(16).padStart(32, '0') as TimelineId;

if (!isMainThread) {
  const { port, branches, pauseMs } = workerData as Asking;
  Promise.all(branches.map(({ timeline, requests }) => askPages(port, SECRET, requests, 1, { timeline, pauseMs, warmUp: WARM_UP }))).then(
    (figures) => parentPort?.postMessage(figures),
    (error: unknown) => {
      throw error;
    },
  );
} else setImmediate(() => void main());

function ask(asking: Asking): Promise<PageFigures[]> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: asking });
    worker.once('message', resolve);
    worker.once('error', reject);
  });
}

/** Runs `what` beside processes that do nothing but use a processor each, at the priority of a merge. */
async function beside<T>(count: number, what: () => Promise<T>): Promise<T> {
  const burners = Array.from({ length: count }, () => spawn(process.execPath, ['-e', 'for (;;);'], { stdio: 'ignore' }));
  for (const { pid } of burners) if (pid !== undefined) setPriority(pid, NICE);
  try {
    return await what();
  } finally {
    for (const burner of burners) burner.kill('SIGKILL');
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      template: { type: 'string' },
      wal: { type: 'string' },
      end: { type: 'string' },
      idle: { type: 'string', default: '100' },
      seconds: { type: 'string', default: '10' },
      rate: { type: 'string', default: 'Infinity' },
      scratch: { type: 'string' },
    },
  });
  if (values.template === undefined || values.wal === undefined)
    throw new LakebaseError(
      'CONFIG',
      'usage: bench-neighbours.ts --template DIR --wal DIR [--end LSN] [--idle N] [--seconds S] [--rate MB/s] [--scratch DIR]',
    );
  const directory = mkdtempSync(join(values.scratch ?? tmpdir(), 'lb-neighbours-'));
  demoteHelpers();
  const delay = monitorEventLoopDelay({ resolution: 5 });
  try {
    const server = await startPageserver(testConfig(directory), SECRET, silentLogger, testServiceKeys);
    await server.store.templates.put(18, tarOf(values.template));
    const systemId = String(readControlFile(readFileSync(join(values.template, 'global/pg_control'))).systemId);
    const project = TEST_PROJECT as ProjectUid;
    const idle = Number(values.idle);
    for (let n = 0; n <= idle; n++) await server.store.create(project, branchId(n), { pgVersion: 18, systemId, safekeepers: [] });
    const busy = server.store.get(project, branchId(0));
    const count = Math.round((Number(values.seconds) * 1_000) / (PAUSE_MS + 1));
    const branches = Array.from({ length: ASKED }, (_, i) => {
      const t = server.store.get(project, branchId(i + 1));
      return { timeline: t.id, requests: spread(t, count) };
    });
    const turns = new Turns();
    const rss = (): number => Math.round(process.memoryUsage.rss() / 1e6);
    const measured = async (what: () => Promise<PageFigures[]>): Promise<Record<string, unknown>> => {
      delay.reset();
      delay.enable();
      turns.start();
      const figures = await what();
      turns.stop();
      delay.disable();
      return {
        getPageP50Us: Math.max(...figures.map((f) => f.medianUs)),
        getPageP99Us: Math.max(...figures.map((f) => f.p99Us)),
        requests: figures.reduce((n, f) => n + f.requests, 0),
        loopDelayP99Ms: round(delay.percentile(99) / 1e6),
        loopDelayMaxMs: round(delay.max / 1e6),
        turnCpuP99Ms: turns.at(0.99),
        turnCpuMaxMs: turns.at(1),
        cpuShare: turns.share,
        openLayersMb: round(openLayerMemory().used / 1e6),
        openLayersFreeMb: round(openLayerMemory().free / 1e6),
        memory: Object.fromEntries(Object.entries(process.memoryUsage()).map(([k, v]) => [k, Math.round(v / 1e6)])),
      };
    };
    const asking = { port: server.pagePort, branches, pauseMs: PAUSE_MS };
    let stop = false;
    const end = values.end === undefined ? MAX_LSN : parseLsn(values.end);
    const load = async (bytesMax: number): Promise<number> => {
      const [started, decoder] = [performance.now(), busy.newDecoder()];
      let bytes = 0;
      for await (const chunk of walChunks(values.wal as string, busy.lastRecordLsn, end, Buffer.allocUnsafe(131_072))) {
        decoder.push(chunk);
        bytes += chunk.length;
        await busy.ingestFrom(decoder, true);
        const early = started + bytes / 1_000 / Number(values.rate) - performance.now();
        if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
        if (stop || bytes >= bytesMax) break;
      }
      return bytes;
    };
    // What a first second compiles is in place before anything is measured.
    await Promise.all([ask(asking), load(WARM_UP_BYTES)]);
    await busy.checkpoint();
    await busy.storage.settled();
    const quiet = await measured(() => ask(asking));
    const quietOnBusyMachine = await measured(() => beside(availableParallelism(), () => ask(asking)));
    let rssMax = 0;
    const started = performance.now();
    // Not for every chunk: asking costs more than ingesting a small one.
    const watch = setInterval(() => (rssMax = Math.max(rssMax, rss())), 100);
    const loading = load(Number.POSITIVE_INFINITY);
    const loaded = await measured(async () => {
      const figures = await ask(asking);
      stop = true;
      return figures;
    });
    const seconds = (performance.now() - started) / 1_000;
    const walBytes = await loading;
    clearInterval(watch);
    process.stdout.write(
      `${JSON.stringify({ idle, quiet, quietOnBusyMachine, loaded: { ...loaded, rssMaxMb: rssMax, walMbPerSecond: round(walBytes / 1e6 / seconds), layers: busy.storage.set.layers.length, compactions: busy.storage.compactions } }, null, 2)}\n`,
    );
    await server.close();
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function round(n: number): number {
  return Math.round(n * 100) / 100;
}

/** Blocks of the largest relations of a branch. */
function spread(t: Timeline, count: number): PageRequestAt[] {
  let largest: { tag: RelTag; blocks: number } | undefined;
  for (const id of t.catalog.relations()) {
    const s = t.catalog.series.get(id);
    const blocks = t.catalog.blocks(id);
    if (s.fork === 0 && blocks > (largest?.blocks ?? 0)) largest = { tag: { spc: s.spc, db: s.db, rel: s.rel, fork: 0 }, blocks };
  }
  return largest === undefined ? [] : randomPages(largest.tag, largest.blocks, count);
}

/** Processor time of this thread from one turn of its event loop to the next: what a noisy machine does not change. */
class Turns {
  #samples: number[] = [];
  #on = false;
  #cpu = 0;
  #began = 0;
  #beganCpu = 0;
  share = 0;

  start(): void {
    this.#samples = [];
    this.#on = true;
    this.#cpu = this.#beganCpu = cpuMs();
    this.#began = performance.now();
    setImmediate(this.#turn);
  }
  stop(): void {
    this.#on = false;
    this.share = round((cpuMs() - this.#beganCpu) / (performance.now() - this.#began));
    this.#samples.sort((a, b) => a - b);
  }
  readonly #turn = (): void => {
    if (!this.#on) return;
    const now = cpuMs();
    // Only turns in which something was done.
    if (now - this.#cpu > 0.05) this.#samples.push(now - this.#cpu);
    this.#cpu = now;
    // Not at once: a loop that never rests would be all there is to see.
    setTimeout(this.#again, 1);
    this.#cpu = cpuMs();
  };
  readonly #again = (): void => {
    setImmediate(this.#turn);
  };
  at(q: number): number {
    return round(this.#samples[Math.min(this.#samples.length - 1, Math.floor(this.#samples.length * q))] ?? 0);
  }
}

function cpuMs(): number {
  const { user, system } = process.threadCpuUsage();
  return (user + system) / 1_000;
}
