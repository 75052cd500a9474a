/** Virtual time: a queue of callbacks ordered by (time, sequence). Nothing here waits; a simulated hour costs what its events cost. */

interface Entry {
  readonly at: number;
  readonly sequence: number;
  readonly run: () => void;
}

const before = (a: Entry, b: Entry): boolean => (a.at !== b.at ? a.at < b.at : a.sequence < b.sequence);

export class Clock {
  now = 0;
  events = 0;
  #sequence = 0;
  readonly #heap: Entry[] = [];

  after(delay: number, run: () => void): void {
    const entry: Entry = { at: this.now + delay, sequence: this.#sequence++, run };
    const heap = this.#heap;
    let i = heap.push(entry) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!before(entry, heap[parent] as Entry)) break;
      heap[i] = heap[parent] as Entry;
      i = parent;
    }
    heap[i] = entry;
  }

  /** Runs the next event if it is due by `until`; false when there is none. */
  step(until: number): boolean {
    const heap = this.#heap;
    const top = heap[0];
    if (top === undefined || top.at > until) return false;
    const last = heap.pop() as Entry;
    if (heap.length > 0) {
      let i = 0;
      for (;;) {
        let child = 2 * i + 1;
        if (child >= heap.length) break;
        if (child + 1 < heap.length && before(heap[child + 1] as Entry, heap[child] as Entry)) child++;
        if (!before(heap[child] as Entry, last)) break;
        heap[i] = heap[child] as Entry;
        i = child;
      }
      heap[i] = last;
    }
    this.now = top.at;
    this.events++;
    top.run();
    return true;
  }
}
