/** Names of layer files: `delta-<start>-<end>-<number>-g<generation>.layer`, all hexadecimal and of fixed width, so that a listing sorts by LSN.
 *  The number is unique in a timeline and grows; files of one maintenance job share its number and have a part. */
import { LakebaseError } from '@lakebase/base';
import { type Lsn, lsnHigh, lsnLow } from '@lakebase/ids';
import type { LayerKind } from './layer-format.ts';

const NAME = /^(?:delta|image)-[0-9a-f]{16}-[0-9a-f]{16}-([0-9a-f]{8})\.[0-9a-f]{4}-g[0-9a-f]{8}\.layer$/;
const hex = (n: number, width: number): string => n.toString(16).padStart(width, '0');
const lsnHex = (l: Lsn): string => hex(lsnHigh(l), 8) + hex(lsnLow(l), 8);

export function layerName(kind: LayerKind, start: Lsn, end: Lsn, number: number, part: number, generation: number): string {
  return `${kind}-${lsnHex(start)}-${lsnHex(end)}-${hex(number, 8)}.${hex(part, 4)}-g${hex(generation, 8)}.layer`;
}

export const isLayerName = (name: string): boolean => NAME.test(name);

export function layerNumber(name: string): number {
  const match = NAME.exec(name);
  if (match === null) throw new LakebaseError('CORRUPT', `not the name of a layer file: ${JSON.stringify(name.slice(0, 120))}`);
  return Number.parseInt(match[1] as string, 16);
}
