/** What every command gets: the home directory, the API, and where to print. */
import type { Command } from 'commander';
import { type ApiClient, type Json, ApiClient as Client } from '../api-client.ts';
import { type Home, homeFrom } from '../home.ts';
import { type Column, printFields, printTable } from '../output.ts';

export interface Context {
  readonly env: NodeJS.ProcessEnv;
  readonly home: Home;
  readonly out: (line: string) => void;
  readonly err: (line: string) => void;
  api(): ApiClient;
}

export function createContext(env: NodeJS.ProcessEnv, cwd: string): Context {
  const home = homeFrom(env, cwd);
  return {
    env,
    home,
    out: (line) => void process.stdout.write(`${line}\n`),
    err: (line) => void process.stderr.write(`${line}\n`),
    api: () => Client.fromHome(home, env),
  };
}

export const DEFAULTS = { project: 'default', branch: 'production', endpoint: 'primary', database: 'databricks_postgres' } as const;

export const withProject = (c: Command): Command => c.option('-p, --project <id>', 'project', DEFAULTS.project);
export const withBranch = (c: Command): Command => withProject(c).option('-b, --branch <id>', 'branch', DEFAULTS.branch);
export const withJson = (c: Command): Command => c.option('--json', 'print JSON');

export interface BranchOptions {
  readonly project: string;
  readonly branch: string;
  readonly json?: boolean;
}
export const branchPath = (o: Pick<BranchOptions, 'project' | 'branch'>): string =>
  `projects/${encodeURIComponent(o.project)}/branches/${encodeURIComponent(o.branch)}`;

export function show(c: Context, json: boolean | undefined, item: Json): void {
  if (json === true) c.out(JSON.stringify(item, null, 2));
  else printFields(item, c.out);
}
export function showList(c: Context, json: boolean | undefined, items: readonly Json[], columns: readonly Column[]): void {
  if (json === true) c.out(JSON.stringify(items, null, 2));
  else printTable(items, columns, c.out);
}
