/** Places in the code where a test can make something fail. Off in production: a place costs one boolean test. Every place is named here, once, with a
 *  sentence; a name that is not here is refused, so a test cannot wait at a place that is gone. Who arms them, and how: docs/operating/failpoints.md.
 *  Invariants: without {@link armFailpoint} no place does anything; "the n-th hit" counts from the moment of arming; the same seed hits the same way. */
import { sleep } from './async.ts';
import { ERROR_CODES, type ErrorCode, LakebaseError } from './errors.ts';

/** One sentence each: what has happened already when the place is reached. Keep sorted; add a place where you use it. */
export const FAILPOINTS = {
  'manager.catalog.before-commit': 'A change of the catalog is in the object store and about to be committed in the metadata database.',
  'manager.catalog.before-head': 'A snapshot of the catalog is in the object store, the head does not name it yet.',
  'manager.catalog.before-put': 'A link of the catalog is about to be put into the object store; its changes are not committed.',
  'object-store.delete': 'Objects are about to be deleted.',
  'object-store.get': 'A whole object or a range of one is about to be read.',
  'object-store.list': 'A page of names is about to be asked for.',
  'object-store.put': 'An object is about to be written.',
  'object-store.put-applied': 'An object has been written and the writer does not know it yet.',
  'pageserver.attach.before-index': 'A timeline without local data is about to fetch its index from the object store.',
  'pageserver.compaction.before-publish': 'The layers of a merge are on disk, the local index does not name them yet.',
  'pageserver.compaction.after-publish': 'The local index names the layers of a merge, those they replace are still on disk.',
  'pageserver.delete.before-objects': 'An index that does not name some objects is in the object store; they are about to be deleted.',
  'pageserver.flush.before-layer': 'A frozen layer is about to be written to disk.',
  'pageserver.flush.before-index': 'A flushed layer is on disk, the local index does not name it yet.',
  'pageserver.flush.after-index': 'The local index names a flushed layer; WAL it covers may be trimmed once that is uploaded.',
  'pageserver.ingest.before-piece': 'A piece of WAL, at most 128 KiB, has come from a safekeeper and is about to be ingested.',
  'pageserver.layer.fetch': 'A range of a remote layer is about to be fetched for a read.',
  'pageserver.upload.before-layer': 'A layer is on disk and about to be uploaded.',
  'pageserver.upload.after-layer': 'A layer is uploaded, no uploaded index names it yet.',
  'pageserver.upload.before-index': 'Everything an index names is uploaded, the index is not.',
  'pageserver.upload.after-index': 'An index is uploaded; its generation has not been confirmed since.',
  'safekeeper.offload.after-put': 'A WAL segment is in the object store, the control file does not know it yet.',
  'safekeeper.offload.before-put': 'A complete WAL segment is about to be put into the object store.',
  'safekeeper.wal.before-sync': 'WAL is written to its segment and about to be synced.',
  'safekeeper.wal.before-write': 'WAL of a compute or a peer is about to be written to its segment.',
  'safekeeper.trim.before-unlink': 'A WAL segment that is offloaded and ingested is about to be removed.',
} as const;

export type FailpointName = keyof typeof FAILPOINTS;

export interface FailpointStatus {
  readonly name: FailpointName;
  /** As it was armed. */
  readonly action: string;
  /** How often the place was reached since then. */
  readonly hits: number;
  /** How many stand in a pause. */
  readonly waiting: number;
}

type Effect =
  | { readonly kind: 'error'; readonly code: ErrorCode }
  | { readonly kind: 'errno'; readonly code: string }
  | { readonly kind: 'kill' }
  | { readonly kind: 'pause' }
  | { readonly kind: 'delay'; readonly ms: number };

interface Armed {
  readonly text: string;
  readonly effect: Effect;
  readonly applies: (hit: number) => boolean;
  hits: number;
  waiting: number;
  released: Promise<void>;
  release: () => void;
}

const DELAY_MS_MAX = 3_600_000;
let armed = false;
const points = new Map<FailpointName, Armed>();
const watchers = new Set<() => void>();
let killSelf: (() => void) | undefined;

/** A library cannot end its process; the process says how. */
export function onFailpointKill(kill: () => void): void {
  killSelf = kill;
}

/** To be awaited where the caller can wait. */
export function failpoint(name: FailpointName): Promise<void> | void {
  if (armed) return reach(name);
}

/** Where the caller cannot wait: delays block the thread, a pause is an error. */
export function failpointSync(name: FailpointName): void {
  if (armed) reachSync(name);
}

export function isFailpointName(name: string): name is FailpointName {
  return Object.hasOwn(FAILPOINTS, name);
}

/** `action`: `off`, or `error(CODE)`, `errno(ENOSPC)`, `kill`, `delay(ms)`, `pause`; then `@3` for the third hit only or `@3+` from the third on;
 *  then `%0.25:42` for a quarter of those, chosen with the seed 42. */
export function armFailpoint(name: string, action: string): void {
  if (!isFailpointName(name))
    throw new LakebaseError('INVALID_ARGUMENT', `there is no failpoint '${name.slice(0, 80)}'; docs/operating/failpoints.md lists them`);
  const parsed = action.trim() === 'off' ? undefined : parseAction(action.trim());
  points.get(name)?.release();
  points.delete(name);
  if (parsed !== undefined) points.set(name, parsed);
  armed = points.size > 0;
  changed();
}

/** `name=action;name=action`, as in the environment of a test's process. */
export function armFailpoints(list: string): void {
  for (const part of list.split(';').filter((p) => p.trim() !== '')) {
    const at = part.indexOf('=');
    if (at < 0) throw new LakebaseError('INVALID_ARGUMENT', `'${part.slice(0, 80)}': write name=action`);
    armFailpoint(part.slice(0, at).trim(), part.slice(at + 1));
  }
}

/** Lets those go who stand in a pause; the place stays armed. */
export function releaseFailpoint(name: string): void {
  const point = points.get(name as FailpointName);
  if (point === undefined) throw new LakebaseError('NOT_FOUND', `the failpoint '${name.slice(0, 80)}' is not armed`);
  point.release();
  Object.assign(point, latch());
}

export function disarmFailpoints(): void {
  for (const name of points.keys()) armFailpoint(name, 'off');
}

export function failpointStatus(): FailpointStatus[] {
  return [...points].map(([name, p]) => ({ name, action: p.text, hits: p.hits, waiting: p.waiting }));
}

/** Resolves when the place was reached `hits` times since it was armed. */
export async function failpointReached(name: string, hits: number, signal?: AbortSignal): Promise<FailpointStatus> {
  for (;;) {
    const status = failpointStatus().find((p) => p.name === name);
    if (status === undefined) throw new LakebaseError('NOT_FOUND', `the failpoint '${name.slice(0, 80)}' is not armed`);
    if (status.hits >= hits) return status;
    await new Promise<void>((resolve, reject) => {
      const done = (): void => {
        watchers.delete(done);
        signal?.removeEventListener('abort', ended);
        resolve();
      };
      const ended = (): void => {
        watchers.delete(done);
        reject(new LakebaseError('TIMEOUT', `the failpoint ${name} was reached ${status.hits} times, not ${hits}`));
      };
      if (signal?.aborted === true) return ended();
      signal?.addEventListener('abort', ended, { once: true });
      watchers.add(done);
    });
  }
}

function changed(): void {
  for (const watcher of [...watchers]) watcher();
}

function hit(name: FailpointName): Armed | undefined {
  const point = points.get(name);
  if (point === undefined) return undefined;
  const applies = point.applies(++point.hits);
  changed();
  return applies ? point : undefined;
}

function reach(name: FailpointName): Promise<void> | void {
  const point = hit(name);
  if (point === undefined) return;
  const { effect } = point;
  if (effect.kind === 'delay') return sleep(effect.ms);
  if (effect.kind === 'pause') return pause(point);
  // A caller that does not await sees it all the same.
  raise(name, effect);
}

function reachSync(name: FailpointName): void {
  const point = hit(name);
  if (point === undefined) return;
  const { effect } = point;
  if (effect.kind === 'delay') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, effect.ms);
  else if (effect.kind === 'pause') throw new LakebaseError('UNSUPPORTED', `failpoint ${name}: there is no waiting here; use delay(ms)`);
  else raise(name, effect);
}

async function pause(point: Armed): Promise<void> {
  point.waiting++;
  changed();
  await point.released;
  point.waiting--;
  changed();
}

function raise(name: FailpointName, effect: Effect): void {
  if (effect.kind === 'kill') {
    if (killSelf === undefined) throw new LakebaseError('UNSUPPORTED', `failpoint ${name}: this process did not say how to kill it`);
    killSelf();
    // SIGKILL of oneself takes effect at the next system call; nothing of ours may run before it.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10_000);
  }
  if (effect.kind === 'error') throw new LakebaseError(effect.code, `failpoint ${name}`);
  if (effect.kind === 'errno')
    throw Object.assign(new Error(`${effect.code}: failpoint ${name}`), { code: effect.code, syscall: 'failpoint' });
}

function latch(): { released: Promise<void>; release: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { released: promise, release: resolve };
}

const ACTION = /^([a-z]+)(?:\(([A-Za-z0-9_]*)\))?(?:@([0-9]{1,9})(\+)?)?(?:%([01](?:\.[0-9]{1,9})?):([0-9]{1,9}))?$/;

function parseAction(text: string): Armed {
  const match = ACTION.exec(text);
  const wrong = (why: string): LakebaseError =>
    new LakebaseError(
      'INVALID_ARGUMENT',
      `'${text.slice(0, 80)}' is no action of a failpoint: ${why}; one of off, error(CODE), errno(ENOSPC), kill, delay(ms), pause, with @3 or @3+ and %0.5:seed behind`,
    );
  if (match === null) throw wrong('it does not have the form');
  const [, kind, argument = '', nth, onwards, chance, seed] = match;
  const effect = effectOf(kind as string, argument);
  if (effect === undefined) throw wrong('unknown action or argument');
  const first = nth === undefined ? undefined : Number(nth);
  if (first === 0) throw wrong('hits count from 1');
  const lucky = chance === undefined ? () => true : chances(Number(chance), Number(seed));
  const inRange = (n: number): boolean => first === undefined || (onwards === undefined ? n === first : n >= first);
  return { text, effect, applies: (n) => inRange(n) && lucky(), hits: 0, waiting: 0, ...latch() };
}

function effectOf(kind: string, argument: string): Effect | undefined {
  if (kind === 'error') return Object.hasOwn(ERROR_CODES, argument) ? { kind, code: argument as ErrorCode } : undefined;
  if (kind === 'errno') return /^E[A-Z0-9]{2,15}$/.test(argument) ? { kind, code: argument } : undefined;
  if (kind === 'delay')
    return /^[0-9]{1,7}$/.test(argument) && Number(argument) <= DELAY_MS_MAX ? { kind, ms: Number(argument) } : undefined;
  if (kind === 'kill' || kind === 'pause') return argument === '' ? { kind } : undefined;
  return undefined;
}

/** A small generator (mulberry32): the same seed, the same hits. */
function chances(probability: number, seed: number): () => boolean {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32 < probability;
  };
}
