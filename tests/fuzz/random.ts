/** Random numbers for fuzzing.
 *  Invariant: a case is the same whenever it has the same seed, module and number, on any machine. */

export class Random {
  #state: number;

  constructor(...parts: readonly number[]) {
    let h = 0x811c9dc5;
    for (const part of parts) {
      h = Math.imul(h ^ part, 0x0100_0193) >>> 0;
      h = Math.imul(h ^ (h >>> 15), 0x85eb_ca6b) >>> 0;
    }
    this.#state = h;
  }

  /** mulberry32. */
  next32(): number {
    this.#state = (this.#state + 0x6d2b_79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** A whole number in [0, n). */
  below(n: number): number {
    return n <= 1 ? 0 : this.next32() % n;
  }

  /** True once in `n` times. */
  oneIn(n: number): boolean {
    return this.below(n) === 0;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}
