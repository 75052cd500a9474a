/** A simulated machine: its disk, what it holds in memory, and the operations that change both.
 *
 *  Operations are generators run one at a time; each `yield` is a disk write, and a crash may come during any of them: an atomic write (rename, truncate) is then
 *  done or not done, unsynced bytes survive as a random prefix. Nothing in memory survives.
 *
 *  Who the machine is as a member is on its disk. */
import type { Lsn, Term } from '@lakebase/ids';
import type { AcceptorState, Configuration, Damage, TermHistory, WalLineage } from '@lakebase/wal-quorum';
import { GENESIS_LSN, SimLog, type SimRecord } from './log.ts';
import type { World } from './world.ts';

export interface Control {
  /** null: nobody's. */
  readonly self: string | null;
  readonly configuration: Configuration;
  readonly term: number;
  readonly history: TermHistory;
  readonly commitLsn: number;
  readonly damage: Damage | null;
  readonly lineages: readonly WalLineage[];
}
export interface DiskWrite {
  readonly done: () => void;
  /** A rename or truncation: in a crash it has happened or not. */
  readonly atomic: boolean;
}
export type Operation = Generator<DiskWrite, void, void>;

export const FIRST_LINEAGE: WalLineage = { number: 0, startLsn: GENESIS_LSN as Lsn };
export const NOBODY: Control = {
  self: null,
  configuration: { generation: 0, members: ['-'], newMembers: null },
  term: 0,
  history: [],
  commitLsn: GENESIS_LSN,
  damage: null,
  lineages: [FIRST_LINEAGE],
};

export class Machine {
  readonly id: string;
  readonly #world: World;
  readonly log = new SimLog();
  up = true;
  durable: Control = NOBODY;
  memory: Control = NOBODY;
  /** Grows when the disk is lost; with it goes the list of who this disk ever was. */
  incarnation = 1;
  made: string[] = [];
  /** Counts restarts: callbacks of an earlier life do nothing. */
  #life = 0;
  #queue: Operation[] = [];
  #running = false;
  #pending: DiskWrite | null = null;

  constructor(id: string, world: World) {
    this.id = id;
    this.#world = world;
  }

  get state(): AcceptorState {
    const flushRecordLsn = this.log.recordEnd(this.log.flushed);
    return {
      self: this.memory.self ?? '-',
      configuration: this.memory.configuration,
      term: this.memory.term as Term,
      history: this.memory.history,
      flushLsn: this.log.flushed as Lsn,
      flushRecordLsn: flushRecordLsn as Lsn,
      lastRecordLsn: this.log.recordStart(flushRecordLsn) as Lsn,
      commitLsn: this.memory.commitLsn as Lsn,
      damage: this.memory.damage,
    };
  }

  crash(damage: 'none' | 'lost' | 'wiped'): void {
    const { random, checker } = this.#world;
    checker.counts.crashes++;
    this.up = false;
    this.#life++;
    // One that becomes a member in this very moment has nothing to lose.
    const held = this.durable.self !== null;
    if (this.#pending?.atomic === true && random.chance(0.5)) this.#pending.done();
    this.#pending = null;
    const { log } = this;
    log.truncate(log.recordEnd(random.between(log.flushed, log.end)));
    log.flushed = log.end;
    if (damage !== 'none') checker.counts.damages++;
    if (damage === 'lost' && held) {
      log.truncate(log.recordEnd(random.between(log.start, log.end)));
      const { term } = this.durable;
      this.durable = { ...this.durable, damage: { kind: 'lost', term: term as Term, reason: 'simulated' } };
    } else if (damage === 'wiped') this.wipe();
  }

  /** Of a machine that is down. */
  wipe(): void {
    this.#world.checker.counts.wipes++;
    this.log.restartBehind([]);
    const { self, configuration } = this.durable;
    this.durable = this.#world.has('lost-votes-under-old-identity') ? { ...NOBODY, self, configuration } : NOBODY;
    this.incarnation++;
    this.made = [];
  }

  /** What is in memory comes from the disk. */
  restart(): void {
    this.up = true;
    this.memory = this.durable;
    this.#queue = [];
    this.#running = false;
  }

  after(delay: number, run: () => void): void {
    const life = this.#life;
    this.#world.clock.after(delay, () => {
      if (this.up && this.#life === life) run();
    });
  }

  // ---- operations, one at a time

  enqueue(operation: Operation): void {
    this.#queue.push(operation);
    if (!this.#running) this.#next();
  }

  #next(): void {
    for (;;) {
      const operation = this.#queue[0];
      this.#running = operation !== undefined;
      if (operation === undefined) return;
      const step = operation.next();
      if (step.done !== true) {
        const write = step.value;
        this.#pending = write;
        const risk = this.#world.writeCrashChance * (write.atomic ? 3 : 1);
        if (this.#world.random.chance(risk)) return this.after(2, () => this.#world.onWriteCrash(this.id));
        this.after(this.#world.random.between(0, 5), () => {
          this.#pending = null;
          write.done();
          this.#next();
        });
        return;
      }
      this.#queue.shift();
    }
  }

  *flush(): Operation {
    const { end } = this.log;
    if (end > this.log.flushed) yield { atomic: false, done: () => void (this.log.flushed = Math.min(end, this.log.end)) };
  }

  *writeControl(change: Partial<Control>): Operation {
    const next = { ...this.memory, ...change };
    yield { atomic: true, done: () => void (this.durable = next) };
    this.memory = { ...next, commitLsn: Math.max(next.commitLsn, this.memory.commitLsn) };
    if (change.configuration !== undefined) this.#world.checker.configured(change.configuration, this.id);
    if (change.history !== undefined) this.#world.checker.describes(this.id, change.history, this.log.records, this.log.inherited);
  }

  *truncate(to: number): Operation {
    const { checker } = this.#world;
    yield {
      atomic: true,
      done: () => {
        const gone = this.log.truncate(to);
        checker.truncated(this.id, this.log.records.length, gone);
      },
    };
  }

  /** The disk becomes another member, or nobody, with an empty log; `before` is in the object store. */
  *become(control: Control, before: readonly SimRecord[]): Operation {
    yield {
      atomic: true,
      done: () => {
        this.log.restartBehind(before);
        this.durable = control;
        if (control.self !== null) this.made.push(control.self);
      },
    };
    this.memory = control;
  }
}
