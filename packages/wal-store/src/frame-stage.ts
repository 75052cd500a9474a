/** The frames that wait to be written: perhaps a context frame, then the payload of the open DATA frame, in one buffer that grows as needed.
 *  Invariant: the payload stands where its sealed frame will stand, so sealing and writing copy nothing. */
import type { Lsn } from '@lakebase/ids';
import type { RecordBoundary } from './record-boundary.ts';
import { BOUNDARY_STATE_BYTES } from './record-boundary.ts';
import { FRAME_CONTEXT, FRAME_DATA, FRAME_HEADER_BYTES, FRAME_PAYLOAD_MAX, alignFrame } from './segment-format.ts';
import type { SegmentFile } from './segment-file.ts';

const FIRST_BYTES = 32 * 1024;
const CONTEXT_FRAME_BYTES = alignFrame(FRAME_HEADER_BYTES + BOUNDARY_STATE_BYTES);

export class FrameStage {
  #buffer = Buffer.allocUnsafe(0);
  /** Bytes of a sealed context frame before the open one. */
  #base = 0;
  #payload = 0;
  #lsn: Lsn = 0 as Lsn;

  get payload(): number {
    return this.#payload;
  }
  get empty(): boolean {
    return this.#payload === 0 && this.#base === 0;
  }
  get room(): number {
    return FRAME_PAYLOAD_MAX - this.#payload;
  }

  /** WAL at `at`; fits {@link room}. */
  add(at: Lsn, piece: Buffer): void {
    if (this.#payload === 0) this.#lsn = at;
    const used = this.#base + FRAME_HEADER_BYTES + this.#payload;
    const need = used + piece.length + 8;
    if (need > this.#buffer.length) {
      const grown = Buffer.allocUnsafeSlow(Math.min(Math.max(need, 2 * this.#buffer.length, FIRST_BYTES), need + FRAME_PAYLOAD_MAX));
      this.#buffer.copy(grown, 0, 0, used);
      this.#buffer = grown;
    }
    piece.copy(this.#buffer, used);
    this.#payload += piece.length;
  }

  /** The first frame of a segment; goes out with the next write. */
  addContext(file: SegmentFile, boundary: RecordBoundary): void {
    if (this.#buffer.length < CONTEXT_FRAME_BYTES) this.#buffer = Buffer.allocUnsafeSlow(FIRST_BYTES);
    const state = boundary.serialize();
    state.copy(this.#buffer, FRAME_HEADER_BYTES);
    this.#base = file.seal(this.#buffer, 0, FRAME_CONTEXT, boundary.position, state.length);
  }

  /** Seals the open frame and writes everything. */
  write(file: SegmentFile): void {
    if (this.empty) return;
    const frameOffset = file.offset + this.#base;
    let length = this.#base;
    if (this.#payload > 0) length += file.seal(this.#buffer, this.#base, FRAME_DATA, this.#lsn, this.#payload);
    file.write(this.#buffer, length);
    if (this.#payload > 0) file.addToIndex(this.#lsn, frameOffset);
    this.drop();
  }

  drop(): void {
    this.#base = 0;
    this.#payload = 0;
  }

  release(): void {
    if (this.empty) this.#buffer = Buffer.allocUnsafe(0);
  }

  wipe(): void {
    this.#buffer.fill(0);
  }
}
