/** One case: a record is decoded, its effects are taken, and it is applied to each page it names.
 *  Passed: a page, or CORRUPT or UNSUPPORTED. Failed: any other exception, bytes changed outside the page, a broken page made from a whole
 *  one, more effects or memory than the record can account for, or a case that does not end soon. */
import { isCode } from '@lakebase/base';
import { BLCKSZ, FORK_MAIN, type Lsn } from '@lakebase/ids';
import { type DecodedBlock, type DecodedRecord, decodeRecord, newDecodedRecord, RM_GENERIC_ID } from '@lakebase/pg-format';
import { applyHeapDelta, applySideDelta, deltaChildBlock, type EffectSink, emitEffects, freeSpaceAfter, redo } from '@lakebase/pg-redo';
import { brokenPage } from './page-check.ts';

export interface Case {
  readonly major: number;
  readonly bytes: Buffer;
  readonly lsn: Lsn;
  readonly endLsn: Lsn;
  /** By block id. */
  readonly pages: readonly (Buffer | undefined)[];
  /** The pages are ones that Postgres wrote: what comes out must be whole. */
  readonly realPages: boolean;
}

export type Outcome = 'page' | 'refused' | 'undecodable';

const GUARD = 0x5a;
const memory = Buffer.alloc(3 * BLCKSZ, GUARD);
const guard = Buffer.alloc(BLCKSZ, GUARD);
const page = memory.subarray(BLCKSZ, 2 * BLCKSZ);
const side = Buffer.alloc(BLCKSZ);
const zero = Buffer.alloc(BLCKSZ);
const scratch = newDecodedRecord();

/** Milliseconds; the machine may be busy, so a slow case is tried again before it counts. */
export const SLOW_MS = 60;

class Failure extends Error {}

const isTyped = (error: unknown): boolean => isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED');

/** Counts what the record causes and applies its side deltas to a page of zeros. */
class CountingSink {
  calls = 0;
  bytes = 0;
  #endLsn = 0 as Lsn;

  start(endLsn: Lsn): void {
    this.calls = 0;
    this.bytes = 0;
    this.#endLsn = endLsn;
  }
  delta(delta: Buffer): void {
    this.calls++;
    this.bytes += delta.length;
    side.fill(0);
    if (deltaChildBlock(delta) === undefined) applySideDelta(side, delta, this.#endLsn);
    else applyHeapDelta(side, delta, zero);
  }
  count(...args: readonly unknown[]): void {
    this.calls++;
    for (const arg of args) if (Buffer.isBuffer(arg)) this.bytes += arg.length;
  }
}

const counting = new CountingSink();
const sink = new Proxy(
  {},
  {
    get: (_target, name) => {
      if (name === 'commitTimestamps') return true;
      if (name === 'relDelta' || name === 'slruDelta') return (_a: unknown, _b: unknown, delta: Buffer) => counting.delta(delta);
      return (...args: readonly unknown[]) => counting.count(...args);
    },
  },
) as EffectSink;

/** undefined when it passed. */
export function attempt(c: Case): { outcome: Outcome; failure?: string } {
  const started = performance.now();
  let outcome: Outcome = 'undecodable';
  try {
    const record = decodeRecord(c.bytes, 0, c.bytes.length, c.lsn, c.endLsn, scratch);
    outcome = tookEffects(record, c.major) ? 'page' : 'refused';
    for (let id = 0; id <= record.maxBlockId; id++) {
      const block = record.blocks[id] as DecodedBlock;
      if (block.inUse && !applied(record, id, block, c)) outcome = 'refused';
    }
  } catch (error) {
    if (!isTyped(error)) return { outcome, failure: error instanceof Failure ? error.message : explain(error) };
  }
  const took = performance.now() - started;
  return took > SLOW_MS ? { outcome, failure: `took ${Math.round(took)} ms` } : { outcome };
}

const explain = (error: unknown): string => (error instanceof Error ? (error.stack ?? error.message) : String(error));

/** False when it was refused. */
function passes(work: () => void): boolean {
  try {
    work();
    return true;
  } catch (error) {
    if (!isTyped(error)) throw error;
    return false;
  }
}

function tookEffects(record: DecodedRecord, major: number): boolean {
  counting.start(record.endLsn);
  const done = passes(() => emitEffects(record, major, sink));
  if (counting.calls > record.length + 64 || counting.bytes > 64 * record.length + 65_536)
    throw new Failure(`${counting.calls} effects of ${counting.bytes} bytes from a record of ${record.length}`);
  return done;
}

function applied(record: DecodedRecord, id: number, block: DecodedBlock, c: Case): boolean {
  const before = c.pages[id] ?? zero;
  before.copy(page);
  const done = passes(() => {
    redo(page, record, id, c.major);
    if (block.fork === FORK_MAIN) freeSpaceAfter(record, id, page, c.major);
  });
  if (!memory.subarray(0, BLCKSZ).equals(guard) || !memory.subarray(2 * BLCKSZ).equals(guard)) {
    memory.fill(GUARD);
    throw new Failure(`block ${id}: bytes outside the page changed`);
  }
  if (!done) return false;
  // Generic records and images may write anything: their page is the extension's, or the primary's, to answer for.
  if (!c.realPages || block.fork !== FORK_MAIN || record.rmid === RM_GENERIC_ID || block.applyImage) return true;
  const broken = brokenPage(page, record.rmid);
  if (broken !== undefined && brokenPage(before, record.rmid) === undefined) throw new Failure(`block ${id}: page with ${broken}`);
  return true;
}
