/** Identifiers of projects, branches and everything else that has a name. Ids come from outside and end up in paths and
 *  object names, so each has one strict pattern and one parser; nothing unparsed is ever joined into a path. */
import { randomBytes } from 'node:crypto';
import { LakebaseError } from '@lakebase/base';

declare const projectBrand: unique symbol;
declare const timelineBrand: unique symbol;
declare const termBrand: unique symbol;
/** Storage identity of a project: 32 lower-case hex digits. Users see `project_id`; storage sees this uid. */
export type ProjectUid = string & { readonly [projectBrand]: true };
/** Storage identity of a branch, one WAL history: 32 lower-case hex digits. */
export type TimelineId = string & { readonly [timelineBrand]: true };
/** Election term of a branch: only ever grows; 0 before the first election. */
export type Term = number & { readonly [termBrand]: true };

const HEX_ID = /^[0-9a-f]{32}$/;

export function parseProjectUid(text: unknown): ProjectUid {
  if (typeof text !== 'string' || !HEX_ID.test(text))
    throw new LakebaseError('INVALID_ID', 'a project uid is 32 lower-case hexadecimal digits');
  return text as ProjectUid;
}

export function parseTimelineId(text: unknown): TimelineId {
  if (typeof text !== 'string' || !HEX_ID.test(text))
    throw new LakebaseError('INVALID_ID', 'a timeline id is 32 lower-case hexadecimal digits');
  return text as TimelineId;
}

export function parseTerm(value: unknown): Term {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0)
    throw new LakebaseError('INVALID_ID', 'a term is a non-negative integer');
  return value as Term;
}

export const newProjectUid = (): ProjectUid => randomBytes(16).toString('hex') as ProjectUid;
export const newTimelineId = (): TimelineId => randomBytes(16).toString('hex') as TimelineId;

/** Pattern of user-chosen resource ids (project, branch, endpoint, role, database) in the Databricks Postgres API. */
export const RESOURCE_ID: RegExp = /^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/;
