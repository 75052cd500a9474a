/** Interns series (a key without its block) as small integers, so that hot structures are typed arrays and not objects.
 *  Ids are dense from 0 and live as long as the table (one per timeline and process). */
import type { SeriesId } from './key.ts';

const growU32 = (a: Uint32Array): Uint32Array => {
  const b = new Uint32Array(a.length * 2);
  b.set(a);
  return b;
};

export interface SeriesTableMessage {
  readonly kindFork: Uint32Array;
  readonly spc: Uint32Array;
  readonly db: Uint32Array;
  readonly rel: Uint32Array;
}

export class SeriesTable {
  count = 0;
  #slots: Uint32Array = new Uint32Array(4096);
  #mask = 4095;
  /** kind << 8 | fork */
  kindFork: Uint32Array = new Uint32Array(2048);
  spc: Uint32Array = new Uint32Array(2048);
  db: Uint32Array = new Uint32Array(2048);
  rel: Uint32Array = new Uint32Array(2048);
  #last = -1;

  intern(kind: number, spc: number, db: number, rel: number, fork: number): number {
    const kf = (kind << 8) | fork;
    const last = this.#last;
    if (last >= 0 && this.rel[last] === rel && this.kindFork[last] === kf && this.db[last] === db && this.spc[last] === spc) return last;
    let at = hash4(kf, spc, db, rel) & this.#mask;
    for (;;) {
      const slot = this.#slots[at] as number;
      if (slot === 0) break;
      const id = slot - 1;
      if (this.rel[id] === rel && this.kindFork[id] === kf && this.db[id] === db && this.spc[id] === spc) return (this.#last = id);
      at = (at + 1) & this.#mask;
    }
    const id = this.count++;
    if (id === this.rel.length) {
      this.kindFork = growU32(this.kindFork);
      this.spc = growU32(this.spc);
      this.db = growU32(this.db);
      this.rel = growU32(this.rel);
    }
    this.kindFork[id] = kf;
    this.spc[id] = spc;
    this.db[id] = db;
    this.rel[id] = rel;
    this.#slots[at] = id + 1;
    if (this.count * 2 > this.#slots.length) this.#rehash();
    return (this.#last = id);
  }

  /** The id of a series seen before, else -1. */
  find(kind: number, spc: number, db: number, rel: number, fork: number): number {
    const kf = (kind << 8) | fork;
    let at = hash4(kf, spc, db, rel) & this.#mask;
    for (;;) {
      const slot = this.#slots[at] as number;
      if (slot === 0) return -1;
      const id = slot - 1;
      if (this.rel[id] === rel && this.kindFork[id] === kf && this.db[id] === db && this.spc[id] === spc) return id;
      at = (at + 1) & this.#mask;
    }
  }

  /** For a thread that only has ids and wants to know what they stand for ({@link get}). */
  toMessage(): SeriesTableMessage {
    const n = this.count;
    return {
      kindFork: this.kindFork.slice(0, n),
      spc: this.spc.slice(0, n),
      db: this.db.slice(0, n),
      rel: this.rel.slice(0, n),
    };
  }
  static fromMessage(m: SeriesTableMessage): SeriesTable {
    const table = new SeriesTable();
    table.count = m.rel.length;
    table.kindFork = m.kindFork;
    table.spc = m.spc;
    table.db = m.db;
    table.rel = m.rel;
    return table;
  }

  internSeries(s: SeriesId): number {
    return this.intern(s.kind, s.spc, s.db, s.rel, s.fork);
  }

  get(id: number): SeriesId {
    const kf = this.kindFork[id] as number;
    return { kind: kf >>> 8, spc: this.spc[id] as number, db: this.db[id] as number, rel: this.rel[id] as number, fork: kf & 0xff };
  }

  #rehash(): void {
    const size = this.#slots.length * 2;
    this.#slots = new Uint32Array(size);
    this.#mask = size - 1;
    for (let id = 0; id < this.count; id++) {
      let at = hash4(this.kindFork[id] as number, this.spc[id] as number, this.db[id] as number, this.rel[id] as number) & this.#mask;
      while (this.#slots[at] !== 0) at = (at + 1) & this.#mask;
      this.#slots[at] = id + 1;
    }
  }
}

/** Relations of one database differ in `rel` and `kind/fork` only: two multiplications are mixing enough. */
function hash4(kindFork: number, spc: number, db: number, rel: number): number {
  const h = Math.imul(rel ^ Math.imul(db ^ (kindFork << 16) ^ (kindFork >>> 8) ^ (spc << 7), 0x85ebca6b), 0x9e3779b1);
  return (h ^ (h >>> 15)) >>> 0;
}
