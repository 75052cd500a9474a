/** Receives page service frames for a client, each payload in memory of its own, without copying large ones: the socket reads into {@link space}.
 *  Invariants: no length is believed before it is checked; a failed receiver is poisoned; a payload is never touched again after it was handed out. */
import { FRAME_HEADER_BYTES, type Frame, decodeFrameHeader } from './page-service.ts';

/** What lies whole in here is copied out of it; the rest of a larger frame is read into its own place. */
const SCRATCH_BYTES = 65_536;

interface Body {
  readonly frame: Frame;
  used: number;
}

export class FrameReceiver {
  readonly #maxBytes: number;
  readonly #onFrame: (frame: Frame) => void;
  readonly #allocate: (bytes: number) => Buffer;
  readonly #scratch: Buffer = Buffer.allocUnsafeSlow(SCRATCH_BYTES);
  #used = 0;
  #body: Body | undefined;
  #failed: Error | undefined;

  constructor(maxBytes: number, onFrame: (frame: Frame) => void, allocate = (bytes: number): Buffer => Buffer.allocUnsafeSlow(bytes)) {
    this.#maxBytes = maxBytes;
    this.#onFrame = onFrame;
    this.#allocate = allocate;
  }

  /** Where the next bytes go; never empty. */
  get space(): Buffer {
    return this.#body === undefined ? this.#scratch.subarray(this.#used) : this.#body.frame.payload.subarray(this.#body.used);
  }

  /** The first `n` bytes of {@link space} were filled. */
  filled(n: number): void {
    if (this.#failed !== undefined) throw this.#failed;
    const body = this.#body;
    if (body === undefined) {
      this.#used += n;
      this.#split();
      return;
    }
    body.used += n;
    if (body.used < body.frame.payload.length) return;
    this.#body = undefined;
    this.#onFrame(body.frame);
  }

  #split(): void {
    const scratch = this.#scratch;
    let at = 0;
    while (this.#body === undefined && this.#used - at >= FRAME_HEADER_BYTES) {
      const { length, type, id } = this.#header(at);
      at += FRAME_HEADER_BYTES;
      const payload = this.#allocate(length);
      const here = Math.min(length, this.#used - at);
      scratch.copy(payload, 0, at, at + here);
      at += here;
      if (here < length) this.#body = { frame: { type, id, payload }, used: here };
      else this.#onFrame({ type, id, payload });
    }
    scratch.copyWithin(0, at, this.#used);
    this.#used -= at;
  }

  #header(at: number): ReturnType<typeof decodeFrameHeader> {
    try {
      return decodeFrameHeader(this.#scratch, at, this.#maxBytes);
    } catch (error) {
      this.#failed = error as Error;
      throw error;
    }
  }
}
