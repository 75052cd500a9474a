/** `lakebase inspect`: prints a stored file, object or page for a person. The running system is asked, as only it has keys; without it, or for a file that is
 *  not in its place, what stands outside of the sealed parts is shown. Exit code 1 when something of it is damaged. */
import { existsSync, statSync } from 'node:fs';
import { relative, resolve } from 'node:path';
import type { InspectReport } from '@lakebase/api';
import { LakebaseError, errorMessage, isCode } from '@lakebase/base';
import { parseRelPath } from '@lakebase/ids';
import type { Command } from 'commander';
import type { Json } from '../api-client.ts';
import { type Context, withBranch } from './context.ts';

interface Options {
  readonly project: string;
  readonly branch: string;
  readonly service?: string;
  readonly store?: boolean;
  readonly offline?: boolean;
  readonly limit?: string;
  readonly frame?: string;
  readonly all?: boolean;
  readonly from?: string;
  readonly json?: boolean;
}

const RANGE = (c: Command): Command => c.option('--limit <n>', 'rows of each table', '100').option('--json', 'print JSON');

export function addInspectCommands(program: Command, c: Context): void {
  const inspect = RANGE(
    withBranch(program.command('inspect'))
      .description('show a layer, index, WAL segment, control file, sealed object or page; without a name: what there is')
      .argument('[file-or-object]', 'a path, a key in the object store (projects/…), or a name of the branch')
      .option('--service <id>', 'ask this service (default: by the name; pageserver, sk1 …)')
      .option('--store', 'the object in the store, also where there is a local copy')
      .option('--offline', 'do not ask the running system')
      .option('--frame <n>', 'entries of this frame of a layer')
      .option('--all', 'open every frame')
      .option('--from <lsn>', 'records of WAL from here on'),
  ).action(async (what: string | undefined, o: Options) => print(c, o, await inspectFile(c, what ?? '', o)));
  inspect.passThroughOptions(false);

  RANGE(
    withBranch(inspect.command('page <relation> <block>'))
      .description('show a page and the changes that made it; relation: as pg_relation_filepath gives it, or tablespace/database/relation')
      .option('--fork <name>', 'main, fsm, vm or init', 'main')
      .option('--lsn <lsn>', 'as of this LSN (default: the newest)'),
  ).action(async (relation: string, block: string, _: unknown, command: Command) => {
    const o = command.optsWithGlobals<Options & { fork: string; lsn?: string }>();
    const body = {
      project: o.project,
      branch: o.branch,
      ...relationOf(relation, o.fork),
      block: count('<block>', block),
      ...(o.lsn === undefined ? {} : { lsn: o.lsn }),
      limit: count('--limit', o.limit ?? '100'),
    };
    await print(c, o, await c.api().call<InspectReport & Json>('POST', 'lakebase/inspect/page', body));
  });
}

const FORKS = ['main', 'fsm', 'vm', 'init'];

function relationOf(text: string, forkName: string): { spc: number; db: number; rel: number; fork: number } {
  const byPath = parseRelPath(text);
  if (byPath !== undefined) return byPath.tag;
  const fork = FORKS.indexOf(forkName);
  const match = /^([0-9]{1,10})\/([0-9]{1,10})\/([0-9]{1,10})$/.exec(text);
  if (match === null || fork < 0)
    throw new LakebaseError(
      'INVALID_ARGUMENT',
      `'${text}' is no relation: write what SELECT pg_relation_filepath('…') gives (base/5/16384), or tablespace/database/relation`,
    );
  return { spc: Number(match[1]), db: Number(match[2]), rel: Number(match[3]), fork };
}

function count(what: string, text: string): number {
  if (!/^[0-9]{1,10}$/.test(text)) throw new LakebaseError('INVALID_ARGUMENT', `${what} is a number, not '${text}'`);
  return Number(text);
}

/** Where a file is, as the services know it. */
interface Target {
  readonly place: { readonly project_uid: string; readonly timeline: string } | { readonly project: string; readonly branch: string };
  readonly service: string;
  readonly name: string;
  readonly fromStore: boolean;
}

async function inspectFile(c: Context, what: string, o: Options): Promise<InspectReport> {
  const path = what !== '' && (existsSync(what) || what.startsWith('/') || what.startsWith('.')) ? resolve(what) : undefined;
  if (path !== undefined && (!existsSync(path) || !statSync(path).isFile()))
    throw new LakebaseError('NOT_FOUND', `there is no file ${path}`);
  const target = path === undefined ? byName(what, o) : byPath(c, path, o);
  if (o.offline !== true && target !== undefined)
    try {
      return await ask(c, target, o);
    } catch (error) {
      if (path === undefined || !mayGoOn(error)) throw error;
      return withNote(await offline(path, o), `the running system was asked and could not say more: ${errorMessage(error)}`);
    }
  if (path === undefined) throw new LakebaseError('INVALID_ARGUMENT', '--offline needs the path of a file');
  const why = target === undefined ? ['it is not in its place in this installation, so no service was asked'] : [];
  return withNote(await offline(path, o), ...why);
}

/** A file can be shown in part without anybody. */
const mayGoOn = (error: unknown): boolean =>
  ['UNAVAILABLE', 'CONFIG', 'NOT_FOUND', 'TIMEOUT', 'UNAUTHENTICATED', 'KEY_REVOKED'].some((code) => isCode(error, code as 'CONFIG'));

function ask(c: Context, t: Target, o: Options): Promise<InspectReport> {
  return c.api().call<InspectReport & Json>(
    'POST',
    'lakebase/inspect',
    {
      ...t.place,
      service: o.service ?? t.service,
      name: t.name,
      from_store: t.fromStore || o.store === true,
      limit: count('--limit', o.limit ?? '100'),
      ...(o.frame === undefined ? {} : { frame: count('--frame', o.frame) }),
      ...(o.all === true ? { whole: true } : {}),
      ...(o.from === undefined ? {} : { from: o.from }),
    },
    120_000,
  );
}

/** The formats are read here only when no service can be asked. */
async function offline(path: string, o: Options): Promise<InspectReport> {
  const { fileSource, identityOf, inspect } = await import('@lakebase/inspect');
  const source = await fileSource(path);
  try {
    return await inspect(source, { limit: count('--limit', o.limit ?? '100'), identity: identityOf(path) });
  } finally {
    await source.close();
  }
}

const withNote = (report: InspectReport, ...notes: string[]): InspectReport => ({ ...report, notes: [...report.notes, ...notes] });

const KEY = /(?:^|\/)projects\/([0-9a-f]{32})\/timelines\/([0-9a-f]{32})\/((?:wal\/)?[^/]+)$/;
const ON_DISK = /^([^/]+)\/(?:timelines\/)?([0-9a-f]{32})\/([0-9a-f]{32})\/(?:wal\/)?((?:damaged\/)?[^/]+)$/;

function byPath(c: Context, path: string, o: Options): Target | undefined {
  const stored = KEY.exec(path);
  if (stored !== null && !path.startsWith(c.home.data)) return inStore(stored, o);
  const [, service, project, timeline, name] = ON_DISK.exec(relative(c.home.data, path)) ?? [];
  if (service === undefined || project === undefined || timeline === undefined || name === undefined) return undefined;
  return { place: { project_uid: project, timeline }, service, name, fromStore: false };
}

function byName(what: string, o: Options): Target {
  const stored = KEY.exec(what);
  if (stored !== null) return inStore(stored, o);
  const place = { project: o.project, branch: o.branch };
  return { place, service: serviceFor(what), name: what, fromStore: what.startsWith('wal/') };
}

function inStore(match: RegExpExecArray, o: Options): Target {
  const [, project, timeline, name] = match as unknown as [string, string, string, string];
  return { place: { project_uid: project, timeline }, service: o.service ?? serviceFor(name), name, fromStore: true };
}

/** WAL is the safekeepers', everything else the pageserver's. */
const serviceFor = (name: string): string =>
  /^(?:wal\/|control$|references$|damaged\/|0000000[0-9A-F]{17}$)/.test(name) ? 'sk1' : 'pageserver';

async function print(c: Context, o: Pick<Options, 'json'>, report: InspectReport): Promise<void> {
  if (o.json === true) c.out(JSON.stringify(report, null, 2));
  else for (const line of (await import('@lakebase/inspect')).renderReport(report)) c.out(line);
  if (report.damage.length > 0) process.exitCode = 1;
}
