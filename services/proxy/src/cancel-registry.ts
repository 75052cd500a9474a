/** Cancel keys the proxy hands out, and what they stand for at the compute.
 *  Invariants: a client never sees the compute's own key; keys come from the system's random source and are compared in constant time;
 *  an entry lives as long as its session. */
import { randomBytes, randomInt, timingSafeEqual } from 'node:crypto';
import { PROTOCOL_3_2 } from '@lakebase/pg-wire';
import type { Route } from './directory.ts';

export interface CancelTarget {
  readonly route: Route;
  readonly pid: number;
  readonly key: Buffer;
}

interface Entry {
  readonly key: Buffer;
  readonly target: CancelTarget;
}

export interface IssuedKey {
  readonly pid: number;
  readonly key: Buffer;
}

const PID_MAX = 0x7fff_ffff;
const KEY_BYTES_3_0 = 4;
const KEY_BYTES_3_2 = 32;

export class CancelRegistry {
  readonly #entries = new Map<number, Entry>();

  get size(): number {
    return this.#entries.size;
  }

  issue(protocol: number, target: CancelTarget): IssuedKey {
    let pid = randomInt(1, PID_MAX);
    while (this.#entries.has(pid)) pid = randomInt(1, PID_MAX);
    const key = randomBytes(protocol >= PROTOCOL_3_2 ? KEY_BYTES_3_2 : KEY_BYTES_3_0);
    this.#entries.set(pid, { key, target });
    return { pid, key };
  }

  revoke(pid: number): void {
    this.#entries.delete(pid);
  }

  find(pid: number, key: Buffer): CancelTarget | undefined {
    const entry = this.#entries.get(pid);
    return entry !== undefined && entry.key.length === key.length && timingSafeEqual(entry.key, key) ? entry.target : undefined;
  }
}
