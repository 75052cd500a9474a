/** Makes WAL records for tests, byte by byte. No CRC: redo does not look at it. */

export interface BlockFields {
  readonly id: number;
  readonly fork?: number;
  readonly rel?: number;
  readonly block?: number;
  readonly willInit?: boolean;
  readonly data?: Buffer;
  readonly image?: { length: number; holeOffset: number; flags: number; holeLength?: number };
}

export function blockHeader(b: BlockFields): Buffer {
  const out = Buffer.alloc(40);
  let at = 4;
  out[0] = b.id;
  out[1] = (b.fork ?? 0) | (b.image === undefined ? 0 : 0x10) | (b.data === undefined ? 0 : 0x20) | (b.willInit === true ? 0x40 : 0);
  out.writeUInt16LE(b.data?.length ?? 0, 2);
  if (b.image !== undefined) {
    out.writeUInt16LE(b.image.length, at);
    out.writeUInt16LE(b.image.holeOffset, at + 2);
    out[at + 4] = b.image.flags;
    at += 5;
    if (b.image.holeLength !== undefined) {
      out.writeUInt16LE(b.image.holeLength, at);
      at += 2;
    }
  }
  out.writeUInt32LE(1663, at);
  out.writeUInt32LE(5, at + 4);
  out.writeUInt32LE(b.rel ?? 16_384, at + 8);
  out.writeUInt32LE(b.block ?? 0, at + 12);
  return out.subarray(0, at + 16);
}

export function makeRecord(rmid: number, info: number, body: Buffer, xid = 0): Buffer {
  const record = Buffer.alloc(24 + body.length);
  record.writeUInt32LE(record.length, 0);
  record.writeUInt32LE(xid, 4);
  record[16] = info;
  record[17] = rmid;
  body.copy(record, 24);
  return record;
}

/** A record of blocks (without images) and main data. */
export function simpleRecord(fields: { rmid: number; info: number; xid?: number; blocks?: readonly BlockFields[]; main?: Buffer }): Buffer {
  const blocks = fields.blocks ?? [];
  const main = fields.main ?? Buffer.alloc(0);
  const header = Buffer.alloc(5);
  header[0] = 254;
  header.writeUInt32LE(main.length, 1);
  return makeRecord(
    fields.rmid,
    fields.info,
    Buffer.concat([...blocks.map(blockHeader), header, ...blocks.map((b) => b.data ?? Buffer.alloc(0)), main]),
    fields.xid ?? 0,
  );
}
