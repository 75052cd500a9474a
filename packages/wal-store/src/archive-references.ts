/** `wal/references` in the object store: newer wrappings of the keys of a timeline's WAL objects, known by object id. Written when the project's KEK
 *  changed, by whichever member does so first; the others find their work done.
 *  Invariants: replaced as a whole and only where nobody else did meanwhile; what it says can only fail to unwrap, never open other bytes. */
import { LakebaseError, isCode } from '@lakebase/base';
import { ByteReader, ByteWriter, crc32c } from '@lakebase/bytes';
import { KEY_REFERENCE_BYTES_MAX } from '@lakebase/envelope';
import { type Lsn, lsn } from '@lakebase/ids';
import { walReferencesObject } from '@lakebase/object-store';
import type { WalArchive, WalArchiveOptions } from './wal-archive.ts';
import { OBJECT_ID_BYTES } from './wal-object-format.ts';

/** 'LBWK' */
const MAGIC = 0x4c42574b;
const VERSION = 1;
const BYTES_MAX = 256 * 1024 * 1024;
const CONFLICTS_MAX = 8;

interface Content {
  /** Every complete object below `through` has an entry under this KEK version or a later one. */
  readonly kekVersion: number;
  readonly through: Lsn;
  readonly byId: ReadonlyMap<string, Buffer>;
}
const NOTHING: Content = { kekVersion: 0, through: lsn(0), byId: new Map() };

export class ArchiveReferences {
  readonly name: string;
  readonly #options: WalArchiveOptions;
  #content: Content = NOTHING;

  constructor(options: WalArchiveOptions) {
    this.#options = options;
    this.name = walReferencesObject(options.project, options.timeline, options.lineages?.at(-1)?.number);
  }

  /** As read last. */
  known(objectId: Buffer): Buffer | undefined {
    return this.#content.byId.get(objectId.toString('hex'));
  }

  /** Reads again. */
  async look(objectId: Buffer): Promise<Buffer | undefined> {
    await this.#read();
    return this.known(objectId);
  }

  /** Throws CORRUPT for what is damaged in the store, NOT_FOUND when there is nothing. What is known here stays. */
  async check(): Promise<void> {
    decode((await this.#options.store.get(this.name)).bytes);
  }

  async #read(): Promise<string | undefined> {
    const { store } = this.#options;
    try {
      const { bytes, tag } = await store.get(this.name);
      this.#content = decode(bytes);
      return tag;
    } catch (error) {
      if (!isCode(error, 'NOT_FOUND')) throw error;
      this.#content = NOTHING;
      return undefined;
    }
  }

  async rewrap(
    archive: WalArchive,
    through: Lsn,
    kekVersion: number,
    isOld: (reference: Buffer) => boolean,
    rewrap: (references: readonly Buffer[]) => Promise<readonly Buffer[]>,
  ): Promise<number> {
    for (let attempt = 0; ; attempt++) {
      const tag = await this.#read();
      const { byId, kekVersion: done, through: before } = this.#content;
      const current = done >= kekVersion;
      const ids: string[] = [];
      const old: Buffer[] = [];
      for await (const { header } of archive.trailers(through, current && before > this.#options.startLsn ? before : undefined)) {
        const id = header.objectId.toString('hex');
        const reference = byId.get(id) ?? header.keyReference;
        if (reference.length === 0 || !isOld(reference)) continue;
        ids.push(id);
        old.push(reference);
      }
      if (old.length === 0) return 0;
      const next = new Map(byId);
      for (const [i, reference] of (await rewrap(old)).entries()) next.set(ids[i] as string, reference);
      const content = { kekVersion: Math.max(done, kekVersion), through: lsn(Math.max(current ? before : 0, through)), byId: next };
      try {
        await this.#options.store.put(this.name, encode(content), tag === undefined ? { ifAbsent: true } : { ifMatch: tag });
        this.#content = content;
        return old.length;
      } catch (error) {
        const other = isCode(error, 'CONFLICT') || isCode(error, 'ALREADY_EXISTS') || isCode(error, 'NOT_FOUND');
        if (!other || attempt >= CONFLICTS_MAX) throw error;
      }
    }
  }
}

function encode(content: Content): Buffer {
  const w = new ByteWriter(64 + content.byId.size * 128).u32be(MAGIC).u16be(VERSION).u16be(0);
  w.u32be(content.kekVersion).u64be(content.through).u32be(content.byId.size);
  for (const [id, reference] of content.byId) w.bytes(Buffer.from(id, 'hex')).u16be(reference.length).bytes(reference);
  return w.u32be(crc32c(w.view())).finish();
}

function decode(bytes: Buffer): Content {
  if (bytes.length < 28 || bytes.length > BYTES_MAX || bytes.readUInt32BE(bytes.length - 4) !== crc32c(bytes.subarray(0, bytes.length - 4)))
    throw new LakebaseError('CORRUPT', 'the key references of WAL objects: wrong checksum');
  const r = new ByteReader(bytes, 0, bytes.length - 4);
  if (r.u32be() !== MAGIC) throw new LakebaseError('CORRUPT', 'the key references of WAL objects: wrong magic');
  const version = r.u16be();
  if (version !== VERSION) throw new LakebaseError('UNSUPPORTED', `the key references of WAL objects have format version ${version}`);
  r.skip(2);
  const kekVersion = r.u32be();
  const through = r.lsnBe();
  const n = r.u32be();
  const byId = new Map<string, Buffer>();
  for (let i = 0; i < n; i++) {
    const id = r.bytes(OBJECT_ID_BYTES).toString('hex');
    const length = r.u16be();
    if (length > KEY_REFERENCE_BYTES_MAX) throw new LakebaseError('CORRUPT', 'a key reference of a WAL object is too long');
    byId.set(id, Buffer.from(r.bytes(length)));
  }
  return { kekVersion, through, byId };
}
