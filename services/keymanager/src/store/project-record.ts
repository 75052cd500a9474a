/** What is stored of one project: docs/formats/key-store.md. Wrapped KEKs only, never a key.
 *  Invariants: KEK versions are 1, 2, … without gaps; exactly one is CURRENT, the highest, unless the project is shredded (then none, and no
 *  wrapped key is left); `revision` grows by one with every replacement of the file. */
import { createHash } from 'node:crypto';
import type { KmsKeyConfig, ReEncryptionReport, ShredReport } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { type ProjectUid, parseProjectUid } from '@lakebase/ids';
import type { WrappedKey } from '@lakebase/kms';
import type { KeyHealth } from '../health.ts';

const FORMAT = 'lakebase key record 1';
export const RECORD_BYTES_MAX = 16 * 1024 * 1024;

export interface KekRecord {
  readonly version: number;
  readonly createTime: string;
  readonly state: 'CURRENT' | 'OLD' | 'DESTROYED';
  /** null once destroyed. */
  readonly wrapped: StoredWrapping | null;
  /** What wrapped it last, also after it was destroyed. */
  readonly keyId: string;
  readonly keyVersion: string;
  /** Hexadecimal; tells the right KEK from a wrong one that a KMS answers with. HKDF of the KEK: says nothing about it. */
  readonly check: string;
  /** DEKs it may have wrapped: counted in steps, so that a restart never counts too few. */
  readonly wrapsReserved: number;
}
export interface StoredWrapping {
  /** base64 */
  readonly blob: string;
  readonly algorithm: string;
}

export type ServiceProgress = Omit<ReEncryptionReport, 'service' | 'below'> & { readonly time: string };
export interface ReEncryptionRecord {
  readonly below: number;
  readonly requestTime: string;
  readonly actor: string;
  readonly finishTime: string | null;
  readonly services: Readonly<Record<string, ServiceProgress>>;
}

export interface ProjectRecord {
  readonly project: ProjectUid;
  readonly account: string;
  readonly configurationId: string | null;
  readonly kms: KmsKeyConfig;
  readonly graceSeconds: number;
  readonly createTime: string;
  readonly revision: number;
  readonly keks: readonly KekRecord[];
  readonly health: KeyHealth;
  readonly lastSuccess: string | null;
  /** By service: it holds no reference of a KEK version below. */
  readonly retired: Readonly<Record<string, number>>;
  /** The last request to rewrite old objects; absent: none ever. Of services only those that have finished: the others report again. */
  readonly reEncryption?: ReEncryptionRecord;
  readonly shred: ShredReport | null;
  /** Last audit line when this was written: the log may not be shorter, nor another one. */
  readonly audit: { readonly sequence: number; readonly hash: string };
}

export const wrappedKeyOf = (kek: KekRecord): WrappedKey | undefined =>
  kek.wrapped === null
    ? undefined
    : { blob: Buffer.from(kek.wrapped.blob, 'base64'), algorithm: kek.wrapped.algorithm, keyId: kek.keyId, keyVersion: kek.keyVersion };

export const currentKek = (record: ProjectRecord): KekRecord | undefined => record.keks.find((k) => k.state === 'CURRENT');

export function encodeRecord(record: ProjectRecord): Buffer {
  const body = JSON.stringify(record);
  return Buffer.from(`${JSON.stringify({ format: FORMAT, sha256: sha256(body) })}\n${body}\n`);
}

export function decodeRecord(bytes: Buffer, project: ProjectUid): ProjectRecord {
  const corrupt = (what: string): LakebaseError =>
    new LakebaseError(
      'CORRUPT',
      `key record of project ${project}: ${what}; restore the file from a backup of the key manager's directory`,
    );
  const [head = '', body = '', end] = bytes.toString('utf8').split('\n');
  let parsed: unknown;
  try {
    const { format, sha256: sum } = JSON.parse(head) as { format?: string; sha256?: string };
    if (format !== FORMAT) throw corrupt(`format ${String(format)} is not known to this version`);
    if (sum !== sha256(body) || end !== '') throw corrupt('its checksum is wrong');
    parsed = JSON.parse(body);
  } catch (error) {
    throw error instanceof LakebaseError ? error : corrupt('it is not whole');
  }
  const record = parsed as ProjectRecord;
  if (parseProjectUid(record.project) !== project) throw corrupt(`it is the record of project ${record.project}`);
  const problem = problemOf(record);
  if (problem !== undefined) throw corrupt(problem);
  return record;
}

/** The invariants above; checked after reading and before writing. */
export function problemOf(record: ProjectRecord): string | undefined {
  if (record.keks.length === 0 || record.keks.some((k, i) => k.version !== i + 1)) return 'KEK versions are not 1, 2, …';
  for (const kek of record.keks) {
    if ((kek.state === 'DESTROYED') !== (kek.wrapped === null))
      return `KEK ${kek.version} is ${kek.state}, which does not fit its wrapping`;
    if (kek.state === 'CURRENT' && kek.version !== record.keks.length) return 'a KEK that is not the newest is CURRENT';
  }
  const dead = record.health.state === 'SHREDDED';
  if (dead !== (currentKek(record) === undefined) || dead !== (record.shred !== null)) return 'its state does not fit its keys';
  if (dead && record.keks.some((k) => k.wrapped !== null)) return 'it is shredded but holds wrapped keys';
  return undefined;
}

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');
