/** The agent's side of scratch encryption: everything below a compute's data directory is AES-256-XTS under a key of that boot.
 *  Format: docs/formats/scratch-encryption.md; the other side is native/pgshim/src/xts.c.
 *  Invariants: the key is never written anywhere but into the pipe to Postgres; we write before Postgres starts (and configuration files, which it only
 *  reads), and read state files after it has stopped, so nothing here locks. */
import { type KeyObject, createCipheriv, createDecipheriv, createSecretKey, randomFillSync, timingSafeEqual } from 'node:crypto';
import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';
import { offHeap } from '@lakebase/bytes';

export const SCRATCH_KEY_BYTES = 64;
/** Data unit of XTS: a page. */
export const SCRATCH_UNIT = 8192;
const BLOCK = 16;
const TAIL_TWEAK = 1n << 63n;
const ALGORITHM = 'aes-256-xts';
const ZERO_UNIT = Buffer.alloc(SCRATCH_UNIT);

export class ScratchCipher {
  readonly #key: Buffer;
  /** The same as an object: a cipher costs 4 µs with it, 70 with the bytes. Undefined once wiped; node:crypto overwrites what it collects. */
  #secret: KeyObject | undefined;

  constructor(key: Buffer = randomFillSync(offHeap(SCRATCH_KEY_BYTES))) {
    if (key.length !== SCRATCH_KEY_BYTES || timingSafeEqual(key.subarray(0, 32), key.subarray(32)))
      throw new LakebaseError('INVALID_ARGUMENT', `a scratch key has ${SCRATCH_KEY_BYTES} bytes in two different halves`);
    this.#key = key;
    this.#secret = createSecretKey(key);
  }

  /** For the pipe to Postgres, and nothing else. A view: {@link wipe} clears it. */
  get key(): Buffer {
    this.#current();
    return this.#key;
  }

  wipe(): void {
    this.#key.fill(0);
    this.#secret = undefined;
  }

  #current(): KeyObject {
    if (this.#secret === undefined) throw new LakebaseError('CLOSED', 'the scratch key of this boot is gone');
    return this.#secret;
  }

  /** Bytes at `offset`, a multiple of the unit, as they lie on the disk. A length that is no multiple of 16 must end where the file ends. */
  encrypt(inode: bigint, offset: number, plain: Buffer): Buffer {
    const first = unitNumber(offset);
    const out = Buffer.alloc(plain.length);
    const whole = plain.length - (plain.length % BLOCK);
    for (let at = 0; at < whole; at += SCRATCH_UNIT) {
      const unit = plain.subarray(at, Math.min(at + SCRATCH_UNIT, whole));
      if (isZero(unit)) continue; // zeros on the disk are zeros
      createCipheriv(ALGORITHM, this.#current(), tweak(inode, first + BigInt(at / SCRATCH_UNIT)))
        .update(unit)
        .copy(out, at);
    }
    this.#tail(inode, offset, plain, out, whole);
    return out;
  }

  /** The inverse. */
  decrypt(inode: bigint, offset: number, cipher: Buffer): Buffer {
    const first = unitNumber(offset);
    const out = Buffer.alloc(cipher.length);
    const whole = cipher.length - (cipher.length % BLOCK);
    for (let at = 0; at < whole; at += SCRATCH_UNIT) {
      const unit = cipher.subarray(at, Math.min(at + SCRATCH_UNIT, whole));
      if (isZero(unit)) continue;
      createDecipheriv(ALGORITHM, this.#current(), tweak(inode, first + BigInt(at / SCRATCH_UNIT)))
        .update(unit)
        .copy(out, at);
      for (let block = 0; block < unit.length; block += BLOCK)
        if (unit.readUInt32LE(block) === 0 && isZero(unit.subarray(block, block + BLOCK))) out.fill(0, at + block, at + block + BLOCK);
    }
    this.#tail(inode, offset, cipher, out, whole);
    return out;
  }

  /** The last bytes of a file, fewer than a block. */
  #tail(inode: bigint, offset: number, from: Buffer, to: Buffer, whole: number): void {
    if (whole === from.length) return;
    const block = BigInt((offset + whole) / BLOCK);
    const stream = createCipheriv(ALGORITHM, this.#current(), tweak(inode, block | TAIL_TWEAK)).update(ZERO_UNIT.subarray(0, BLOCK));
    for (let i = whole; i < from.length; i++) to[i] = (from[i] as number) ^ (stream[i - whole] as number);
  }
}

const isZero = (bytes: Buffer): boolean => bytes.equals(ZERO_UNIT.subarray(0, bytes.length));

function unitNumber(offset: number): bigint {
  if (offset % SCRATCH_UNIT !== 0) throw new LakebaseError('INTERNAL', `scratch is written in whole units, not at ${offset}`);
  return BigInt(offset / SCRATCH_UNIT);
}

function tweak(inode: bigint, unit: bigint): Buffer {
  const bytes = Buffer.allocUnsafe(BLOCK);
  bytes.writeBigUInt64LE(inode, 0);
  bytes.writeBigUInt64LE(unit, 8);
  return bytes;
}

/** An open scratch file. */
export class ScratchFile implements Disposable {
  readonly #fd: number;
  readonly #cipher: ScratchCipher | null;
  readonly #inode: bigint;

  /** `cipher` null: plaintext, for tests. Flags as in openSync; a new file gets mode 0600. */
  constructor(cipher: ScratchCipher | null, path: string, flags: 'r' | 'w' | number) {
    this.#cipher = cipher;
    this.#fd = openSync(path, flags, 0o600);
    this.#inode = fstatSync(this.#fd, { bigint: true }).ino;
  }

  /** At a multiple of the unit; ends at one too, or at a multiple of 16, or at the end of the file. */
  write(bytes: Buffer, offset: number): void {
    const out = this.#cipher === null ? bytes : this.#cipher.encrypt(this.#inode, offset, bytes);
    for (let done = 0; done < out.length; ) done += writeSync(this.#fd, out, done, out.length - done, offset + done);
  }

  /** Anywhere in a file whose length is a multiple of the unit: the rest of the units it touches stays as it is. */
  patch(bytes: Buffer, offset: number): void {
    const start = offset - (offset % SCRATCH_UNIT);
    const length = Math.ceil((offset + bytes.length) / SCRATCH_UNIT) * SCRATCH_UNIT - start;
    const whole = this.#read(start, length);
    if (whole.length !== length) throw new LakebaseError('INTERNAL', 'a scratch file is patched beyond its end');
    bytes.copy(whole, offset - start);
    this.write(whole, start);
  }

  /** To a multiple of 16. */
  truncate(length: number): void {
    if (length % BLOCK !== 0) throw new LakebaseError('INTERNAL', `a scratch file is not cut to ${length} bytes`);
    ftruncateSync(this.#fd, length);
  }

  readAll(): Buffer {
    return this.#read(0, fstatSync(this.#fd).size);
  }

  #read(offset: number, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    let got = 0;
    for (let n = 1; n > 0 && got < length; got += n) n = readSync(this.#fd, bytes, got, length - got, offset + got);
    const read = bytes.subarray(0, got);
    return this.#cipher === null ? read : this.#cipher.decrypt(this.#inode, offset, read);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

export function writeScratchFile(cipher: ScratchCipher | null, path: string, bytes: Buffer | string): void {
  using file = new ScratchFile(cipher, path, 'w');
  file.write(typeof bytes === 'string' ? Buffer.from(bytes) : bytes, 0);
}

export function readScratchFile(cipher: ScratchCipher | null, path: string): Buffer {
  using file = new ScratchFile(cipher, path, 'r');
  return file.readAll();
}
