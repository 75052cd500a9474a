/** LZ4 block format, decoding only (lz4_Block_format.md). A sequence is a token (literal length, match length − 4, 4 bits each, 15 means:
 *  more bytes follow), the literals, a 16-bit little-endian distance and the rest of the match length. The last sequence has literals only. */

/** Decompresses src[from, to) into out[0, length); true when both ends were met exactly. */
export function lz4DecompressBlock(src: Uint8Array, from: number, to: number, out: Buffer, length: number): boolean {
  let s = from;
  let d = 0;
  while (s < to) {
    const token = src[s++] as number;
    let literals = token >>> 4;
    if (literals === 15) {
      let more: number;
      do {
        if (s >= to) return false;
        more = src[s++] as number;
        literals += more;
      } while (more === 255);
    }
    if (literals > to - s || literals > length - d) return false;
    for (const end = d + literals; d < end; ) out[d++] = src[s++] as number;
    if (s === to) return d === length;
    if (to - s < 2) return false;
    const distance = (src[s] as number) | ((src[s + 1] as number) << 8);
    s += 2;
    if (distance === 0 || distance > d) return false;
    let match = (token & 15) + 4;
    if (match === 19) {
      let more: number;
      do {
        if (s >= to) return false;
        more = src[s++] as number;
        match += more;
      } while (more === 255);
    }
    if (match > length - d) return false;
    for (const end = d + match; d < end; d++) out[d] = out[d - distance] as number;
  }
  return false;
}
