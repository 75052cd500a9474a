/** What a process can do about plaintext in memory it does not use any more. docs/flows/key-path.md
 *  Buffers of one's own are zeroed by whoever owns them; this is about garbage: {@link forgetGarbage} has it collected, so that it goes back
 *  to the allocator, which overwrites what it frees (native/keyguard, and no per-thread caches of freed blocks: the supervisor). */
import { setTimeout as delay } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { overwriteReadBuffer } from './read-buffer.ts';

/** Call first thing in `main`: freed V8 memory is cleared, and no small Buffer shares its memory with others, so that none outlives its use
 *  because of a neighbour. */
export function hardenMemory(): void {
  setFlagsFromString('--clear-free-memory');
  Buffer.poolSize = 0;
}

/** Why the memory of this process is not guarded although its supervisor meant it to be; undefined when all is well, or nobody asked. */
export function guardMissing(): string | undefined {
  if (process.env['LAKEBASE_KEYGUARD'] !== undefined || process.env['LAKEBASE_KEYGUARD_EXPECTED'] !== '1') return undefined;
  return 'native/keyguard is not preloaded: core files, ptrace and swap can show keys; run npm run build';
}

let collect: (() => void) | undefined;

/** When garbage is collected after a lock: at once, and again when sockets have closed and what was under way has ended too. */
const PASSES_MS = [0, 50, 500, 1_500, 3_000, 3_000];

/** Runs the collector, over everything. */
export function collectGarbage(): void {
  if (collect === undefined) {
    setFlagsFromString('--expose-gc');
    collect = runInNewContext('gc') as () => void;
  }
  collect();
}

/** Collects garbage now and a few times shortly after. `then`: zeroes what collected memory was given to. */
export async function forgetGarbage(then: () => void = () => {}): Promise<void> {
  for (const ms of PASSES_MS) {
    await delay(ms, undefined, { ref: false });
    collectGarbage();
    // Finalizers run in a turn of their own.
    await delay(10, undefined, { ref: false });
    then();
    // The key manager's last answers may be in there. A failure leaves a buffer that the next traffic reads over.
    await overwriteReadBuffer().catch(() => {});
  }
}
