/** One object of the catalog's copy in the object store: what it says of itself in clear, and its content, compressed and sealed.
 *  docs/formats/catalog-object.md. Form: a line of JSON (the header), 16 bytes of tag, the ciphertext.
 *  Invariants: the header is the associated data, so an object opens only under its own name, in its own installation, at its own place in the
 *  chain; a key seals one object; nothing of the content leaves before the tag was checked. */
import { createCipheriv, createDecipheriv, createHash } from 'node:crypto';
import { promisify } from 'node:util';
import { zstdCompress, zstdDecompress } from 'node:zlib';
import type { FreshDek } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';

const FORMAT = 'lakebase catalog 1';
const HEADER_BYTES_MAX = 4_096;
const TAG_BYTES = 16;
/** The key seals this object only. */
const NONCE = Buffer.alloc(12);
/** Of the content once it is decompressed: a damaged length must not take all memory. */
export const CONTENT_BYTES_MAX: number = 1024 * 1024 * 1024;
const OPTIONS = { authTagLength: TAG_BYTES };

const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);

export type ObjectKind = 'changes' | 'snapshot' | 'head';

export interface ObjectHeader {
  readonly format: string;
  /** Which installation it belongs to. */
  readonly installation: string;
  /** Of the object. */
  readonly name: string;
  readonly kind: ObjectKind;
  /** Place in the chain; of the head: of the snapshot it names. */
  readonly number: number;
  /** SHA-256 of the link before, hexadecimal; empty for the head and for the first link. */
  readonly previous: string;
  /** Number of the schema that the rows are of. */
  readonly schema: number;
  /** The key, wrapped; base64. */
  readonly key: string;
}

export type Described = Omit<ObjectHeader, 'format' | 'key'>;

export async function sealObject(described: Described, { dek, reference }: FreshDek, content: unknown): Promise<Buffer> {
  const header: ObjectHeader = { format: FORMAT, ...described, key: reference.toString('base64') };
  const line = Buffer.from(`${JSON.stringify(header)}\n`);
  const plain = await compress(Buffer.from(JSON.stringify(content)));
  const cipher = createCipheriv('aes-256-gcm', dek, NONCE, OPTIONS).setAAD(line);
  const sealed = cipher.update(plain);
  cipher.final();
  return Buffer.concat([line, cipher.getAuthTag(), sealed]);
}

/** Reads what stands there in clear; nothing of it may be trusted before {@link openObject}. Throws CORRUPT. */
export function readHeader(name: string, bytes: Buffer): ObjectHeader {
  const end = bytes.subarray(0, HEADER_BYTES_MAX).indexOf(0x0a);
  let header: Partial<ObjectHeader>;
  try {
    header = JSON.parse(bytes.subarray(0, Math.max(0, end)).toString('utf8')) as Partial<ObjectHeader>;
  } catch (cause) {
    throw new LakebaseError('CORRUPT', `object ${name} is no part of a catalog`, { cause });
  }
  if (header.format !== FORMAT)
    throw new LakebaseError(
      'UNSUPPORTED',
      `object ${name} has format ${String(header.format).slice(0, 100)}, which this version does not know`,
    );
  const sound =
    typeof header.installation === 'string' &&
    typeof header.previous === 'string' &&
    typeof header.key === 'string' &&
    Number.isSafeInteger(header.number) &&
    Number.isSafeInteger(header.schema) &&
    (header.kind === 'changes' || header.kind === 'snapshot' || header.kind === 'head');
  if (!sound || header.name !== name) throw new LakebaseError('CORRUPT', `object ${name} is not what its name says`);
  return header as ObjectHeader;
}

export async function openObject(name: string, bytes: Buffer, dek: Buffer): Promise<unknown> {
  const at = bytes.indexOf(0x0a) + 1;
  try {
    const decipher = createDecipheriv('aes-256-gcm', dek, NONCE, OPTIONS)
      .setAAD(bytes.subarray(0, at))
      .setAuthTag(bytes.subarray(at, at + TAG_BYTES));
    const plain = Buffer.concat([decipher.update(bytes.subarray(at + TAG_BYTES)), decipher.final()]);
    return JSON.parse((await decompress(plain, { maxOutputLength: CONTENT_BYTES_MAX })).toString('utf8'));
  } catch (cause) {
    throw new LakebaseError('CORRUPT', `object ${name} is damaged: it does not open`, { cause });
  }
}

export const hashOf = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
