/** Framing of outgoing messages over a ByteWriter: the length is patched in when the body is done. */
import { ByteWriter } from '@lakebase/bytes';

/** Appends one message to `w`. */
export function appendMessage(w: ByteWriter, type: string, fill?: (w: ByteWriter) => void): void {
  w.u8(type.charCodeAt(0));
  const at = w.length;
  w.u32be(4);
  if (fill === undefined) return;
  fill(w);
  w.patchU32be(at, w.length - at);
}

export function message(type: string, fill?: (w: ByteWriter) => void, capacity = 64): Buffer {
  const w = new ByteWriter(capacity);
  appendMessage(w, type, fill);
  return w.finish();
}

/** A NUL inside a string would end it early and shift every field after it. */
export function checkedCString(value: string, what: string): string {
  if (value.includes('\0')) throw new TypeError(`${what} contains a NUL character`);
  return value;
}
