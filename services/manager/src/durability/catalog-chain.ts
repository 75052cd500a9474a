/** The chain of objects that holds the catalog in the object store, without knowing what is in it: links by number, each with the hash of the one
 *  before, and a head that names snapshots to begin from. docs/formats/catalog-object.md
 *  Invariants: a link is written once, under a name that only one writer can take; nothing is found by a list; a gap, a link of another chain or a
 *  damaged one is an error, never the end. */
import { LakebaseError, isCode } from '@lakebase/base';
import { CATALOG_HEAD_OBJECT, type CallOptions, type ObjectStore, ReplacedObject, catalogLinkObject } from '@lakebase/object-store';
import { type Described, type ObjectHeader, hashOf, openObject, readHeader, sealObject } from './catalog-object.ts';
import type { RootKeys } from './root-keys.ts';

/** A link of the chain; hash of its bytes, hexadecimal. */
export interface Position {
  readonly number: number;
  readonly hash: string;
}
export interface Link extends Position {
  readonly header: ObjectHeader;
  readonly content: unknown;
}
export interface SealedLink extends Position {
  readonly bytes: Buffer;
}
export interface Head {
  /** Numbers of snapshots that can be begun from, newest first. */
  readonly snapshots: readonly number[];
  /** Links up to here are removed. */
  readonly removed: number;
}

export const NOWHERE: Position = { number: 0, hash: '' };
/** Links asked for at a time. */
const WINDOW = 8;

export interface ChainOptions {
  readonly store: ObjectStore;
  readonly keys: RootKeys;
  readonly installation: string;
}

export class CatalogChain {
  readonly #o: ChainOptions;
  readonly #head: ReplacedObject;

  constructor(options: ChainOptions) {
    this.#o = options;
    this.#head = new ReplacedObject(options.store, CATALOG_HEAD_OBJECT);
  }

  get location(): string {
    return this.#o.store.location;
  }

  async seal(after: Position, kind: 'changes' | 'snapshot', schema: number, content: unknown): Promise<SealedLink> {
    const number = after.number + 1;
    const bytes = await this.#seal({ name: catalogLinkObject(number), kind, number, previous: after.hash, schema }, content);
    return { number, hash: hashOf(bytes), bytes };
  }

  /** ALREADY_EXISTS when the place is taken. */
  async put(link: SealedLink, options: CallOptions): Promise<void> {
    await this.#o.store.put(catalogLinkObject(link.number), link.bytes, { ...options, ifAbsent: true });
  }

  /** Hash of what has this place; undefined: nothing. */
  async hashAt(number: number, options: CallOptions = {}): Promise<string | undefined> {
    const bytes = await this.#get(catalogLinkObject(number), options);
    return bytes === undefined ? undefined : hashOf(bytes);
  }

  async head(options: CallOptions = {}): Promise<Head | undefined> {
    const bytes = await this.#get(CATALOG_HEAD_OBJECT, options);
    return bytes === undefined ? undefined : ((await this.#open(CATALOG_HEAD_OBJECT, bytes)).content as Head);
  }

  async putHead(head: Head, options: CallOptions): Promise<void> {
    const described = { name: CATALOG_HEAD_OBJECT, kind: 'head', number: head.snapshots[0] ?? 0, previous: '', schema: 0 } as const;
    await this.#head.put(await this.#seal(described, head), options);
  }

  async remove(from: number, through: number): Promise<void> {
    for (let at = from; at <= through; at += 500)
      await this.#o.store.delete(Array.from({ length: Math.min(500, through - at + 1) }, (_, i) => catalogLinkObject(at + i)));
  }

  /** The links behind `after`, in order. With an empty hash in `after` what the first of them follows is not looked at. */
  async *links(after: Position, options: CallOptions = {}): AsyncGenerator<Link> {
    let before = after;
    for (;;) {
      const numbers = Array.from({ length: WINDOW }, (_, i) => before.number + 1 + i);
      const found = await Promise.all(numbers.map((n) => this.#get(catalogLinkObject(n), options)));
      for (const [i, bytes] of found.entries()) {
        const name = catalogLinkObject(numbers[i] as number);
        if (bytes === undefined) {
          const beyond = found.findIndex((b, at) => at > i && b !== undefined);
          if (beyond < 0) return;
          throw new LakebaseError(
            'CORRUPT',
            `object ${name} of the catalog is missing in ${this.location}, though ${catalogLinkObject(numbers[beyond] as number)} is there: bring it back (a former version, a copy of the store)`,
          );
        }
        const link = await this.#open(name, bytes);
        if (link.number !== before.number + 1 || (before.hash !== '' && link.header.previous !== before.hash))
          throw new LakebaseError('CONFLICT', `object ${name} of the catalog does not follow the one before: it is of another chain`);
        yield link;
        before = link;
      }
    }
  }

  async #seal(described: Omit<Described, 'installation'>, content: unknown): Promise<Buffer> {
    const key = await this.#o.keys.take();
    try {
      return await sealObject({ installation: this.#o.installation, ...described }, key, content);
    } finally {
      key.dek.fill(0);
    }
  }

  async #open(name: string, bytes: Buffer): Promise<Link> {
    const header = readHeader(name, bytes);
    if (header.installation !== this.#o.installation)
      throw new LakebaseError(
        'CONFIG',
        `the object store ${this.location} holds the catalog of installation ${header.installation}, and the installation secret here is that of ${this.#o.installation}: put that installation's secret file back, or use an empty object store for a new installation`,
      );
    const dek = await this.#o.keys.open(Buffer.from(header.key, 'base64'));
    try {
      return { number: header.number, hash: hashOf(bytes), header, content: await openObject(name, bytes, dek) };
    } finally {
      dek.fill(0);
    }
  }

  async #get(name: string, options: CallOptions): Promise<Buffer | undefined> {
    try {
      return (await this.#o.store.get(name, options)).bytes;
    } catch (error) {
      if (isCode(error, 'NOT_FOUND')) return undefined;
      throw error;
    }
  }
}
