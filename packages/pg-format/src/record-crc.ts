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

/** What 20 more bytes, those of the header, make of a CRC state, by its bytes: so that body and header are summed side by side. */
const SHIFT_BYTES = 20;
const [S0, S1, S2, S3] = Array.from({ length: 4 }, (_, k) => Int32Array.from({ length: 256 }, (_, n) => shifted(n << (8 * k)))) as [
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
];
function shifted(state: number): number {
  let c = state;
  for (let i = 0; i < SHIFT_BYTES; i++) c = (T0[c & 255] as number) ^ (c >>> 8);
  return c;
}

/** Continues `c` over the eight bytes whose little-endian halves are `low` and `high`. */
const eight = (c: number, low: number, high: number): number => {
  const a = low ^ c;
  return (
    (T7[a & 255] as number) ^
    (T6[(a >>> 8) & 255] as number) ^
    (T5[(a >>> 16) & 255] as number) ^
    (T4[a >>> 24] as number) ^
    (T3[high & 255] as number) ^
    (T2[(high >>> 8) & 255] as number) ^
    (T1[(high >>> 16) & 255] as number) ^
    (T0[high >>> 24] as number)
  );
};
const four = (c: number, word: number): number => {
  const a = word ^ c;
  return (T3[a & 255] as number) ^ (T2[(a >>> 8) & 255] as number) ^ (T1[(a >>> 16) & 255] as number) ^ (T0[a >>> 24] as number);
};

/** {@link recordCrc} by words, for a caller that has a view of the same bytes as `buf`. */
export function recordCrcByView(buf: Buffer, view: DataView, offset: number, length: number): number {
  let c = -1;
  if (length < NATIVE_FROM_BYTES) {
    const end = offset + length;
    let i = offset + 24;
    for (; i + 8 <= end; i += 8) c = eight(c, view.getInt32(i, true), view.getInt32(i + 4, true));
    if (i + 4 <= end) {
      c = four(c, view.getInt32(i, true));
      i += 4;
    }
    for (; i < end; i++) c = (T0[((buf[i] as number) ^ c) & 255] as number) ^ (c >>> 8);
  } else c = ~crc32c(buf.subarray(offset + 24, offset + length));
  let h = eight(0, view.getInt32(offset, true), view.getInt32(offset + 4, true));
  h = eight(h, view.getInt32(offset + 8, true), view.getInt32(offset + 12, true));
  h = four(h, view.getInt32(offset + 16, true));
  return (
    ~((S0[c & 255] as number) ^ (S1[(c >>> 8) & 255] as number) ^ (S2[(c >>> 16) & 255] as number) ^ (S3[c >>> 24] as number) ^ h) >>> 0
  );
}

/** The value xl_crc must have. The caller has checked that the record lies within `buf` and has at least a header. */
export function recordCrc(buf: Buffer, offset: number, length: number): number {
  const c =
    length < NATIVE_FROM_BYTES ? update(-1, buf, offset + 24, offset + length) : ~crc32c(buf.subarray(offset + 24, offset + length));
  return ~update(c, buf, offset, offset + 20) >>> 0;
}
