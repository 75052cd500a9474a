/** `lakebase projects|branches|endpoints|roles|databases …`: thin wrappers over the API. */
import type { Command } from 'commander';
import type { Json } from '../api-client.ts';
import { mebibytes, statusOf } from '../output.ts';
import { type BranchOptions, type Context, branchPath, show, showList, withBranch, withJson, withProject } from './context.ts';

const enc = encodeURIComponent;

export function addResourceCommands(program: Command, c: Context): void {
  projects(program, c);
  branches(program, c);
  endpoints(program, c);
  roles(program, c);
  databases(program, c);
}

function projects(program: Command, c: Context): void {
  const group = program.command('projects').description('list, create, change and delete projects');
  withJson(group.command('list').description('all projects')).action(async (o: { json?: boolean }) => {
    showList(c, o.json, await c.api().list('projects', 'projects'), [
      ['PROJECT', (p) => p.project_id],
      ['NAME', (p) => statusOf(p).display_name],
      ['POSTGRES', (p) => statusOf(p).pg_version],
      ['STORED', (p) => mebibytes(Number(statusOf(p).synthetic_storage_size_bytes))],
      ['CREATED', (p) => p.create_time],
    ]);
  });
  withJson(group.command('get <project>').description('one project')).action(async (id: string, o: { json?: boolean }) =>
    show(c, o.json, await c.api().get(`projects/${enc(id)}`)),
  );
  withJson(
    group
      .command('create <project>')
      .description('make a project with branch production, endpoint primary and database databricks_postgres')
      .option('--name <text>', 'display name')
      .option('--pg-version <major>', 'Postgres 18 (default), 17 or 16', Number)
      .option('--suspend-timeout <seconds>', 'suspend computes after this long without activity'),
  ).action(async (id: string, o: { json?: boolean; name?: string; pgVersion?: number; suspendTimeout?: string }) => {
    const settings =
      o.suspendTimeout === undefined ? {} : { default_endpoint_settings: { suspend_timeout_duration: `${o.suspendTimeout}s` } };
    const spec = {
      ...(o.name === undefined ? {} : { display_name: o.name }),
      ...(o.pgVersion === undefined ? {} : { pg_version: o.pgVersion }),
      ...settings,
    };
    const { response } = await c.api().run('POST', `projects?project_id=${enc(id)}`, { spec });
    show(c, o.json, response);
  });
  withJson(group.command('rename <project> <name>').description('change the display name')).action(
    async (id: string, name: string, o: { json?: boolean }) => {
      show(
        c,
        o.json,
        (await c.api().run('PATCH', `projects/${enc(id)}?update_mask=spec.display_name`, { spec: { display_name: name } })).response,
      );
    },
  );
  group
    .command('delete <project>')
    .description('delete a project and everything in it')
    .action(async (id: string) => {
      await c.api().run('DELETE', `projects/${enc(id)}`);
      c.out(`deleted project ${id}`);
    });
}

function branches(program: Command, c: Context): void {
  const group = program.command('branches').description('list and show branches');
  withJson(withProject(group.command('list').description('branches of a project'))).action(
    async (o: { project: string; json?: boolean }) => {
      showList(c, o.json, await c.api().list(`projects/${enc(o.project)}/branches`, 'branches'), [
        ['BRANCH', (b) => b.branch_id],
        ['STATE', (b) => statusOf(b).current_state],
        ['DEFAULT', (b) => statusOf(b).default],
        ['SIZE', (b) => mebibytes(Number(statusOf(b).logical_size_bytes))],
        ['UID', (b) => b.uid],
      ]);
    },
  );
  withJson(withProject(group.command('get <branch>').description('one branch'))).action(
    async (id: string, o: { project: string; json?: boolean }) =>
      show(c, o.json, await c.api().get(`projects/${enc(o.project)}/branches/${enc(id)}`)),
  );
}

function endpoints(program: Command, c: Context): void {
  const group = program.command('endpoints').description('list, show and change endpoints (computes)');
  withJson(withBranch(group.command('list').description('endpoints of a branch'))).action(async (o: BranchOptions) => {
    showList(c, o.json, await c.api().list(`${branchPath(o)}/endpoints`, 'endpoints'), [
      ['ENDPOINT', (e) => e.endpoint_id],
      ['STATE', (e) => statusOf(e).current_state],
      ['SUSPEND', (e) => statusOf(e).suspend_timeout_duration ?? 'never'],
      ['DISABLED', (e) => statusOf(e).disabled],
      ['UID', (e) => e.uid],
    ]);
  });
  withJson(withBranch(group.command('get [endpoint]').description('one endpoint'))).action(
    async (id: string | undefined, o: BranchOptions) =>
      show(c, o.json, await c.api().get(`${branchPath(o)}/endpoints/${enc(id ?? 'primary')}`)),
  );
  withJson(
    withBranch(
      group
        .command('update [endpoint]')
        .description('change suspension, limits, settings, or enable and disable')
        .option('--suspend-timeout <seconds|never>', 'suspend after this long without activity')
        .option('--min-cu <n>', 'lower limit', Number)
        .option('--max-cu <n>', 'upper limit', Number)
        .option('--disable', 'suspend it and refuse connections')
        .option('--enable', 'allow connections again')
        .option(
          '--set <name=value>',
          'a Postgres setting (repeatable; replaces all earlier ones)',
          (v: string, all: string[]) => [...all, v],
          [] as string[],
        ),
    ),
  ).action(async (id: string | undefined, o: BranchOptions & UpdateOptions) => {
    const { spec, mask } = endpointSpec(o);
    if (mask.length === 0) throw new Error('nothing to change: see --help');
    show(
      c,
      o.json,
      (await c.api().run('PATCH', `${branchPath(o)}/endpoints/${enc(id ?? 'primary')}?update_mask=${mask.join(',')}`, { spec })).response,
    );
  });
}

interface UpdateOptions {
  readonly suspendTimeout?: string;
  readonly minCu?: number;
  readonly maxCu?: number;
  readonly disable?: boolean;
  readonly enable?: boolean;
  readonly set: readonly string[];
}

function endpointSpec(o: UpdateOptions): { spec: Json; mask: string[] } {
  const spec: Json = {};
  const mask: string[] = [];
  if (o.suspendTimeout !== undefined) {
    mask.push('spec.suspension');
    if (o.suspendTimeout === 'never') spec.no_suspension = true;
    else spec.suspend_timeout_duration = `${o.suspendTimeout}s`;
  }
  for (const [value, field] of [
    [o.minCu, 'autoscaling_limit_min_cu'],
    [o.maxCu, 'autoscaling_limit_max_cu'],
  ] as const)
    if (value !== undefined) {
      spec[field] = value;
      mask.push(`spec.${field}`);
    }
  if (o.disable === true || o.enable === true) {
    spec.disabled = o.disable === true;
    mask.push('spec.disabled');
  }
  if (o.set.length > 0) {
    spec.settings = {
      pg_settings: Object.fromEntries(o.set.map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)])),
    };
    mask.push('spec.settings');
  }
  return { spec, mask };
}

function roles(program: Command, c: Context): void {
  const group = program.command('roles').description('list, create, change and delete roles');
  const columns = [
    ['ROLE', (r: Json) => r.role_id],
    ['POSTGRES ROLE', (r: Json) => statusOf(r).postgres_role],
    ['LOG-IN', (r: Json) => statusOf(r).auth_method],
    ['MEMBER OF', (r: Json) => (statusOf(r).membership_roles as string[]).join(' ') || '-'],
  ] as const;
  withJson(withBranch(group.command('list').description('roles of a branch'))).action(async (o: BranchOptions) =>
    showList(c, o.json, await c.api().list(`${branchPath(o)}/roles`, 'roles'), columns),
  );
  withJson(withBranch(group.command('get <role>').description('one role'))).action(async (id: string, o: BranchOptions) =>
    show(c, o.json, await c.api().get(`${branchPath(o)}/roles/${enc(id)}`)),
  );
  withJson(
    withBranch(
      group
        .command('create <role>')
        .description('make a role; its generated password is printed once')
        .option('--postgres-role <name>', 'name in Postgres, when it differs')
        .option('--superuser-group', 'member of databricks_superuser')
        .option('--createdb')
        .option('--createrole')
        .option('--no-login', 'a group role'),
    ),
  ).action(
    async (
      id: string,
      o: BranchOptions & { postgresRole?: string; superuserGroup?: boolean; createdb?: boolean; createrole?: boolean; login: boolean },
    ) => {
      const spec = {
        postgres_role: o.postgresRole ?? id,
        auth_method: o.login ? 'PG_PASSWORD_SCRAM_SHA_256' : 'NO_LOGIN',
        attributes: { createdb: o.createdb === true, createrole: o.createrole === true },
        membership_roles: o.superuserGroup === true ? ['DATABRICKS_SUPERUSER'] : [],
      };
      const { response, metadata } = await c.api().run('POST', `${branchPath(o)}/roles?role_id=${enc(id)}`, { spec });
      show(c, o.json, { ...response, ...(metadata.password === undefined ? {} : { password: metadata.password }) });
    },
  );
  withJson(withBranch(group.command('reset-password <role>').description('give a role a new password, printed once'))).action(
    async (id: string, o: BranchOptions) => {
      const { response, metadata } = await c.api().run('POST', `${branchPath(o)}/roles/${enc(id)}/reset-password`, {});
      show(c, o.json, { ...response, password: metadata.password });
    },
  );
  withBranch(group.command('delete <role>').description('drop a role')).action(async (id: string, o: BranchOptions) => {
    await c.api().run('DELETE', `${branchPath(o)}/roles/${enc(id)}`);
    c.out(`deleted role ${id}`);
  });
}

function databases(program: Command, c: Context): void {
  const group = program.command('databases').description('list, create, change and delete databases');
  const columns = [
    ['DATABASE', (d: Json) => d.database_id],
    ['POSTGRES DATABASE', (d: Json) => statusOf(d).postgres_database],
    ['OWNER', (d: Json) => String(statusOf(d).role).split('/').at(-1)],
  ] as const;
  const owner = (o: BranchOptions, role: string | undefined): Json =>
    role === undefined ? {} : { role: `projects/${o.project}/branches/${o.branch}/roles/${role}` };
  withJson(withBranch(group.command('list').description('databases of a branch'))).action(async (o: BranchOptions) =>
    showList(c, o.json, await c.api().list(`${branchPath(o)}/databases`, 'databases'), columns),
  );
  withJson(withBranch(group.command('get <database>').description('one database'))).action(async (id: string, o: BranchOptions) =>
    show(c, o.json, await c.api().get(`${branchPath(o)}/databases/${enc(id)}`)),
  );
  withJson(
    withBranch(
      group
        .command('create <database>')
        .description('make a database')
        .option('--owner <role>', 'role id of the owner')
        .option('--postgres-database <name>', 'name in Postgres, when it differs'),
    ),
  ).action(async (id: string, o: BranchOptions & { owner?: string; postgresDatabase?: string }) => {
    show(
      c,
      o.json,
      (
        await c.api().run('POST', `${branchPath(o)}/databases?database_id=${enc(id)}`, {
          spec: { postgres_database: o.postgresDatabase ?? id, ...owner(o, o.owner) },
        })
      ).response,
    );
  });
  withJson(withBranch(group.command('set-owner <database> <role>').description('give a database another owner'))).action(
    async (id: string, role: string, o: BranchOptions) => {
      show(
        c,
        o.json,
        (await c.api().run('PATCH', `${branchPath(o)}/databases/${enc(id)}?update_mask=spec.role`, { spec: owner(o, role) })).response,
      );
    },
  );
  withBranch(group.command('delete <database>').description('drop a database')).action(async (id: string, o: BranchOptions) => {
    await c.api().run('DELETE', `${branchPath(o)}/databases/${enc(id)}`);
    c.out(`deleted database ${id}`);
  });
}
