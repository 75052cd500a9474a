/** The cache worker of a compute (native/pgshim/src/worker.c): the shim in a process of its own, which measures scratch, keeps clean blocks below their
 *  bound, fetches the blocks it is told, and does what rounds of settling do to the resident map. Its program is Postgres's, whose main function the shim does not let begin: no other file is needed.
 *  Invariants: one command at a time, whoever asks; a worker that ended fails what is asked of it, and is started again unless it was stopped. */
import { type ChildProcess, spawn } from 'node:child_process';
import { constants, setPriority } from 'node:os';
import type { Writable } from 'node:stream';
import { LakebaseError, type Logger, SerialQueue } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';

const KEY_FD = 3;
const AGAIN_MS = 1_000;

export interface CacheWorkerOptions {
  /** Path of a program the shim can be loaded into. */
  readonly program: string;
  /** Environment of the shim, as Postgres has it. */
  readonly env: Readonly<Record<string, string>>;
  readonly scratchKey: () => Buffer | null;
  /** Null: bounded by free space alone. */
  readonly cacheBytes: number | null;
  readonly log: Logger;
}

/** `full`: there is no room below the bound for more. */
export type FetchAnswer = 'ok' | 'full';

/** What of one segment a round looks at. */
export interface Sweep {
  readonly entry: number;
  /** Blocks of the segment that storage has. */
  readonly limit: number;
  readonly lsn: Lsn;
  /** Transactions from there on may be open, as 32 bits; undefined: none of before the round is. */
  readonly openFrom: number | undefined;
}

export class CacheWorker {
  readonly #o: CacheWorkerOptions;
  #child: ChildProcess | undefined;
  #waiter: { resolve: (line: string) => void; reject: (error: Error) => void } | undefined;
  #text = '';
  readonly #commands = new SerialQueue();
  #stopped = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: CacheWorkerOptions) {
    this.#o = options;
  }

  start(): void {
    const { program, env, cacheBytes, log } = this.#o;
    const key = this.#o.scratchKey();
    const child = spawn(program, [], {
      stdio: ['pipe', 'pipe', 'pipe', ...(key === null ? [] : ['pipe' as const])],
      env: {
        ...env,
        ...(key === null ? { LAKEBASE_SHIM_PLAINTEXT: '1' } : { LAKEBASE_SHIM_KEY_FD: String(KEY_FD) }),
        LAKEBASE_SHIM_WORKER: '1',
        LAKEBASE_SHIM_PARENT: String(process.pid),
        ...(cacheBytes === null ? {} : { LAKEBASE_SHIM_CACHE_BYTES: String(cacheBytes) }),
      },
    });
    this.#child = child;
    this.#text = '';
    if (key !== null) {
      const pipe = child.stdio[KEY_FD] as Writable | null | undefined;
      pipe?.on('error', () => {});
      pipe?.end(key);
    }
    child.stdin?.on('error', () => {});
    child.stdout?.on('data', (chunk: Buffer) => this.#onText(chunk.toString('latin1')));
    let said = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      said = (said + chunk.toString()).slice(-500);
    });
    let over = false;
    const ended = (): void => {
      if (over) return;
      over = true;
      this.#waiter?.reject(new LakebaseError('UNAVAILABLE', 'the cache worker ended'));
      this.#waiter = undefined;
      if (this.#stopped) return;
      log.warn({ said: said.trim() }, 'the cache worker ended; the compute goes on, another one is started');
      this.#timer = setTimeout(() => {
        if (!this.#stopped) this.start();
      }, AGAIN_MS);
      this.#timer.unref();
    };
    child.once('error', ended);
    child.once('exit', ended);
    try {
      // Behind every backend: what it does can wait.
      if (child.pid !== undefined) setPriority(child.pid, constants.priority.PRIORITY_BELOW_NORMAL);
    } catch {
      // it ended already
    }
  }

  /** It ends when it has finished what it is at: killed in the middle of a fetch it would leave a block busy, which Postgres would wait for. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#child?.stdin?.end();
  }

  /** Only when Postgres is gone. */
  kill(): void {
    this.stop();
    this.#child?.kill('SIGKILL');
  }

  /** Brings blocks of a segment file onto the local disk, unmarked. */
  async fetch(entry: number, block: number, count: number): Promise<FetchAnswer> {
    const answer = await this.#say(`fetch ${entry} ${block} ${count}`);
    if (answer === 'ok' || answer === 'full') return answer;
    throw new LakebaseError('UNAVAILABLE', `the cache worker could not fetch: ${answer}`);
  }

  /** Begins a round of settling; undefined when writes were under way for too long. */
  async beginRound(): Promise<number | undefined> {
    const answer = await this.#say('begin');
    return answer === 'busy' ? undefined : numberAfter('ok', answer);
  }

  /** Before the first sweep, after pages are fetched at its LSN. */
  async openRound(round: number): Promise<void> {
    const answer = await this.#say(`open ${round}`);
    if (answer !== 'ok') throw refused(answer);
  }

  /** An entry with blocks to look at, each once a round; undefined when there are no more. */
  async nextEntry(round: number): Promise<number | undefined> {
    const answer = await this.#say(`next ${round}`);
    return answer === 'end' ? undefined : numberAfter('entry', answer);
  }

  /** How many blocks became clean. */
  async sweep(round: number, { entry, limit, lsn, openFrom }: Sweep): Promise<number> {
    return numberAfter(
      'done',
      await this.#say(`sweep ${round} ${entry} ${limit} ${lsn} ${openFrom === undefined ? '0 0' : `1 ${openFrom}`}`),
    );
  }

  #say(line: string): Promise<string> {
    return this.#commands.run(() => this.#command(`${line}\n`));
  }

  #command(line: string): Promise<string> {
    const stdin = this.#child?.stdin;
    if (this.#waiter !== undefined) return Promise.reject(new LakebaseError('INTERNAL', 'the cache worker has a command already'));
    if (stdin === undefined || stdin === null || this.#stopped || this.#child?.exitCode !== null)
      return Promise.reject(new LakebaseError('UNAVAILABLE', 'there is no cache worker now'));
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
      stdin.write(line);
    });
  }

  #onText(text: string): void {
    this.#text += text;
    const end = this.#text.indexOf('\n');
    if (end < 0) return;
    const line = this.#text.slice(0, end);
    this.#text = this.#text.slice(end + 1);
    const waiter = this.#waiter;
    this.#waiter = undefined;
    waiter?.resolve(line);
  }
}

const refused = (answer: string): LakebaseError =>
  new LakebaseError('UNAVAILABLE', `the cache worker could not go on with the round: ${answer}`);

function numberAfter(word: string, answer: string): number {
  const text = answer.slice(word.length + 1);
  if (!answer.startsWith(`${word} `) || !/^[0-9]{1,15}$/.test(text)) throw refused(answer);
  return Number(text);
}
