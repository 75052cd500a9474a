/** Which chunks of a file of `size` bytes are there. Chunks are aligned; the last one may be short. */
export class ChunkMap {
  readonly size: number;
  readonly chunkBytes: number;
  readonly chunks: number;
  readonly #present: Uint8Array;
  count = 0;
  /** Of what is there. */
  bytes = 0;

  constructor(size: number, chunkBytes: number) {
    this.size = size;
    this.chunkBytes = chunkBytes;
    this.chunks = Math.ceil(size / chunkBytes);
    this.#present = new Uint8Array(this.chunks);
  }

  get complete(): boolean {
    return this.count === this.chunks;
  }
  has(chunk: number): boolean {
    return this.#present[chunk] === 1;
  }
  bytesOf(chunk: number): number {
    return Math.min(this.chunkBytes, this.size - chunk * this.chunkBytes);
  }
  add(chunk: number): void {
    if (this.has(chunk)) return;
    this.#present[chunk] = 1;
    this.count++;
    this.bytes += this.bytesOf(chunk);
  }
  remove(chunk: number): void {
    if (!this.has(chunk)) return;
    this.#present[chunk] = 0;
    this.count--;
    this.bytes -= this.bytesOf(chunk);
  }
  fill(): void {
    for (let c = 0; c < this.chunks; c++) this.add(c);
  }

  /** Chunks that hold [offset, offset + length). */
  *of(offset: number, length: number): Generator<number> {
    const end = Math.min(this.chunks, Math.ceil((offset + length) / this.chunkBytes));
    for (let c = Math.floor(offset / this.chunkBytes); c < end; c++) yield c;
  }
  *missing(offset = 0, length: number = this.size): Generator<number> {
    for (const c of this.of(offset, length)) if (!this.has(c)) yield c;
  }
}

/** Sorted chunk numbers as runs of neighbours of at most `most` chunks: `[first, count]`. */
export function runsOf(chunks: Iterable<number>, most: number): [number, number][] {
  const runs: [number, number][] = [];
  for (const c of [...chunks].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === c && last[1] < most) last[1]++;
    else if (last === undefined || last[0] + last[1] <= c) runs.push([c, 1]);
  }
  return runs;
}
