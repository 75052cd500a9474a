/** A sealed object (timeline index, suspend state, boot set …) for a person. It carries no identity of its own: project and timeline come from its path
 *  or from the caller, and it opens only under the right ones. */
import { type InspectReport, decodeBootSet, decodeSuspendState } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { type Lsn, formatLsn, relPath } from '@lakebase/ids';
import { INDEX_MAGIC, type TimelineIndex, keyFromText, openObject, parseObject } from '@lakebase/layers';
import { type ByteSource, readWhole } from './byte-source.ts';
import type { OpenWith } from './layer-check.ts';
import { NO_KEYS, ReportBuilder, describeAlgorithm, describeReference } from './report.ts';

export const SUSPEND_MAGIC = 0x4c425350;
export const BOOT_MAGIC = 0x4c424250;
/** A boot set has 4,096 blocks at most; a suspend state is bounded by its route; an index by how many layers a timeline can have. */
const SEALED_BYTES_MAX = 512 << 20;

/** Its content is the pageserver's own affair: which blocks were read lately. */
const HEAT_MAGIC = 0x4c424854;

const KINDS: Readonly<Record<number, string>> = {
  [HEAT_MAGIC]: 'heat map',
  [INDEX_MAGIC]: 'timeline index',
  [SUSPEND_MAGIC]: 'suspend state',
  [BOOT_MAGIC]: 'boot set',
};
export const isSealedMagic = (magic: number): boolean => KINDS[magic] !== undefined;

export interface Identity {
  readonly project: string;
  readonly timeline: string;
}
export interface SealedReportOptions {
  readonly identity?: Identity | undefined;
  readonly openWith?: OpenWith | undefined;
  readonly limit?: number | undefined;
}

/** Checks and opens it; `name` is what it was sealed under. Throws CORRUPT. */
export async function openSealed(source: ByteSource, magic: number, identity: Identity, { keys, reference }: OpenWith): Promise<Buffer> {
  const bytes = await readWhole(source, SEALED_BYTES_MAX);
  const used = reference ?? Buffer.from(parseObject(magic, bytes, source.name).keyReference);
  if (used.length > 0) await keys.load([used]);
  return openObject(magic, { ...identity, name: source.name }, bytes, keys, source.name, used);
}

export async function reportSealed(source: ByteSource, magic: number, o: SealedReportOptions = {}): Promise<InspectReport> {
  const bytes = await readWhole(source, SEALED_BYTES_MAX);
  const sealed = parseObject(magic, bytes, source.name);
  const report = new ReportBuilder(KINDS[magic] ?? 'sealed object', source.name, o.limit)
    .field('bytes', `${bytes.length} (payload ${sealed.stored.length})`)
    .field('cipher', describeAlgorithm(sealed.algorithm))
    .field('key as written', describeReference(sealed.keyReference))
    .field('object id', sealed.objectId.toString('hex'));
  if (o.openWith === undefined) return report.note(NO_KEYS).done();
  if (o.identity === undefined)
    return report.note('its path does not say which project and timeline it belongs to, and it opens only under these').done();
  try {
    const payload = await openSealed(source, magic, o.identity, o.openWith);
    if (magic === INDEX_MAGIC) indexContents(report, parseIndex(payload, source.name));
    else if (magic === SUSPEND_MAGIC) suspendContents(report, payload);
    else if (magic === BOOT_MAGIC) bootContents(report, payload);
    else report.field('opened', `${payload.length} bytes`);
  } catch (error) {
    report.damage(error);
  }
  return report.done();
}

export function parseIndex(payload: Buffer, name: string): TimelineIndex {
  try {
    const index = JSON.parse(payload.toString('utf8')) as TimelineIndex;
    if (!Array.isArray(index.layers)) throw new Error('it has no list of layers');
    return index;
  } catch (cause) {
    throw new LakebaseError('CORRUPT', `index ${name}: ${(cause as Error).message}`, { cause });
  }
}

const LSN_FIELDS = /Lsn$/;
const OBJECT_FIELDS = ['suspend', 'bootSet', 'heat'];

/** Fields as they are, so that one this version does not know is shown as well. */
function indexContents(report: ReportBuilder, index: TimelineIndex): void {
  for (const [name, value] of Object.entries(index)) {
    if (name === 'layers' || OBJECT_FIELDS.includes(name)) continue;
    report.field(
      name,
      LSN_FIELDS.test(name) && typeof value === 'number'
        ? formatLsn(value as Lsn)
        : typeof value === 'object'
          ? JSON.stringify(value)
          : String(value),
    );
  }
  const layers = [...index.layers].sort((a, b) => b.endLsn - a.endLsn);
  report.table(
    `${layers.length} layers, newest first`,
    ['name', 'level', 'bytes', 'entries', 'SHA-256', 'key'],
    layers.map((l) => [l.name, l.level, l.bytes, l.entries, l.hash.slice(0, 16), describeReference(keyFromText(l.key))]),
  );
  const objects = OBJECT_FIELDS.map(
    (name) => [name, (index as unknown as Record<string, { file: string; key: string; lsn?: number } | null>)[name]] as const,
  )
    .filter(([, o]) => o !== undefined && o !== null)
    .map(([name, o]) => [
      name,
      o?.file ?? '',
      o?.lsn === undefined ? '' : formatLsn(o.lsn as Lsn),
      describeReference(keyFromText(o?.key ?? '')),
    ]);
  report.table('sealed objects', ['what', 'name', 'LSN', 'key'], objects);
}

function suspendContents(report: ReportBuilder, payload: Buffer): void {
  const state = decodeSuspendState(payload);
  report
    .field('LSN', state.lsn === 0 ? 'none: of a running compute' : formatLsn(state.lsn))
    .table(
      'files',
      ['path', 'bytes'],
      state.files.map((f) => [f.path, f.bytes.length]),
    )
    .table(
      'pages',
      ['relation', 'block'],
      state.pages.map((p) => [relPath(p.tag), p.block]),
    );
}

function bootContents(report: ReportBuilder, payload: Buffer): void {
  const blocks = decodeBootSet(payload);
  const perRelation = new Map<string, number>();
  for (const { tag } of blocks) perRelation.set(relPath(tag), (perRelation.get(relPath(tag)) ?? 0) + 1);
  report.field('blocks', blocks.length).table(
    'relations',
    ['relation', 'blocks'],
    [...perRelation].sort((a, b) => b[1] - a[1]),
  );
}
