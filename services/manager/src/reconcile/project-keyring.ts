/** The key of a project over its life: made before its storage under the key its workspace had at creation, destroyed before its storage goes.
 *  Both are idempotent, so the reconciler may repeat them after a kill. */
import type { KeyManagerClient } from '@lakebase/api';
import { isCode } from '@lakebase/base';
import { bindingOf } from '../model/key-info.ts';
import type { Queryable } from '../metadata/database.ts';
import { insertShredReport, keyById, workspaceByKey } from '../store/accounts.ts';
import type { ProjectRow } from '../store/projects.ts';

export interface ProjectKeyring {
  create(project: ProjectRow): Promise<void>;
  shred(project: ProjectRow): Promise<void>;
}

/** Where storage runs without keys: tests of the Manager alone. */
export const NO_KEYRING: ProjectKeyring = { create: async () => {}, shred: async () => {} };

export function projectKeyring(c: { db: Queryable; keys: KeyManagerClient; secret: string }): ProjectKeyring {
  const accountOf = async (p: ProjectRow): Promise<string> => (await workspaceByKey(c.db, p.workspace_id))?.account_id ?? 'default';
  return {
    async create(p) {
      const key = p.managed_key_id === null ? undefined : await keyById(c.db, p.managed_key_id);
      await c.keys.createProject(p.uid, bindingOf(c.secret, key, p.owner, await accountOf(p)));
    },
    async shred(p) {
      try {
        const report = await c.keys.shred(p.uid, p.owner);
        await insertShredReport(c.db, {
          project: p.uid,
          account: await accountOf(p),
          workspace: p.workspace_id,
          projectId: p.project_id,
          report,
        });
      } catch (error) {
        // Deleted before it ever had a key.
        if (!isCode(error, 'NOT_FOUND')) throw error;
      }
    },
  };
}
