/** Sequences (sequence.c seq_redo): the one page is always written anew. */
import { type DecodedRecord, initPage, pageAddItem, setPageLsn } from '@lakebase/pg-format';
import { corrupt, mainData } from '../record-error.ts';

const XLOG_SEQ_LOG = 0x00;
const SEQ_MAGIC = 0x1717;
/** xl_seq_rec: the RelFileLocator; the tuple follows. */
const HEADER_BYTES = 12;

export function sequenceRedo(page: Buffer, record: DecodedRecord, _blockId: number, _major: number): void {
  if ((record.info & 0xf0) !== XLOG_SEQ_LOG) throw corrupt(record, 'no such operation');
  const main = mainData(record, HEADER_BYTES + 1);
  initPage(page, 4);
  page.writeUInt32LE(SEQ_MAGIC, 8184);
  if (pageAddItem(page, record.buf, main + HEADER_BYTES, record.mainLength - HEADER_BYTES, 1, 0) === 0)
    throw corrupt(record, 'the tuple does not fit');
  setPageLsn(page, record.endLsn);
}
