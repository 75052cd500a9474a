/** The world of one run: clock, chance, network and checker. Everything that happens goes through it, so one seed is one history.
 *
 *  The network loses, duplicates, delays and reorders messages and knows one-way partitions. A message is delayed at most DELAY_MS_MAX. */
import type { Bug } from './bugs.ts';
import { Checker } from './checker.ts';
import { Clock } from './clock.ts';
import type { Message, Process } from './messages.ts';
import { Random } from './random.ts';

export const MEMBERS = ['sk1', 'sk2', 'sk3'] as const;
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
  heal(): void {
    this.#blocked.clear();
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
