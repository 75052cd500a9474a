/** Where a {@link LayerReader} gets the bytes of its file: a whole local file here, or a cached object (cached-layer.ts). */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { LakebaseError, assert } from '@lakebase/base';
import { corrupt } from './layer-format.ts';
import type { RemoteMiss } from './remote-miss.ts';

export interface LayerBytes {
  /** For messages. */
  readonly path: string;
  readonly size: number;
  /** Throws {@link RemoteMiss} when some of it is not local. The caller's own; in `into` when that is given and has room, or not. */
  read(offset: number, length: number, into?: Buffer): Buffer;
  /** What {@link read} would miss. */
  missing(offset: number, length: number): RemoteMiss | undefined;
  /** The bytes of this range failed a check. What to fetch before the next try; undefined when there is nothing better to be had. */
  reject(offset: number, length: number): RemoteMiss | undefined;
  close(): void;
}

export class WholeFile implements LayerBytes {
  readonly path: string;
  readonly size: number;
  #fd: number;

  constructor(path: string) {
    this.path = path;
    this.#fd = openLayerFile(path);
    this.size = fstatSync(this.#fd).size;
  }

  read(offset: number, length: number, into?: Buffer): Buffer {
    assert(this.#fd >= 0, () => `layer ${this.path} is closed`);
    return readFully(this.#fd, offset, length, this.path, into);
  }
  missing(): undefined {
    return undefined;
  }
  reject(): undefined {
    return undefined;
  }
  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}

/** A descriptor that asynchronous calls may be using: it is closed after the last of them, as its number could be another file's by then. */
export class OpenFile {
  readonly fd: number;
  #users = 0;
  #closed = false;

  constructor(fd: number) {
    this.fd = fd;
  }
  use(): void {
    this.#users++;
  }
  unuse(): void {
    if (--this.#users === 0 && this.#closed) closeSync(this.fd);
  }
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#users === 0) closeSync(this.fd);
  }
}

export function openLayerFile(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (cause) {
    throw new LakebaseError('CORRUPT', `layer ${path} cannot be opened: ${(cause as Error).message}`, { cause });
  }
}

export function readFully(fd: number, offset: number, length: number, path: string, into?: Buffer): Buffer {
  const bytes = into !== undefined && into.length >= length ? into.subarray(0, length) : Buffer.allocUnsafeSlow(length);
  let done = 0;
  while (done < length) {
    let n: number;
    try {
      n = readSync(fd, bytes, done, length - done, offset + done);
    } catch (cause) {
      throw new LakebaseError('CORRUPT', `layer ${path} cannot be read: ${(cause as Error).message}`, { cause });
    }
    if (n === 0) throw corrupt(path, 'is cut short');
    done += n;
  }
  return bytes;
}
