/** Finds Postgres's client programs on the machine: the npm build has none. `LAKEBASE_TEST_PG_BIN` names a directory that comes first. */
import { existsSync, globSync } from 'node:fs';
import { join } from 'node:path';

/** Where distributions and hand-made installations put them; the major is the number in the directory's name. */
const PLACES = ['/opt/pg[0-9]*/bin', '/opt/postgresql*/bin', '/usr/lib/postgresql/*/bin', '/usr/pgsql-*/bin'];

const majorOf = (dir: string): number => Number(/([0-9]+)[^/0-9]*\/bin$/.exec(dir)?.[1] ?? 0);

/** Path of the program, newest major first; undefined when there is none of at least that major. */
export function findTool(name: string, atLeastMajor = 0): string | undefined {
  const configured = process.env['LAKEBASE_TEST_PG_BIN'];
  const found = PLACES.flatMap((pattern) => globSync(pattern)).filter((dir) => majorOf(dir) >= atLeastMajor);
  const places = [
    ...(configured === undefined ? [] : [configured]),
    ...found.sort((a, b) => majorOf(b) - majorOf(a)),
    ...(atLeastMajor === 0 ? (process.env['PATH'] ?? '').split(':') : []),
  ];
  return places.map((dir) => join(dir, name)).find((path) => existsSync(path));
}

/** Path of the program of exactly this major: WAL of another one is not read. `LAKEBASE_TEST_PG_BIN` is not asked, its major is not known. */
export function findToolOfMajor(name: string, major: number): string | undefined {
  const dirs = PLACES.flatMap((pattern) => globSync(pattern)).filter((dir) => majorOf(dir) === major);
  return dirs.map((dir) => join(dir, name)).find((path) => existsSync(path));
}
