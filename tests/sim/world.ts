/** The world of one run: clock, chance, network and checker. Everything that happens goes through it, so one seed is one history.
 *
 *  The network loses, duplicates, delays and reorders messages and knows one-way partitions. A message is delayed at most DELAY_MS_MAX. */
import type { Configuration, MemberPosition } from '@lakebase/wal-quorum';
import type { Bug } from './bugs.ts';
import { Checker } from './checker.ts';
import { Clock } from './clock.ts';
import type { Message, Process, RegisterValue } from './messages.ts';
import { Random } from './random.ts';

/** Machines. The first three hold the first members; the others stand ready. */
export const NODES = ['sk1', 'sk2', 'sk3', 'sk4', 'sk5'] as const;
export const FIRST_CONFIGURATION: Configuration = { generation: 1, members: ['sk1', 'sk2', 'sk3'], newMembers: null };
export const DELAY_MS_MAX = 250;

export class World {
  readonly clock = new Clock();
  readonly checker = new Checker();
  readonly random: Random;
  readonly bug: Bug | null;
  readonly trace: string[] | null;
  readonly #processes = new Map<string, Process>();
  readonly #blocked = new Set<string>();
  lossChance = 0;
  duplicateChance = 0;
  slowChance = 0;
  /** A member dies in the middle of a disk write this often; the scenario says what that means. */
  writeCrashChance = 0;
  /** An agent dies soon after it sent `elected` this often: terms that some members adopt and some do not. */
  leaderDeathChance = 0;
  /** Small pieces make long copies. */
  copyBytesMax = 400;
  /** How often a running compute asks the members whether they still follow it. */
  pollMs = 40;
  /** A member that is being replaced is told, and retired, this often only: it may be out of the driver's reach. */
  leavingChance = 1;
  /** How often a member that has committed WAL puts it into the object store. */
  putChance = 0;
  /** A recovery has been decided. */
  onRecovery: (before: RegisterValue, after: RegisterValue) => void = () => {};
  onWriteCrash: (member: string) => void = () => {};
  #nextId = 1;
  /** Rolling hash of every delivery: two runs of a seed must agree on it. */
  digest = 0x811c9dc5;

  constructor(seed: number, bug: Bug | null, trace = false) {
    this.random = new Random(seed);
    this.bug = bug;
    this.trace = trace ? [] : null;
  }

  id(): number {
    return this.#nextId++;
  }
  add(process: Process): void {
    this.#processes.set(process.id, process);
  }
  has(bug: Bug): boolean {
    return this.bug === bug;
  }

  /** A report as whoever counts by `configuration` sees it. */
  seen(position: MemberPosition, { generation }: Configuration): MemberPosition {
    const term = this.has('count-older-term') ? position.lastLogTerm : position.term;
    return { ...position, term, generation: this.has('count-any-generation') ? generation : position.generation };
  }
  /** The configuration by which commits are counted. */
  counted(configuration: Configuration): Configuration {
    const { newMembers } = configuration;
    return newMembers !== null && this.has('commit-by-new-majority')
      ? { ...configuration, members: newMembers, newMembers: null }
      : configuration;
  }

  block(from: string, to: string): void {
    this.#blocked.add(`${from}>${to}`);
  }
  /** Cuts a process off, in one direction or both. */
  isolate(id: string, oneWay: boolean): void {
    for (const other of this.#processes.keys()) {
      this.block(id, other);
      if (!oneWay) this.block(other, id);
    }
  }
  /** Everything, or what was cut around one process. */
  heal(id?: string): void {
    if (id === undefined) return this.#blocked.clear();
    for (const pair of this.#blocked) if (pair.split('>').includes(id)) this.#blocked.delete(pair);
  }

  send(from: string, to: string, message: Message): void {
    if (this.random.chance(this.lossChance)) return;
    const copies = this.random.chance(this.duplicateChance) ? 2 : 1;
    for (let i = 0; i < copies; i++) {
      const delay = this.random.chance(this.slowChance) ? this.random.between(20, DELAY_MS_MAX) : this.random.between(1, 6);
      this.clock.after(delay, () => this.#deliver(from, to, message));
    }
  }

  #deliver(from: string, to: string, message: Message): void {
    if (this.#blocked.has(`${from}>${to}`)) return;
    this.note(() => `${from} -> ${to} ${JSON.stringify(message, (key, value: unknown) => (key === 'log' ? undefined : value))}`);
    this.mix(message.kind.length * 31 + to.length + to.charCodeAt(to.length - 1) * 7 + ('term' in message ? message.term : 0));
    this.#processes.get(to)?.receive(from, message);
  }

  note(text: () => string): void {
    this.trace?.push(`${this.clock.now} ${text()}`);
  }
  mix(value: number): void {
    this.digest = Math.imul(this.digest ^ (value + this.clock.now * 2654435761), 0x01000193) >>> 0;
  }
}
