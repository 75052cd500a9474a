/** CRC-32C of a WAL record: the bytes after the header first, then the header up to xl_crc.
 *  Most records are under 200 bytes, where a call into native code costs more than the sum itself, so short runs are done here
 *  (slicing by eight) and long ones natively. */
import { crc32c } from '@lakebase/bytes';

/** Measured on 2 noisy cores, Node 24: from about this length on the native call wins. */
const NATIVE_FROM_BYTES = 512;

const T = Array.from({ length: 8 }, () => new Int32Array(256));
const [T0, T1, T2, T3, T4, T5, T6, T7] = T as [
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
];
for (let n = 0; n < 256; n++) {
  let c = n;
  for (let k = 0; k < 8; k++) c = (c & 1) !== 0 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
  T0[n] = c;
}
for (let k = 1; k < 8; k++)
  for (let n = 0; n < 256; n++) {
    const c = T[k - 1]?.[n] as number;
    (T[k] as Int32Array)[n] = (c >>> 8) ^ (T0[c & 255] as number);
  }

/** Continues the inverted CRC state `c` over buf[from, to). */
function update(c: number, buf: Uint8Array, from: number, to: number): number {
  let i = from;
  const bulk = to - 7;
  while (i < bulk) {
    c =
      (T7[((buf[i] as number) ^ c) & 255] as number) ^
      (T6[((buf[i + 1] as number) ^ (c >>> 8)) & 255] as number) ^
      (T5[((buf[i + 2] as number) ^ (c >>> 16)) & 255] as number) ^
      (T4[(buf[i + 3] as number) ^ (c >>> 24)] as number) ^
      (T3[buf[i + 4] as number] as number) ^
      (T2[buf[i + 5] as number] as number) ^
      (T1[buf[i + 6] as number] as number) ^
      (T0[buf[i + 7] as number] as number);
    i += 8;
  }
  for (; i < to; i++) c = (T0[((buf[i] as number) ^ c) & 255] as number) ^ (c >>> 8);
  return c;
}

/** The value xl_crc must have. The caller has checked that the record lies within `buf` and has at least a header. */
export function recordCrc(buf: Buffer, offset: number, length: number): number {
  const c =
    length < NATIVE_FROM_BYTES ? update(-1, buf, offset + 24, offset + length) : ~crc32c(buf.subarray(offset + 24, offset + length));
  return ~update(c, buf, offset, offset + 20) >>> 0;
}
