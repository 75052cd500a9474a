/** Errors about one WAL record: they always name the resource manager, the operation and the LSN. */
import { LakebaseError } from '@lakebase/base';
import { formatLsn } from '@lakebase/ids';
import { type DecodedRecord, rmgrName } from '@lakebase/pg-format';

export const describeRecord = (record: DecodedRecord): string =>
  `WAL record at ${formatLsn(record.lsn)} (${rmgrName(record.rmid)} 0x${(record.info & 0xf0).toString(16).padStart(2, '0')})`;

export const corrupt = (record: DecodedRecord, what: string, cause?: unknown): LakebaseError =>
  new LakebaseError('CORRUPT', `${describeRecord(record)}: ${what}`, cause === undefined ? undefined : { cause });

export const unsupported = (record: DecodedRecord, what: string): LakebaseError =>
  new LakebaseError('UNSUPPORTED', `${describeRecord(record)}: ${what}`);

/** The main data, at least `need` bytes long: its offset in record.buf. */
export function mainData(record: DecodedRecord, need: number): number {
  if (record.mainLength < need) throw corrupt(record, `main data of ${record.mainLength} bytes, ${need} are needed`);
  return record.mainOffset;
}
