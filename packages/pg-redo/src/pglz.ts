/** pglz, Postgres's own LZ77 (pg_lzcompress.c). A control byte says for each of the next eight items whether it is a literal byte or a
 *  back reference: 4 bits length − 3 (15 means: add the next byte), 12 bits distance. */

/** Decompresses src[from, to) into out[0, length); true when both ends were met exactly. */
export function pglzDecompress(src: Uint8Array, from: number, to: number, out: Buffer, length: number): boolean {
  let s = from;
  let d = 0;
  while (s < to && d < length) {
    let control = src[s++] as number;
    for (let item = 0; item < 8 && s < to && d < length; item++) {
      if ((control & 1) === 0) out[d++] = src[s++] as number;
      else {
        if (s + 2 > to) return false;
        const low = src[s] as number;
        const distance = ((low & 0xf0) << 4) | (src[s + 1] as number);
        let n = (low & 0x0f) + 3;
        s += 2;
        if (n === 18) {
          if (s >= to) return false;
          n += src[s++] as number;
        }
        if (distance === 0 || distance > d) return false;
        const end = Math.min(d + n, length);
        // Byte by byte: source and target may overlap, which is how runs are coded.
        for (; d < end; d++) out[d] = out[d - distance] as number;
      }
      control >>= 1;
    }
  }
  return d === length && s === to;
}
