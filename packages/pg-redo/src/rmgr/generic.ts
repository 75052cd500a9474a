/** Generic WAL (generic_xlog.c), used by extensions: runs of bytes to be put at offsets. */
import { BLCKSZ } from '@lakebase/ids';
import { type DecodedBlock, type DecodedRecord, pdLower, pdUpper, setPageLsn } from '@lakebase/pg-format';
import { corrupt } from '../record-error.ts';

export function genericRedo(page: Buffer, record: DecodedRecord, blockId: number, _major: number): void {
  const block = record.blocks[blockId] as DecodedBlock;
  const { buf } = record;
  const end = block.dataOffset + block.dataLength;
  for (let at = block.dataOffset; at < end; ) {
    if (end - at < 4) throw corrupt(record, 'a run is cut');
    const offset = buf.readUInt16LE(at);
    const length = buf.readUInt16LE(at + 2);
    at += 4;
    if (length > end - at || offset + length > BLCKSZ) throw corrupt(record, `a run of ${length} bytes at ${offset}`);
    buf.copy(page, offset, at, at + length);
    at += length;
  }
  // The delta says nothing about the hole; the primary zeroed it as well.
  const lower = pdLower(page);
  const upper = pdUpper(page);
  if (lower > upper || upper > BLCKSZ) throw corrupt(record, `leaves page pointers ${lower} and ${upper}`);
  page.fill(0, lower, upper);
  setPageLsn(page, record.endLsn);
}
