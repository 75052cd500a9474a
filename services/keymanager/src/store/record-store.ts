/** All project records: one file each, all in memory. Writes are synchronous: between reading a record and replacing it nothing else runs. */
import { chmodSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, errorMessage } from '@lakebase/base';
import { type ProjectUid, parseProjectUid } from '@lakebase/ids';
import { type CrashHook, replaceFile } from './durable-file.ts';
import { type ProjectRecord, RECORD_BYTES_MAX, decodeRecord, encodeRecord, problemOf } from './project-record.ts';

export class RecordStore {
  readonly #dir: string;
  readonly #hook: CrashHook | undefined;
  readonly #records = new Map<ProjectUid, ProjectRecord>();
  /** Files that are there and cannot be used. Nothing is ever written over them. */
  readonly #damaged = new Map<ProjectUid, LakebaseError>();

  constructor(dir: string, hook?: CrashHook) {
    this.#dir = dir;
    this.#hook = hook;
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    chmodSync(dir, 0o700);
    for (const name of readdirSync(dir)) {
      const path = join(dir, name);
      if (name.endsWith('.new'))
        rmSync(path); // a replacement that was not finished
      else if (name.endsWith('.json')) {
        const project = parseProjectUid(name.slice(0, -'.json'.length));
        try {
          if (statSync(path).size > RECORD_BYTES_MAX) throw new LakebaseError('CORRUPT', `${path} is larger than a key record can be`);
          this.#records.set(project, decodeRecord(readFileSync(path), project));
        } catch (error) {
          this.condemn(
            project,
            error instanceof LakebaseError ? error : new LakebaseError('CORRUPT', `${path} cannot be read: ${errorMessage(error)}`),
          );
        }
      }
    }
  }

  /** From now on the project is one whose record is damaged. */
  condemn(project: ProjectUid, error: LakebaseError): void {
    this.#records.delete(project);
    this.#damaged.set(project, error);
  }
  damaged(): ReadonlyMap<ProjectUid, LakebaseError> {
    return this.#damaged;
  }

  get(project: ProjectUid): ProjectRecord | undefined {
    return this.#records.get(project);
  }
  all(): readonly ProjectRecord[] {
    return [...this.#records.values()];
  }

  /** Durable on return. `destroys`: the old file holds wrapped keys that the new one does not. */
  put(record: ProjectRecord, destroys = false): ProjectRecord {
    const damage = this.#damaged.get(record.project);
    if (damage !== undefined) throw damage;
    const before = this.#records.get(record.project);
    const next = { ...record, revision: (before?.revision ?? 0) + 1 };
    const problem = problemOf(next);
    if (problem !== undefined) throw new LakebaseError('INTERNAL', `a key record would be wrong: ${problem}`);
    const path = join(this.#dir, `${record.project}.json`);
    try {
      replaceFile(path, encodeRecord(next), { hook: this.#hook, scrubOld: destroys });
    } catch (error) {
      // It may have failed on either side of the rename: what the disk says is what a restart would see.
      if (existsSync(path)) this.#records.set(record.project, decodeRecord(readFileSync(path), record.project));
      throw error;
    }
    this.#records.set(record.project, next);
    return next;
  }
}
