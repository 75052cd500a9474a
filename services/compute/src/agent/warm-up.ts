/** Runs the code of a start once in a spare agent, so that the first real start does not pay for loading and compiling it.
 *  Nothing here touches storage or a compute; whatever fails is ignored. Stops at once when a compute is asked for. */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type StartBundle, decodeStartBundle, encodeStartBundle } from '@lakebase/api';
import { BLCKSZ, lsn } from '@lakebase/ids';
import { crc32c } from '@lakebase/bytes';
import { CONTROL_FILE_BYTES, CONTROL_FILE_PATH } from '@lakebase/pg-format';
import { ScratchCipher } from '../scratch-cipher.ts';
import { layOut } from './data-directory.ts';

const RELATIONS = 1_200;
const ROUNDS = 3;

export async function warmUp(where: { readonly directory: string; readonly url: string }, wanted: () => boolean): Promise<void> {
  for (let round = 0; round < ROUNDS && !wanted(); round++) {
    await fetch(where.url)
      .then((r) => r.text())
      .catch(() => {});
    if (wanted()) return;
    let directory: string | undefined;
    try {
      directory = await mkdtemp(join(where.directory, 'w'));
      layOut({
        pgdata: join(directory, 'pgdata'),
        mapPath: join(directory, 'map'),
        bundle: decodeStartBundle(encodeStartBundle(syntheticBundle())),
        conf: { postgresql: '', hba: '', ident: '' },
        cipher: new ScratchCipher(),
      });
    } catch {
      // a warm-up that fails costs time later, nothing else
    } finally {
      if (directory !== undefined) await rm(directory, { recursive: true, force: true }).catch(() => {});
    }
  }
}

function syntheticBundle(): StartBundle {
  const tag = (i: number) => ({ spc: 1663, db: 5, rel: 1_000 + i, fork: 0 as const });
  return {
    cleanSuspend: false,
    systemId: 1n,
    lsn: lsn(0x1500000),
    prevRecordLsn: lsn(0x14fff00),
    major: 18,
    checkpoint: Buffer.alloc(88),
    files: [
      { path: CONTROL_FILE_PATH, bytes: emptyControlFile() },
      { path: 'PG_VERSION', bytes: Buffer.from('18\n') },
    ],
    relations: Array.from({ length: RELATIONS }, (_, i) => ({ tag: tag(i), nblocks: 4 })),
    bootPages: Array.from({ length: 40 }, (_, i) => ({ tag: tag(i), block: i % 4, bytes: Buffer.alloc(BLCKSZ) })),
  };
}

/** A pg_control of version 1800 that only passes its checksum. */
function emptyControlFile(): Buffer {
  const bytes = Buffer.alloc(CONTROL_FILE_BYTES);
  bytes.writeUInt32LE(1_800, 8);
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, 292)), 292);
  return bytes;
}
