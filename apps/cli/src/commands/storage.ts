/** `lakebase storage …`: where the pages of projects are. Needs a token of an account admin. */
import type { Command } from 'commander';
import { type Context, show, withJson } from './context.ts';

const MOVE_MS_MAX = 300_000;

export function addStorageCommands(program: Command, c: Context): void {
  const storage = program.command('storage').description('pageservers and the projects on them');
  withJson(
    storage
      .command('move <project>')
      .description('move a project to another pageserver; its computes go on running')
      .requiredOption('--to <pageserver>', 'id of the pageserver that takes the project'),
  ).action(async (project: string, o: { to: string; json?: boolean }) => {
    const path = `lakebase/projects/${encodeURIComponent(project)}/place`;
    show(c, o.json, await c.api().call('POST', path, { pageserver: o.to }, MOVE_MS_MAX));
  });
}
