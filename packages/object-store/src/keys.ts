/** Names of everything in the object store, in one place (docs/formats/object-layout.md). Invariant: a name that more than one writer could choose
 *  is either written with `ifAbsent` or carries the writer's generation. */
import { LakebaseError } from '@lakebase/base';
import type { Lsn, ProjectUid, TimelineId } from '@lakebase/ids';

/** Each name between slashes fits into a file name. */
const KEY = /^[A-Za-z0-9][A-Za-z0-9._-]{0,254}(?:\/[A-Za-z0-9][A-Za-z0-9._-]{0,254})*$/;
const KEY_CHARACTERS_MAX = 512;

export const isObjectKey = (key: string): boolean => key.length <= KEY_CHARACTERS_MAX && KEY.test(key) && !key.includes('..');

/** Throws INVALID_ARGUMENT for anything that could mean another place in a file system or a URL. */
export function checkObjectKey(key: string): string {
  if (!isObjectKey(key)) throw new LakebaseError('INVALID_ARGUMENT', `'${key.slice(0, 80)}' cannot be the name of an object`);
  return key;
}

const hex = (n: number, digits: number): string => n.toString(16).padStart(digits, '0');

export const projectPrefix = (project: ProjectUid): string => `projects/${project}/`;
export const timelinePrefix = (project: ProjectUid, timeline: TimelineId): string => `projects/${project}/timelines/${timeline}/`;
/** A layer, suspend state, boot set or heat map; the file's name carries its generation. */
export const timelineObject = (project: ProjectUid, timeline: TimelineId, name: string): string =>
  `${timelinePrefix(project, timeline)}${name}`;
/** The index that the pageserver of this generation published last. */
export const indexObject = (project: ProjectUid, timeline: TimelineId, generation: number): string =>
  timelineObject(project, timeline, `index-g${hex(generation, 8)}`);
/** How many segments one object of complete WAL may hold, largest first. An object of n segments begins at a multiple of n segments, so whoever
 *  looks for a byte has as many names to try as there are numbers here. */
export const WAL_OBJECT_SEGMENTS = [8, 4, 2, 1] as const;
/** What the names of a lineage's WAL objects begin with (docs/protocols/wal-recovery.md): two lineages never share a name. */
export const walPrefix = (project: ProjectUid, timeline: TimelineId, lineage = 0): string =>
  timelineObject(project, timeline, lineage === 0 ? 'wal/' : `wal/l${hex(lineage, 8)}-`);
/** Complete WAL of `segments` segments from `start`, a multiple of that many. */
export const walObject = (project: ProjectUid, timeline: TimelineId, start: Lsn, segments: number, lineage = 0): string =>
  `${walPrefix(project, timeline, lineage)}${hex(start, 16)}-${segments}`;
/** The newest committed WAL that is not in a complete object yet. */
export const walTailObject = (project: ProjectUid, timeline: TimelineId, lineage = 0): string =>
  `${walPrefix(project, timeline, lineage)}tail`;
/** Newer wrappings of the keys of the timeline's WAL objects. */
export const walReferencesObject = (project: ProjectUid, timeline: TimelineId, lineage = 0): string =>
  `${walPrefix(project, timeline, lineage)}references`;
/** Whose objects these are; written once (packages/service-kit/src/installation.ts). */
export const INSTALLATION_OBJECT = 'installation';
/** The copy of a project's key record, sealed under the installation root key (docs/formats/key-store.md). Its only writer is the key manager. */
export const keyRecordObject = (project: ProjectUid): string => `keymanager/projects/${project}`;
/** Which copies there are, and of which revision; replaced as a whole. */
export const KEY_MANIFEST_OBJECT = 'keymanager/manifest';
/** Lines of the key manager's audit log, from the one with this number on; the last segment is replaced as it grows. */
export const auditSegmentObject = (first: number): string => `keymanager/audit/${String(first).padStart(12, '0')}`;
/** Where the first of those segments begins; replaced as a whole. */
export const AUDIT_HEAD_OBJECT = 'keymanager/audit/head';
/** Link n of the chain that holds the Manager's catalog; written once, with ifAbsent (docs/formats/catalog-object.md). */
export const catalogLinkObject = (number: number): string => `catalog/${hex(number, 12)}`;
/** Where the newest whole state in that chain is; replaced as a whole. */
export const CATALOG_HEAD_OBJECT = 'catalog/head';
