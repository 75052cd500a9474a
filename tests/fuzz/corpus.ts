/** Records real WAL of every type with the pages it meets: the oracle's workload on a stock server, applied to the oracle's store.
 *  Invariant: at most SAMPLES_PER_TYPE samples of a type and shape are kept, evenly spread over the workload (reservoir sampling). */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BLCKSZ, type ForkNumber } from '@lakebase/ids';
import type { DecodedRecord } from '@lakebase/pg-format';
import { PageStore } from '../oracle/page-store.ts';
import { recordTypeName } from '../oracle/record-types.ts';
import { OracleServer } from '../oracle/server.ts';
import { controlCheckpoint, readWal } from '../oracle/wal-source.ts';
import { runWorkload } from '../oracle/workload.ts';
import { Random } from './random.ts';
import { type Sample, takeApart } from './sample.ts';

const SAMPLES_PER_TYPE = 16;

export interface Corpus {
  readonly major: number;
  readonly samples: readonly Sample[];
}

const SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: '',
  wal_level: 'logical',
  track_commit_timestamp: 'on',
  max_prepared_transactions: '10',
  max_connections: '40',
  fsync: 'off',
  wal_keep_size: '100GB',
  max_wal_size: '4GB',
  checkpoint_timeout: '1h',
  autovacuum: 'off',
};

export interface CorpusOptions {
  readonly major: number;
  readonly seed: number;
  readonly only?: readonly string[];
  readonly log?: (line: string) => void;
}

export async function recordCorpus(options: CorpusOptions): Promise<Corpus> {
  const { major, seed, only, log = () => {} } = options;
  const root = mkdtempSync(join(tmpdir(), 'lakebase-fuzz-'));
  spawnSync('chmod', ['755', root]);
  const server = new OracleServer(join(root, 'data'), join(root, 's'), major);
  try {
    server.initdb();
    server.configure(SETTINGS);
    await server.start();
    await server.stop();
    spawnSync('cp', ['-a', server.dataDir, join(root, 'base')]);
    const from = controlCheckpoint(server.dataDir);
    await server.start();
    await runWorkload(server, { long: false, log, ...(only === undefined ? {} : { only }) });
    await server.stop();
    const last = controlCheckpoint(server.dataDir);
    const store = new PageStore(join(root, 'base'), major, { hostile: false });
    const reservoir = new Reservoir(new Random(seed, major));
    readWal({ walDir: join(server.dataDir, 'pg_wal'), major, afterRecordAt: from, lastRecordLsn: last }, (record) => {
      reservoir.offer(record, store);
      store.apply(record);
    });
    if (store.mismatchCount > 0) throw new Error(`redo of the recorded WAL failed: ${JSON.stringify(store.mismatches[0])}`);
    return { major, samples: reservoir.samples() };
  } finally {
    await server.stop('SIGQUIT');
    rmSync(root, { recursive: true, force: true });
  }
}

class Reservoir {
  readonly #random: Random;
  readonly #kept = new Map<string, { seen: number; samples: Sample[] }>();

  constructor(random: Random) {
    this.#random = random;
  }

  offer(record: DecodedRecord, store: PageStore): void {
    const type = recordTypeName(record.rmid, record.info, store.major);
    // Records of one type differ in the blocks they name and in those that come as images.
    let shape = type;
    for (let id = 0; id <= record.maxBlockId; id++) {
      const block = record.blocks[id];
      if (block?.inUse === true) shape += block.applyImage ? ` ${id}i` : ` ${id}`;
    }
    let kept = this.#kept.get(shape);
    if (kept === undefined) this.#kept.set(shape, (kept = { seen: 0, samples: [] }));
    kept.seen++;
    const slot = kept.seen <= SAMPLES_PER_TYPE ? kept.samples.length : this.#random.below(kept.seen);
    if (slot >= SAMPLES_PER_TYPE) return;
    kept.samples[slot] = takeApart(record, type, (block) => {
      const page = store.rel({ spc: block.spc, db: block.db, rel: block.rel, fork: block.fork as ForkNumber }).pages[block.block];
      return page?.length === BLCKSZ ? page : undefined;
    });
  }

  samples(): Sample[] {
    return [...this.#kept.values()].flatMap((kept) => kept.samples);
  }
}
