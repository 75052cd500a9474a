/** Writes one WAL object to a file, to be put from there. Memory: one frame. Compression and sealing run in the event loop, 256 KiB at a time (about
 *  a millisecond), with turns of others between. Nothing here is synced: the file is only a source, and useless after a crash. */
import { randomBytes } from 'node:crypto';
import { type FileHandle, open, rm } from 'node:fs/promises';
import { LakebaseError } from '@lakebase/base';
import { compressFrame, dropFrameContexts, giveBack, wipeAndGiveBack } from '@lakebase/bytes';
import { type FrameCipher, type ObjectKey, bindFrame, frameNonce, objectBinding } from '@lakebase/envelope';
import type { Lsn, ProjectUid, TimelineId } from '@lakebase/ids';
import { OBJECT_ID_BYTES, WAL_FRAME_BYTES, encodeEnd, encodeIndex, encodeWalObjectHeader } from './wal-object-format.ts';

/** A frame that zstd does not make smaller than this part is stored as it is. */
const WORTHWHILE = 0.9;

export interface WalObjectName {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  /** The key in the object store. */
  readonly name: string;
}

/** Bytes [start, end) of WAL, at most `max` at a time, at least one. The caller does not use the buffer again. */
export type WalSource = (from: Lsn, max: number) => Buffer | Promise<Buffer>;

/** Returns the size of the file. */
export async function writeWalObject(
  path: string,
  object: WalObjectName,
  range: { readonly start: Lsn; readonly end: Lsn },
  key: ObjectKey,
  source: WalSource,
): Promise<number> {
  const file = await open(path, 'w', 0o600);
  try {
    return await new Writer(file, object, range, key).write(source);
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  } finally {
    await file.close();
  }
}

class Writer {
  readonly #file: FileHandle;
  readonly #range: { readonly start: Lsn; readonly end: Lsn };
  readonly #header: Buffer;
  readonly #binding: Buffer;
  readonly #cipher: FrameCipher;
  readonly #frames: { stored: number; compressed: boolean }[] = [];
  #offset = 0;

  constructor(file: FileHandle, object: WalObjectName, range: { readonly start: Lsn; readonly end: Lsn }, key: ObjectKey) {
    this.#file = file;
    this.#range = range;
    const objectId = randomBytes(OBJECT_ID_BYTES);
    const { project, timeline } = object;
    const { algorithm, keyReference } = key;
    this.#header = encodeWalObjectHeader({ project, timeline, ...range, objectId, frameBytes: WAL_FRAME_BYTES, algorithm, keyReference });
    this.#binding = objectBinding(project, timeline, object.name, this.#header);
    this.#cipher = key.frames(objectId);
  }

  async write(source: WalSource): Promise<number> {
    const frame = Buffer.allocUnsafeSlow(WAL_FRAME_BYTES);
    try {
      let filled = 0;
      for (let at: number = this.#range.start; at < this.#range.end; ) {
        const piece = await source(at as Lsn, Math.min(WAL_FRAME_BYTES - filled, this.#range.end - at));
        if (piece.length === 0) throw new LakebaseError('INTERNAL', 'WAL ends before the object that is made of it');
        piece.copy(frame, filled);
        at += piece.length;
        filled += piece.length;
        wipeAndGiveBack(piece);
        if (filled < WAL_FRAME_BYTES && at < this.#range.end) continue;
        await this.#frame(frame.subarray(0, filled));
        filled = 0;
      }
    } finally {
      wipeAndGiveBack(frame);
      dropFrameContexts();
    }
    const n = this.#frames.length;
    const index = this.#cipher.seal(encodeIndex(this.#frames), frameNonce(n), bindFrame(this.#binding, n));
    const indexBytes = index.bytes.length + index.tag.length;
    const size = this.#offset + indexBytes + this.#header.length;
    await this.#append(index.bytes, index.tag, this.#header, encodeEnd(indexBytes, this.#header, size + 24));
    return this.#offset;
  }

  async #frame(plain: Buffer): Promise<void> {
    const small = compressFrame(plain);
    const compressed = small.length < plain.length * WORTHWHILE;
    const n = this.#frames.length;
    const stored = compressed ? small : plain;
    const sealed = this.#cipher.seal(stored, frameNonce(n), bindFrame(this.#binding, n));
    this.#frames.push({ stored: sealed.bytes.length, compressed });
    await this.#append(sealed.bytes, sealed.tag);
    if (sealed.bytes !== stored) giveBack(sealed.bytes); // the plain cipher returns what it was given
    wipeAndGiveBack(small);
  }

  async #append(...parts: Buffer[]): Promise<void> {
    const bytes = Buffer.concat(parts);
    for (let done = 0; done < bytes.length; )
      done += (await this.#file.write(bytes, done, bytes.length - done, this.#offset + done)).bytesWritten;
    this.#offset += bytes.length;
    giveBack(bytes);
  }
}
