/** pg-redo behind the interface that packages/layers reads pages with. One decoded record is reused: redo never keeps it. */
import type { Lsn } from '@lakebase/ids';
import type { PageRedo } from '@lakebase/layers';
import { decodeRecord, newDecodedRecord } from '@lakebase/pg-format';
import { applyHeapDelta, applySideDelta, deltaChildBlock, freeSpaceAfter, fsmAddress, fsmCategory, fsmSet, redo } from '@lakebase/pg-redo';

export function pageRedo(major: number): PageRedo {
  const record = newDecodedRecord();
  // Stored records carry their end; the start serves messages only and may be less than exact across a page boundary.
  const decode = (bytes: Buffer, lsn: Lsn) => decodeRecord(bytes, 0, bytes.length, Math.max(0, lsn - bytes.length) as Lsn, lsn, record);
  return {
    record: (page, bytes, blockId, lsn) => redo(page, decode(bytes, lsn), blockId, major),
    childBlock: deltaChildBlock,
    delta: (page, bytes, lsn, child) => (child === undefined ? applySideDelta(page, bytes, lsn) : applyHeapDelta(page, bytes, child)),
    freeSpaceAfter: (page, bytes, blockId, lsn) => freeSpaceAfter(decode(bytes, lsn), blockId, page, major),
    setFreeSpace: (page, heapBlock, free) => void fsmSet(page, fsmAddress(heapBlock).slot, fsmCategory(free)),
  };
}
