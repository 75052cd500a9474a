/** `lakebase storage …`: where the pages of projects are, and who keeps their WAL. Needs a token of an account admin. */
import { sleep } from '@lakebase/base';
import type { Command } from 'commander';
import { type Json, textOf } from '../api-client.ts';
import type { Column } from '../output.ts';
import { type Context, show, showList, withJson } from './context.ts';

const MOVE_MS_MAX = 300_000;
const SAFEKEEPER_COLUMNS: readonly Column[] = [
  ['ID', (item) => item['id']],
  ['STATE', (item) => item['state']],
  ['TIMELINES', (item) => item['timelines']],
  ['LOST', (item) => item['lost']],
  ['LEAVING', (item) => item['leaving']],
  ['SPARE', (item) => item['spare']],
  ['DISK', (item) => item['disk']],
];
const CHANGE_COLUMNS: readonly Column[] = [
  ['TIMELINE', (item) => item['timeline']],
  ['CONFIGURATION', (item) => item['configuration']],
  ['PROBLEM', (item) => item['problem']],
];

async function timelinesOn(c: Context, id: string): Promise<number> {
  const { safekeepers } = await c.api().call('GET', 'lakebase/safekeepers');
  return Number((safekeepers as Json[]).find((s) => s['id'] === id)?.['timelines'] ?? 0);
}

const RECOVERY_MS_MAX = 1_200_000;
const MEMBER_COLUMNS: readonly Column[] = [
  ['MEMBER', (item) => item['id']],
  ['STATE', (item) => item['state']],
  ['FLUSHED', (item) => item['flushLsn']],
  ['COMMITTED', (item) => item['commitLsn']],
];
const RECOVERY_COLUMNS: readonly Column[] = [
  ['TIME', (item) => item['time']],
  ['PROJECT', (item) => item['project_id']],
  ['BRANCH', (item) => item['branch_id']],
  ['UP TO', (item) => item['startLsn']],
  ['LAST COMMIT SEEN', (item) => item['lastCommitTime']],
  ['PAGES', (item) => item['pageLsn']],
  ['WAL', (item) => item['walEndLsn']],
  ['BY', (item) => item['by']],
];

/** The newest index that was known. */
const ACCEPTED_COLUMNS: readonly Column[] = [
  ['BRANCH', (item) => item['branch']],
  ['GENERATION', (item) => item['generation']],
  ['VERSION', (item) => item['version']],
];

/** What a recovery would bring back, or has. */
function showRecovery(c: Context, report: Json): void {
  const { members, ...rest } = report;
  show(c, false, rest);
  showList(c, false, members as Json[], MEMBER_COLUMNS);
  if (rest['refusal'] !== null) c.out(`not done: ${textOf(rest['refusal'], '')}`);
  else if (rest['done'] === true)
    c.out(
      `done: everything up to ${textOf(rest['startLsn'], 'an LSN that is not known yet')} is there; what was acknowledged after that is lost`,
    );
  else
    c.out(
      `with --accept-loss: everything up to ${textOf(rest['startLsn'], 'an LSN that is not known yet')} comes back, and what was acknowledged after that is lost for good`,
    );
}

export function addStorageCommands(program: Command, c: Context): void {
  const storage = program.command('storage').description('pageservers and the projects on them, safekeepers and the WAL on them');
  withJson(
    storage
      .command('move <project>')
      .description(
        'move a project to another pageserver; its computes go on running. A new project goes to the pageserver with the least bytes for the size of its disk',
      )
      .requiredOption('--to <pageserver>', 'id of the pageserver that takes the project'),
  ).action(async (project: string, o: { to: string; json?: boolean }) => {
    const path = `lakebase/projects/${encodeURIComponent(project)}/place`;
    show(c, o.json, await c.api().call('POST', path, { pageserver: o.to }, MOVE_MS_MAX));
  });
  withJson(storage.command('safekeepers').description('list the safekeepers, and the changes of members under way')).action(
    async (o: { json?: boolean }) => {
      const answer = await c.api().call('GET', 'lakebase/safekeepers');
      if (o.json === true) return c.out(JSON.stringify(answer, null, 2));
      showList(c, false, answer['safekeepers'] as Json[], SAFEKEEPER_COLUMNS);
      const changes = answer['changes'] as Json[];
      if (changes.length > 0) showList(c, false, changes, CHANGE_COLUMNS);
    },
  );
  withJson(
    storage
      .command('recover-wal <project>')
      .description(
        'bring WAL back from the object store when too many safekeepers have lost their disks; without --accept-loss only say what there is',
      )
      .option('-b, --branch <id>', 'this branch only')
      .option('--accept-loss', 'do it: what is in neither the object store nor the pages is lost'),
  ).action(async (project: string, o: { branch?: string; acceptLoss?: boolean; json?: boolean }) => {
    const body = { ...(o.branch === undefined ? {} : { branch: o.branch }), accept_loss: o.acceptLoss === true };
    const path = `lakebase/projects/${encodeURIComponent(project)}/recover-wal`;
    const answer = await c.api().call('POST', path, body, RECOVERY_MS_MAX);
    if (o.json === true) return c.out(JSON.stringify(answer, null, 2));
    for (const report of answer['branches'] as Json[]) showRecovery(c, report);
  });
  withJson(
    storage
      .command('accept-older-store <project>')
      .description(
        'serve what the object store has of a project although newer pages were put there once: after the store was put back to an earlier state',
      ),
  ).action(async (project: string, o: { json?: boolean }) => {
    const { branches } = await c.api().call('POST', `lakebase/projects/${encodeURIComponent(project)}/accept-older-store`, {});
    showList(c, o.json, branches as Json[], ACCEPTED_COLUMNS);
  });
  withJson(storage.command('recoveries').description('branches whose WAL was brought back from the object store, and up to where')).action(
    async (o: { json?: boolean }) => {
      const { recoveries } = await c.api().call('GET', 'lakebase/wal-recoveries');
      showList(c, o.json, recoveries as Json[], RECOVERY_COLUMNS);
    },
  );
  withJson(
    storage
      .command('replace-safekeeper <id>')
      .description('give every place of a safekeeper that is gone for good to another one; one that only lost its disk needs this not')
      .option('--wait', 'until nothing is left on it'),
  ).action(async (id: string, o: { wait?: boolean; json?: boolean }) => {
    const answer = await c.api().call('POST', `lakebase/safekeepers/${encodeURIComponent(id)}/replace`, {});
    while (o.wait === true && (await timelinesOn(c, id)) > 0) await sleep(1_000);
    show(c, o.json, answer);
  });
}
