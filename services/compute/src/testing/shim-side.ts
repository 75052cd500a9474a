/** The shim's side of a resident map, for tests of the agent's: changes the file as rounds and Postgres processes would. Offsets are those of
 *  docs/protocols/shim-agent.md, written down a second time: a test that shared the codec's would not see it change. */
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import type { RelTag } from '@lakebase/ids';
import type { BlockState } from '../resident-map.ts';

const ADDED = 180;
const ADDED_MAX = 216;
const AREAS_OFFSET = 232;
const AREAS = 240;
const COUNTERS = { blocksWritten: 56, walPosition: 80, cleanBlocks: 104, round: 192, blocksSettled: 200, blocksAdopted: 208 } as const;

export class ShimSide implements Disposable {
  readonly #fd: number;

  constructor(path: string) {
    this.#fd = openSync(path, 'r+');
  }

  /** A file made since the start; its index. */
  adopt(tag: RelTag, segment: number, nblocks: number): number {
    const index = this.u32(8) + this.u32(ADDED);
    const at = this.#entry(index);
    const entry = Buffer.alloc(48);
    entry.writeUInt32LE(tag.spc, 0);
    entry.writeUInt32LE(tag.db, 4);
    entry.writeUInt32LE(tag.rel, 8);
    entry[12] = tag.fork;
    entry[13] = tag.fork;
    entry.writeUInt16LE(segment, 14);
    entry.writeUInt32LE(4, 20); // laid
    this.write(entry, at);
    this.grow(index, nblocks);
    this.setU32(this.u32(ADDED) + 1, ADDED);
    return index;
  }

  /** The cells of blocks beyond the base lie in an area of its own. */
  grow(index: number, nblocks: number): void {
    const at = this.#entry(index);
    if (nblocks > this.u32(at + 32) && this.u32(at + 36) === 0) {
      this.setU32(this.u32(AREAS) + 1, AREAS);
      this.setU32(this.u32(AREAS), at + 36);
    }
    this.setU32(nblocks, at + 16);
  }

  drop(index: number): void {
    const at = this.#entry(index) + 20;
    this.setU32((this.u32(at) | 1) >>> 0, at);
  }

  setState(index: number, block: number, state: BlockState): void {
    const word = this.#cell(index, block) + ((block >>> 4) & 1) * 4;
    const shift = (block % 16) * 2;
    this.setU32(((this.u32(word) & ~(3 << shift)) | (state << shift)) >>> 0, word);
  }

  /** Marks it as used. */
  touch(index: number, block: number): void {
    const word = this.#cell(index, block) + 8;
    this.setU32((this.u32(word) | (1 << (block % 32))) >>> 0, word);
  }

  count(counter: keyof typeof COUNTERS, value: number): void {
    this.setU32(value, COUNTERS[counter]);
  }

  /** Any word: what no shim writes, too. */
  setU32(value: number, at: number): void {
    const word = Buffer.alloc(4);
    word.writeUInt32LE(value);
    this.write(word, at);
  }

  u32(at: number): number {
    return this.read(at, 4).readUInt32LE();
  }

  read(at: number, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    readSync(this.#fd, bytes, 0, length, at);
    return bytes;
  }

  write(bytes: Buffer, at: number): void {
    writeSync(this.#fd, bytes, 0, bytes.length, at);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #entry(index: number): number {
    if (index >= this.u32(8) + this.u32(ADDED_MAX)) throw new Error(`no room for entry ${index}`);
    return 256 + index * 48;
  }

  #cell(index: number, block: number): number {
    const at = this.#entry(index);
    const cell = (block >>> 5) * 16;
    if (block < this.u32(at + 32)) return this.u32(at + 24) + cell;
    return this.u32(AREAS_OFFSET) + (this.u32(at + 36) - 1) * 65_536 + cell;
  }
}
