/** A disk that loses, tears, misplaces and forgets, under the store's file seam ({@link SegmentIo}). Files are real; what a real disk would not have yet
 *  is remembered as sectors of 512 bytes, and a power cut takes back a seeded choice of them, in any order: writes are only ordered by a sync.
 *  Of a sync that failed the kernel keeps nothing to write: its sectors look written and are gone at the next power cut. */
import { closeSync, fstatSync, openSync, readSync, readlinkSync, statSync, truncateSync, writeSync } from 'node:fs';
import { type SegmentIo, nodeIo } from '../segment-io.ts';

const SECTOR = 512;

export interface DiskFaults {
  /** The next sync fails, once. */
  failSync?: boolean;
  /** The next write fails half way, once. */
  failWrite?: boolean;
  /** The next write goes this many bytes further on, once, and nobody is told. */
  misdirect?: number;
  /** The next write does not happen, and nobody is told. */
  loseWrite?: boolean;
}

interface Sector {
  /** What the disk has; undefined: it was beyond the file's end. */
  readonly before: Buffer | undefined;
}

export class SimulatedDisk implements SegmentIo {
  readonly faults: DiskFaults = {};
  /** Not on the disk yet, by inode and sector. */
  #pending = new Map<string, Sector>();
  /** Given up by a failed sync: looks written. */
  #forgotten = new Map<string, Sector>();
  readonly #paths = new Map<number, string>();
  readonly #random: () => number;

  constructor(seed: number) {
    let state = seed >>> 0;
    this.#random = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  write(fd: number, buffer: Buffer, offset: number, length: number, position: number): void {
    const { faults } = this;
    let at = position;
    let n = length;
    if (faults.loseWrite === true) {
      faults.loseWrite = false;
      return;
    }
    if (faults.misdirect !== undefined) {
      at += faults.misdirect;
      delete faults.misdirect;
    }
    const fails = faults.failWrite === true;
    if (fails) {
      faults.failWrite = false;
      n = Math.floor(length / 2);
    }
    this.#remember(fd, at, n);
    nodeIo.write(fd, buffer, offset, n, at);
    if (fails) throw Object.assign(new Error('EIO: i/o error, write'), { code: 'EIO' });
  }

  sync(fd: number): void {
    const mine = [...this.#pending].filter(([key]) => key.startsWith(`${fstatSync(fd).ino}:`));
    for (const [key] of mine) this.#pending.delete(key);
    if (this.faults.failSync === true) {
      this.faults.failSync = false;
      for (const [key, sector] of mine) if (!this.#forgotten.has(key)) this.#forgotten.set(key, sector);
      throw Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' });
    }
  }

  #remember(fd: number, position: number, length: number): void {
    const { ino, size } = fstatSync(fd);
    this.#paths.set(ino, readlinkSync(`/proc/self/fd/${fd}`));
    for (let sector = Math.floor(position / SECTOR); sector * SECTOR < position + length; sector++) {
      const key = `${ino}:${sector}`;
      if (this.#pending.has(key)) continue;
      // A sector that a failed sync gave up is dirty again; the disk still has what it had before that.
      const forgotten = this.#forgotten.get(key);
      this.#forgotten.delete(key);
      if (forgotten !== undefined) {
        this.#pending.set(key, forgotten);
        continue;
      }
      if (sector * SECTOR >= size) {
        this.#pending.set(key, { before: undefined });
        continue;
      }
      const before = Buffer.alloc(SECTOR);
      const own = openSync(`/proc/self/fd/${fd}`, 'r');
      try {
        readSync(own, before, 0, SECTOR, sector * SECTOR);
      } finally {
        closeSync(own);
      }
      this.#pending.set(key, { before });
    }
  }

  /** Of what was not synced some sectors are on the disk and some are not; of what a failed sync gave up, none. Close the store first. */
  powerCut(): void {
    const all: [string, Sector, boolean][] = [
      ...[...this.#pending].map(([k, s]): [string, Sector, boolean] => [k, s, this.#random() < 0.5]),
      ...[...this.#forgotten].map(([k, s]): [string, Sector, boolean] => [k, s, true]),
    ];
    const now = this.#files();
    for (const [key, { before }, lost] of all) {
      if (!lost) continue;
      const [ino, sector] = key.split(':').map(Number) as [number, number];
      const path = now.get(ino);
      if (path === undefined) continue;
      const fd = openSync(path, 'r+');
      try {
        writeSync(fd, before ?? Buffer.alloc(SECTOR), 0, SECTOR, sector * SECTOR);
      } finally {
        closeSync(fd);
      }
    }
    this.#pending.clear();
    this.#forgotten.clear();
  }

  /** Paths by inode, of those that still exist under the name they were written with or lost their `.tmp`. */
  #files(): Map<number, string> {
    const found = new Map<number, string>();
    for (const [ino, path] of this.#paths)
      for (const name of [path, path.replace(/\.tmp$/, '')]) {
        try {
          if (statSync(name).ino === ino) found.set(ino, name);
        } catch {
          // Gone.
        }
      }
    return found;
  }

  /** Bits that flip by themselves. */
  rot(path: string, from: number): void {
    const { size } = statSync(path);
    const at = from + Math.floor(this.#random() * Math.max(1, size - from));
    const fd = openSync(path, 'r+');
    try {
      const byte = Buffer.alloc(1);
      readSync(fd, byte, 0, 1, at);
      byte[0] = (byte[0] as number) ^ (1 << Math.floor(this.#random() * 8));
      writeSync(fd, byte, 0, 1, at);
    } finally {
      closeSync(fd);
    }
  }

  /** The end of a file is gone. */
  cut(path: string): void {
    truncateSync(path, Math.floor(statSync(path).size * this.#random()));
  }
}
