/** A key record put back from an older copy would undo a rotation, a rebinding, even a shredding. The audit log knows better: every change says
 *  which revision of the record it is. Invariant: only {@link CHANGE_ACTIONS} count, and nobody outside may write lines with those names. */
import { LakebaseError } from '@lakebase/base';
import type { AuditLine } from './audit/audit-file.ts';
import type { RecordStore } from './store/record-store.ts';

export const CHANGE_ACTIONS = [
  'KEY_CREATE',
  'KEK_ROTATE',
  'KEK_REWRAP',
  'KEY_BIND',
  'KEY_GRACE',
  'KEK_DESTROY',
  'RE_ENCRYPT_BEGIN',
  'RE_ENCRYPT',
  'SHRED',
] as const;
export type ChangeAction = (typeof CHANGE_ACTIONS)[number];
/** Actions that are ours to report. */
export const isOwnAction = (action: string): boolean =>
  /^(KEK_|KMS_|AUDIT_|RECORD_|RE_ENCRYPT|KEY_CREATE|KEY_BIND|KEY_CHECK|KEY_GRACE|SHRED|STATE_CHANGE)/.test(action);

/** A line that says which revision of a record is the newest. */
export const isChange = (line: AuditLine): boolean =>
  line.result === 'OK' && (CHANGE_ACTIONS as readonly string[]).includes(line.action) && REVISION.test(line.detail);
const REVISION = /\(record ([0-9]{1,15})\)$/;

export class RollbackCheck {
  readonly #newest = new Map<string, { revision: number; line: AuditLine }>();

  readonly see = (line: AuditLine): void => {
    if (!isChange(line)) return;
    const revision = Number(REVISION.exec(line.detail)?.[1] ?? 0);
    if (revision > (this.#newest.get(line.subject)?.revision ?? 0)) this.#newest.set(line.subject, { revision, line });
  };

  /** Condemns every record that is older than the log knows. */
  apply(store: RecordStore): string[] {
    const condemned: string[] = [];
    for (const { project, revision } of store.all()) {
      const seen = this.#newest.get(project);
      if (seen === undefined || seen.revision <= revision) continue;
      const { line } = seen;
      store.condemn(
        project,
        new LakebaseError(
          'CORRUPT',
          `the key record of project ${project} is an older copy (revision ${revision}): audit line ${line.sequence} (${line.action}, ${line.time}) stored revision ${seen.revision}; put the newest one back`,
        ),
      );
      condemned.push(project);
    }
    return condemned;
  }
}
