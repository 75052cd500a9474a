/** Memory for key material. Node puts a Buffer of up to 64 bytes, that of `allocUnsafeSlow` too, into V8's heap: the collector moves it, and what it leaves behind
 *  stays in memory until something else is put there, out of reach of whoever wipes the buffer (2026-11: a data key found an age after its revocation).
 *  The memory of an ArrayBuffer stays where it is. */

/** `bytes` zeros that are nobody else's and are never moved. */
export function offHeap(bytes: number): Buffer<ArrayBuffer> {
  return Buffer.from(new ArrayBuffer(bytes));
}

/** A copy that is never moved. The original is still the caller's to wipe. */
export function copyOffHeap(from: Uint8Array): Buffer<ArrayBuffer> {
  const copy = offHeap(from.length);
  copy.set(from);
  return copy;
}
