/** Helpers of the pageserver's tests and benchmarks: a timeline in a temporary directory, a template from a data directory, WAL from its files. */
import { closeSync, existsSync, openSync, readFileSync, readSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { silentLogger } from '@lakebase/base';
import { type Lsn, segmentNumber, segmentOffset, WAL_SEGMENT_BYTES, walFileName } from '@lakebase/ids';
import { type KeySource, LocalKeys, plainKeys } from '@lakebase/keys';
import { FrameCache } from '@lakebase/layers';
import type { WalDecoder } from '@lakebase/pg-format';
import { type ServiceKeys, parseConfig } from '@lakebase/service-kit';
import { pack } from 'tar-stream';
import { runCompaction } from './compaction-job.ts';
import { type PageserverConfig, configSchema } from './config.ts';
import { CacheBudget } from './page-cache.ts';
import { type RunCompaction, type RunJob, type TimelineFiles, TimelineStorage } from './storage.ts';
import { TEMPLATE_ID, importTemplate, instantiate } from './template.ts';
import { Timeline } from './timeline.ts';

export const TEST_PROJECT: string = '1'.repeat(32);
export const TEST_TIMELINE: string = '2'.repeat(32);

export function testConfig(directory: string, overrides: Partial<PageserverConfig> = {}): PageserverConfig {
  const raw = { id: 'ps', httpPort: 0, secretFile: '-', dataDir: directory, pagePort: 0, logLevel: 'error', ...overrides };
  return parseConfig(configSchema, raw, 'test');
}

/** A data directory as the tar the template import takes; WAL left out. */
export function tarOf(directory: string): Readable {
  const tar = pack();
  const walk = (relative: string): void => {
    for (const name of readdirSync(join(directory, relative))) {
      const path = relative === '' ? name : `${relative}/${name}`;
      if (path === 'pg_wal' || path.startsWith('postmaster')) continue;
      if (statSync(join(directory, path)).isDirectory()) walk(path);
      else tar.entry({ name: path }, readFileSync(join(directory, path)));
    }
  };
  walk('');
  tar.finalize();
  return tar as unknown as Readable;
}

/** Keys of all tests of a file: they outlive what is stopped and started again. BENCH_PLAIN=1: none, to see what encryption costs. */
export const testKeys: KeySource = process.env['BENCH_PLAIN'] === '1' ? plainKeys : new LocalKeys();
export const testServiceKeys: ServiceKeys = { source: testKeys, retire: async () => {}, client: undefined };

const filesAt = (directory: string, project: string, timeline: string): TimelineFiles => ({
  directory,
  keys: testKeys.project(project),
  cache: new FrameCache(32 << 20),
  project,
  timeline,
});

/** Imports `pgdata` as a template under `directory` and makes a timeline of it. */
export async function createTimeline(
  directory: string,
  pgdata: string,
  systemId: string,
  config: PageserverConfig,
  compact: RunCompaction = runCompaction,
  flush?: RunJob,
): Promise<Timeline> {
  const template = filesAt(join(directory, 'template'), TEMPLATE_ID, TEMPLATE_ID);
  await importTemplate(tarOf(pgdata), 18, template);
  await instantiate(template, filesAt(join(directory, 'timeline'), TEST_PROJECT, TEST_TIMELINE), systemId, {});
  return openTimeline(directory, config, compact, flush);
}

export async function openTimeline(
  directory: string,
  config: PageserverConfig,
  compact: RunCompaction = runCompaction,
  flush?: RunJob,
): Promise<Timeline> {
  const files = filesAt(join(directory, 'timeline'), TEST_PROJECT, TEST_TIMELINE);
  const storage = await TimelineStorage.open(files, config, compact, silentLogger, flush);
  if (storage === undefined) throw new Error('no timeline');
  return Timeline.open(storage, config, new CacheBudget(config.pageCacheBytes), silentLogger);
}

/** Pushes WAL from files, a chunk at a time, from the timeline's end up to `end` (or to where the files end). */
export async function ingestFiles(
  timeline: Timeline,
  walDir: string,
  end: Lsn,
  behind = false,
  decoder: WalDecoder = timeline.newDecoder(),
): Promise<void> {
  for (let at: number = timeline.lastRecordLsn; at < end; ) {
    const file = join(walDir, walFileName(segmentNumber(at)));
    if (!existsSync(file)) throw new Error(`no WAL file ${file}`);
    const chunk = Buffer.allocUnsafe(Math.min(131_072, end - at, WAL_SEGMENT_BYTES - segmentOffset(at)));
    const fd = openSync(file, 'r');
    const n = readSync(fd, chunk, 0, chunk.length, segmentOffset(at));
    closeSync(fd);
    if (n === 0) throw new Error(`${file} ends early`);
    at += n;
    decoder.push(chunk.subarray(0, n));
    await timeline.ingestFrom(decoder, behind);
  }
}
