/** Where the objects of a project (layers, index, suspend state, boot set) get their keys: `ProjectKeys` of packages/keys in a service, the
 *  keys that came with a job in a worker thread. */
import { type CipherProvider, decodeDekReference } from '@lakebase/envelope';

export interface ObjectKeys extends CipherProvider {
  /** Waits until {@link CipherProvider.create} has at least `count` fresh keys. */
  reserve(count: number): Promise<void>;
  /** Waits until {@link CipherProvider.restore} can open all of these. */
  load(references: readonly Buffer[]): Promise<void>;
}

/** References are kept as base64 in JSON. */
export const keyToText = (reference: Buffer): string => reference.toString('base64');
export const keyFromText = (text: string): Buffer => Buffer.from(text, 'base64');

/** Of a fresh key: what its object's descriptor says of its age. Nothing where encryption is switched off. */
export const bornOf = (reference: Buffer): { readonly born?: number } =>
  reference.length === 0 ? {} : { born: decodeDekReference(reference).kekVersion };
